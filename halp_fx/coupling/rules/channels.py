"""Reading the channels of a tensor off its planes, as rules do whose operator sees one dimension of them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..algebra import Algebra, Call, Planes, Value, along, varying, vector

PARTS = "#parts"
"""What follows the place of the choice between whole parts in the batch, and the same positions of each."""


def channel_labels(
    x: Value, dim: int, call: Call, algebra: Algebra, batch: bool = True
) -> tuple[torch.Tensor, Callable[[tuple[int, ...]], Planes]]:
    """The labels along `dim` of a tensor, shape (size,), 0 where there are none.

    Labels that also vary elsewhere are tied along those dimensions. Planes over the batch are carried on (second
    result: shape -> planes) unless `batch` is False; others are pinned, for the operator mixes what lies along them.
    Of parts that are laid into the batch (heads, with a layer for all of them) the same positions go, or, as the other
    choice, whole parts.
    """
    labels = torch.zeros(x.shape[dim], dtype=torch.int32, device="cpu")
    carried = []
    found = False
    for plane in x.planes:
        dims = varying(plane)
        parts = batch and dims == (0, dim) and algebra.choose(f"{call.place}{PARTS}", "positions") == "whole"
        if dim in dims and not found and not parts:
            plane = algebra.tie(plane, [d for d in dims if d != dim], call, "position")
            labels, found = vector(plane, dim), True
        elif parts or (dims == (0,) and dim != 0 and batch):
            plane = algebra.tie(plane, [dim], call, "part") if parts else plane
            carried.append(vector(plane, 0))
        else:
            algebra.pin(plane, f"{call.where} mixes what lies along this axis")
    return labels, lambda shape: tuple(along(b, 0, shape) for b in carried)


def beside(x: Value, dims: set[int], call: Call, algebra: Algebra) -> Planes:
    """The planes as they are beside `dims`, along which the operator mixes what lies there: of those that vary along
    other dimensions, too, all along these go together; those that do not are pinned."""
    kept = []
    for plane in x.planes:
        mixed = set(varying(plane)) & dims
        if mixed and mixed == set(varying(plane)):
            algebra.pin(plane, f"{call.where} mixes what lies along this axis")
        else:
            kept.append(algebra.tie(plane, mixed, call, "position"))
    return tuple(kept)


def couple_labels(a: torch.Tensor, b: torch.Tensor, call: Call, algebra: Algebra, kind: str) -> None:
    """Couple two rows of labels; an axis of length 1 has none."""
    if len(a) > 1:
        algebra.couple(a, b, call, kind)
