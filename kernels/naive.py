"""The PyTorch twins: they define what every kernel computes, and run wherever Triton does not.

`channel_scores` follows the definition (per segment: contribution of each element, summed over all other
dimensions, added up by channel), in chunks that stay in cache. `lookup` is bilinear interpolation by gathers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .layout import SegmentLayout
from .variants import Element, Final, Variant

if TYPE_CHECKING:
    from .tables import TableStack

CHUNK = 1 << 20
"""Elements per chunk: bounds the temporary product to a few MiB (it would be 392 MiB for VGG-16's first linear layer)
and keeps it in a last-level cache, where each segment reads it once."""

QUERIES = 1 << 15
"""Queries per chunk of a lookup: a dozen temporaries of this length fit L2."""

_SHARE = 2**32 - 1
"""The lower half of a place: see `tables.py`."""

ELEMENTS: dict[Element, Callable[[Tensor, Tensor], Tensor]] = {
    Element.PRODUCT: lambda w, g: w * g,
    Element.ABS_PRODUCT: lambda w, g: (w * g).abs_(),
    Element.SQUARED_PRODUCT: lambda w, g: (w * g).square_(),
    Element.ABS: lambda w, g: w.abs(),
    Element.SQUARE: lambda w, g: w.square(),
}
FINALS: dict[Final, Callable[[Tensor], Tensor]] = {
    Final.IDENTITY: lambda total: total,
    Final.ABS: torch.abs,
    Final.SQUARE: torch.square,
    Final.SQRT: torch.sqrt,
}


@torch.no_grad()
def channel_scores(
    layout: SegmentLayout,
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None] | None,
    variant: Variant,
    out: Tensor | None = None,
) -> Tensor:
    """Scores of all channels; see `halp_fx.kernels.channel_scores` for the contract.

    float32 within a chunk (PyTorch's sums are pairwise), float64 across chunks, segments and parameters.
    """
    layout.check(weights, grads, variant.needs_grad)
    device = weights[layout.scored[0]].device if layout.scored else torch.device("cpu")
    totals = torch.zeros(layout.num_channels + 1, dtype=torch.float64, device=device)
    used = grads if variant.needs_grad and grads is not None else weights
    for vectors, indices in _runs(layout, weights, used):
        if vectors:
            totals.index_add_(0, *_of_vectors(layout, device, indices, weights, used, ELEMENTS[variant.element]))
            continue
        for index in indices:
            weight, grad, targets = weights[index], used[index], _targets(layout, device)[index]
            assert grad is not None  # `_runs` has left those out.
            sums = _sums_along(weight, grad, [dim for dim, _ in targets], ELEMENTS[variant.element])
            for dim, channels in targets:
                totals.index_add_(0, channels, sums[dim])
    scores = FINALS[variant.final](totals[:-1])
    if out is None:
        return scores.float()
    layout.check_out(out, device)
    return out.add_(scores)


def _runs(
    layout: SegmentLayout, weights: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> Iterator[tuple[bool, list[int]]]:
    """The scored parameters that have elements and a gradient, in runs: of vectors (of norms, biases), which are scored
    at once, as hundreds of them take as many small operators each; and of others. In their order, in which sums add
    up."""

    def kind(index: int) -> tuple[bool, torch.dtype | None]:
        weight, grad = weights[index], grads[index]
        if weight.dim() != 1 or grad is None:
            return False, None
        return True, _precision(weight, grad)

    scored = (i for i in layout.scored if grads[i] is not None and weights[i].numel())
    for (vectors, _), indices in groupby(scored, kind):
        yield vectors, list(indices)


def _of_vectors(
    layout: SegmentLayout, device: torch.device, indices: Sequence[int], weights: Sequence[Tensor],
    grads: Sequence[Tensor | None], element: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The channels of the elements of vectors, one vector after the other, and what they contribute."""
    whole = [grad for grad in (grads[i] for i in indices) if grad is not None]
    compute = _precision(weights[indices[0]], whole[0])
    values = element(torch.cat([weights[i] for i in indices]).to(compute), torch.cat(whole).to(compute)).double()
    targets = _targets(layout, device)
    parts = zip(indices, values.split([len(weights[i]) for i in indices]), strict=True)
    if all(len(targets[i]) == 1 for i in indices):
        key = ("channels", device, *indices)
        if key not in layout.cache:
            layout.cache[key] = torch.cat([targets[i][0][1] for i in indices])
        return layout.cache[key], values
    pairs = [(channels, part) for i, part in parts for _, channels in targets[i]]
    return torch.cat([channels for channels, _ in pairs]), torch.cat([part for _, part in pairs])


def _precision(weight: Tensor, grad: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (weight.dtype, grad.dtype) else torch.float32


def _targets(layout: SegmentLayout, device: torch.device) -> dict[int, list[tuple[int, Tensor]]]:
    """For every scored parameter its (dim, channel of each slot); channel -1 becomes an extra last one."""
    key = ("targets", device)
    if key not in layout.cache:
        targets: dict[int, list[tuple[int, Tensor]]] = {index: [] for index in layout.scored}
        for segment in layout.segments:
            channels = torch.from_numpy(segment.channels % (layout.num_channels + 1)).to(device)
            targets[segment.tensor].append((segment.dim, channels))
        layout.cache[key] = targets
    found: dict[int, list[tuple[int, Tensor]]] = layout.cache[key]
    return found


def _sums_along(
    weight: Tensor, grad: Tensor, dims: Sequence[int], element: Callable[[Tensor, Tensor], Tensor]
) -> dict[int, Tensor]:
    """For every dim, the float64 sums over all other dims of element(weight, grad)."""
    order = sorted(range(weight.dim()), key=lambda d: (weight.stride(d), weight.shape[d]), reverse=True)
    weight, grad = weight.permute(order), grad.permute(order)
    places = {dim: order.index(dim) for dim in dims}
    sums = {d: torch.zeros(weight.shape[p], dtype=torch.float64, device=weight.device) for d, p in places.items()}
    compute = _precision(weight, grad)
    rows = weight.shape[0]
    step = max(1, CHUNK * rows // weight.numel())
    for start in range(0, rows, step):
        w, g = (t[start : start + step].to(compute) for t in (weight, grad))
        values = element(w, g)
        for dim, place in places.items():
            # Rows are complete in one chunk; the slots of every other dimension get a part from each chunk.
            target = sums[dim][start : start + step] if place == 0 else sums[dim]
            target += _sum_all_but(values, place)
    return sums


def _sum_all_but(values: Tensor, place: int) -> Tensor:
    """Sum over all dimensions but one. Two plain reductions are faster on a CPU than one over a tuple."""
    if place > 0:
        values = values.flatten(0, place - 1).sum(0)
    return values.flatten(1).sum(1) if values.dim() > 1 else values


@torch.no_grad()
def lookup(stack: TableStack, layer: Tensor, cin: Tensor, cout: Tensor) -> Tensor:
    """Interpolated times; see `halp_fx.kernels.lookup` for the contract."""
    times = torch.empty(layer.numel(), dtype=stack.cells.dtype, device=stack.device)
    queries = [q.reshape(-1).split(QUERIES) for q in (layer, cin, cout)]
    for part, *query in zip(times.split(QUERIES), *queries, strict=True):
        _interpolate(stack, part, *(q.long() for q in query))
    return times.reshape(layer.shape)


def _interpolate(stack: TableStack, times: Tensor, layer: Tensor, cin: Tensor, cout: Tensor) -> None:
    known = (layer >= 0) & (layer < stack.num_layers)
    index = layer.clamp(0, stack.num_layers - 1)
    places = [
        side.view(-1).index_select(0, (index * side.shape[1]).add_(width.clamp(0, side.shape[1] - 1)))
        for side, width in ((stack.inputs, cin), (stack.outputs, cout))
    ]
    dx, dy = (place.bitwise_right_shift(32).to(times.dtype) for place in places)
    column, row = (place.bitwise_and_(_SHARE) for place in places)
    time, by_x, by_y, by_xy = stack.cells.index_select(0, column.add_(row)).unbind(1)
    slope = torch.addcmul(by_y, dx, by_xy)
    torch.addcmul(torch.addcmul(time, dx, by_x), dy, slope, out=times).masked_fill_(known.logical_not_(), torch.nan)
