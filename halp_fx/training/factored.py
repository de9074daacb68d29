"""factored: second moments that an optimizer keeps as two factors (Adafactor, arXiv 1804.04235), cut as the tensor that
they stand for.

The factors R and C are means of squared gradients, each along one axis of the parameter, and stand for
V = R C / mean(R). V is of rank one, and so is what stays of it: means of that along the axes are factors that stand for
it exactly. The factors alone, sliced, do not: mean(R) was over all slots. Where the optimizer chooses the axes by how
long they are, it may choose others, or none, for the smaller parameter, and looks for its state in that form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..rewriting.slicing import sliced

Axes = tuple[int, int]
"""Of the means that C and R are: the axis that C lost, and the one that R lost."""


@dataclass(frozen=True, slots=True)
class Form:
    """How an optimizer keeps them, by the names in its state.

    Attributes:
        r, c: the factors.
        whole: V itself, of a parameter that is not factored.
        thin: whether a factor keeps the axis that it lost, with length one.
    """

    r: str
    c: str
    whole: str
    thin: bool


TORCH = Form("row_var", "col_var", "variance", True)
TRANSFORMERS = Form("exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq", False)
"""And timm's `Adafactor`, whose parameter groups have `min_dim_size_to_factor`."""
BIG_VISION = Form("exp_avg_sq_r", "exp_avg_sq_c", "exp_avg_sq", True)
"""timm's `AdafactorBigVision`."""


def form_of(state: Mapping[str, Any], shape: torch.Size, group: Mapping[str, Any]) -> Form | None:
    """How the state of a parameter is factored; None if it is not, or in a way that is not known.

    Args:
        shape: of the parameter.
        group: of parameters, that it is in.
    """
    for form in (TORCH, TRANSFORMERS, BIG_VISION):
        axes = _axes(form, shape, group)
        if axes is None or form.r not in state or form.c not in state:
            continue
        wanted = [_without(shape, axis, form.thin) for axis in reversed(axes)]
        if [tuple(state[form.r].shape), tuple(state[form.c].shape)] == wanted:
            return form
    return None


def cut_factors(
    form: Form, state: Mapping[str, Any], shape: torch.Size, kept: Mapping[int, np.ndarray], group: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The entries of a state that stand for the second moments of what stays of a parameter.

    Args:
        form: of this state (`form_of`).
        shape: of the parameter, before.
        kept: by dimension, the slots that stay.
    """
    axes = _axes(form, shape, group)
    assert axes is not None  # `form_of` has found a form.
    r, c = state[form.r], state[form.c]
    if not form.thin:
        c, r = c.unsqueeze(axes[0]), r.unsqueeze(axes[1])
    # Divided first: products of squares of small gradients are below what a float can hold.
    mean = r.mean(axes[0], keepdim=True).clamp_min(torch.finfo(r.dtype).tiny)
    left = sliced(r / mean * c, kept)
    now = _axes(form, left.shape, group)
    if now is None:
        return {form.whole: left}
    return {form.r: left.mean(now[1], keepdim=form.thin), form.c: left.mean(now[0], keepdim=form.thin)}


def _axes(form: Form, shape: torch.Size, group: Mapping[str, Any]) -> Axes | None:
    """The axes along which an optimizer takes means, for a parameter of this shape; None: it does not factor it."""
    last = len(shape) - 1
    if last < 1:
        return None
    least = group.get("min_dim_size_to_factor")
    if form is BIG_VISION:
        shorter, longer = sorted(range(last + 1), key=lambda axis: shape[axis])[-2:]
        return (shorter, longer) if least is None or shape[shorter] >= least else None
    if form is TRANSFORMERS and least is not None:
        if last > 1 and min(shape[:2]) > least:
            return 0, 1
        return (last - 1, last) if min(shape[-2:]) > least else None
    return last - 1, last


def _without(shape: torch.Size, axis: int, thin: bool) -> tuple[int, ...]:
    return (*shape[:axis], *((1,) if thin else ()), *shape[axis + 1 :])
