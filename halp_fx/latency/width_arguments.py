"""Arguments that repeat a width: convolution groups, `normalized_shape`, the sizes of a group norm.

An operator is recorded with the constants of the dense network. Before it is replayed at other widths, those of its
arguments that are sizes are set to what the tensors beside them say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..tracing.graph import operator

Args = tuple[Any, ...]
Fit = Callable[[list[Any], float, float], None]


def fit_widths(
    function: Any, args: Args, kwargs: dict[str, Any], in_share: float, out_share: float
) -> tuple[Args, dict[str, Any]]:
    """The arguments with size constants that fit the tensors.

    Args:
        in_share, out_share: widths relative to the dense network.
    """
    fit = _FITS.get(operator(function))
    if fit is None:
        return args, kwargs
    row = list(args)
    fit(row, in_share, out_share)
    return tuple(row), kwargs


def without_widths(function: Any, args: Args) -> Args:
    """The arguments for a signature: those that `fit_widths` derives from the tensors alone are left open."""
    name = operator(function)
    row = list(args)
    for index in _DERIVED.get(name, ()):
        row[index] = "*"
    if name in ("convolution", "_convolution") and row[8] > 1 and not row[6]:
        row[8] = "*"
    return tuple(row)


def _convolution(row: list[Any], in_share: float, out_share: float) -> None:
    x, weight, transposed, groups = row[0], row[1], row[6], row[8]
    if groups == 1:
        return
    if not transposed:
        # weight is (O, C/groups, *kernel): both ways of shrinking a grouped convolution show in it.
        row[8] = x.shape[1] // weight.shape[1]
    elif in_share == out_share:
        # weight is (C, O/groups, *kernel): whole convolution groups go, inputs and outputs alike.
        row[8] = max(1, round(groups * in_share))


def _layer_norm(row: list[Any], in_share: float, out_share: float) -> None:
    row[1] = list(row[0].shape[row[0].dim() - len(row[1]) :])


def _group_norm(row: list[Any], in_share: float, out_share: float) -> None:
    x, width, groups = row[0], row[4], row[6]
    row[3], row[4], row[5] = x.shape[0], x.shape[1], x[0, 0].numel()
    if groups >= width // groups:
        # Whole groups go, as the rule has it (`coupling/rules/normalization.py`).
        row[6] = max(1, row[4] * groups // width)
    while row[4] % row[6]:
        row[6] -= 1


def _deformable(row: list[Any], in_share: float, out_share: float) -> None:
    x, weight, offset = row[:3]
    row[11] = x.shape[1] // weight.shape[1]
    row[12] = offset.shape[1] // (2 * weight.shape[2] * weight.shape[3])


_FITS: dict[str, Fit] = {
    "convolution": _convolution,
    "_convolution": _convolution,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "deform_conv2d": _deformable,
}

_DERIVED: dict[str, tuple[int, ...]] = {
    "native_layer_norm": (1,),
    "native_group_norm": (3, 4, 5),
    "deform_conv2d": (11, 12),
}
