"""score: channel groups + data -> saliency, the estimated increase of the loss when a channel is removed.

First-order Taylor (Molchanov et al., arXiv 1906.10771; summed over coupled layers before the absolute value as in
HALP, arXiv 2110.10811, section 3.2): for a channel that passes a normalisation |sum g_gamma*gamma + g_beta*beta|,
otherwise |sum w*g| over the weights that produce it; averaged over batches. Without data: the L2 norm of the weights
that produce the channel, relative to its group's mean, since norms of different layers do not compare.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from .errors import SaliencyError
from .kernels import Segment, SegmentLayout, channel_scores
from .preserving import preserved
from .types import ChannelGroup, Coupling, Member

logger = logging.getLogger("halp_fx")

Importance = Literal["taylor", "magnitude"] | Callable[[ChannelGroup], Any]
Scores = dict[str, np.ndarray]

MAX_BATCHES = 64
"""Batches used for one scoring; further ones change the ranking of channels little."""


@dataclass(frozen=True, slots=True)
class Saliency:
    """Scores of every group that may shrink.

    Attributes:
        scores: group name -> float64 array of shape (size,), not negative.
        kind: "taylor", "magnitude", or "custom".
        batches: batches that counted.
        skipped: batches left out because their loss or gradients were not finite.
    """

    scores: Mapping[str, np.ndarray]
    kind: str
    batches: int = 0
    skipped: int = 0


def score(
    model: nn.Module,
    coupling: Coupling,
    data: Iterable[Any] | None = None,
    loss_fn: Callable[[Any, Any], torch.Tensor] | None = None,
    importance: Importance | None = None,
) -> Saliency:
    """Saliency per channel of every group that may shrink. The model, its gradients included, stays as it is.

    Args:
        model: the network that `coupling` describes; it is run in eval mode.
        coupling: from `couple`.
        data: batches of (input, target); at most `MAX_BATCHES` are used. An input may be a tensor, tuple or dict.
        loss_fn: (output, target) -> scalar loss.
        importance: "taylor" (needs data), "magnitude", a callable from group to `size` scores, or None for
            taylor with data and magnitude without.

    Raises:
        SaliencyError: data without loss_fn or vice versa, no batch with finite gradients, wrong scores.
    """
    if (data is None) != (loss_fn is None):
        have, lack = ("data", "loss_fn") if loss_fn is None else ("loss_fn", "data")
        raise SaliencyError(f"{have} without {lack}: Taylor saliency needs both, magnitude saliency neither")
    groups = coupling.prunable
    if callable(importance):
        return Saliency({g.name: _custom(g, importance(g)) for g in groups}, "custom")
    kind = importance or ("magnitude" if data is None else "taylor")
    if kind == "magnitude":
        return Saliency(_magnitude(model, groups), kind)
    if kind != "taylor":
        raise SaliencyError(f"importance={importance!r}: use 'taylor', 'magnitude' or a callable from group to scores")
    if data is None or loss_fn is None:
        raise SaliencyError("importance='taylor' needs data and loss_fn")
    return _taylor(model, groups, data, loss_fn)


def _custom(group: ChannelGroup, scores: Any) -> np.ndarray:
    array = np.asarray(scores.detach().cpu() if isinstance(scores, torch.Tensor) else scores, dtype=np.float64)
    if array.shape != (group.size,):
        raise SaliencyError(f"importance({group.name!r}) returned shape {array.shape}, expected ({group.size},)")
    if not np.isfinite(array).all() or (array < 0).any():
        raise SaliencyError(f"importance({group.name!r}) returned NaN, infinite or negative scores")
    return array


def _magnitude(model: nn.Module, groups: Sequence[ChannelGroup]) -> Scores:
    producers = {g.name: [m for m in g.members if m.role == "producer"] for g in groups}
    names, layout = _layout(model, groups, producers)
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        flat = channel_scores(layout, [tensors[n].detach() for n in names], None, "l2")
    scores = _split(flat, groups)
    return {name: s / s.mean() if s.mean() > 0 else s for name, s in scores.items()}


def _taylor(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    data: Iterable[Any],
    loss_fn: Callable[[Any, Any], torch.Tensor],
) -> Saliency:
    names, layout = _layout(model, groups, {g.name: _taylor_members(g, model) for g in groups})
    device = next(model.parameters()).device
    total: torch.Tensor | None = None
    used = skipped = 0
    with preserved(model):
        model.eval()
        for batch in data:
            if used + skipped >= MAX_BATCHES:
                break
            step = _batch_scores(model, names, layout, batch, loss_fn, device)
            if step is None:
                skipped += 1
                continue
            total = step.double() if total is None else total + step
            used += 1
    if total is None:
        detail = f"all {skipped} batches had a non-finite loss or gradient" if skipped else "data has no batches"
        raise SaliencyError(f"{detail}: check the learning rate, the loss and the inputs")
    if skipped:
        logger.warning("saliency: skipped %d of %d batches (non-finite loss or gradient)", skipped, used + skipped)
    return Saliency(_split(total / used, groups), "taylor", used, skipped)


def _batch_scores(
    model: nn.Module,
    names: Sequence[str],
    layout: SegmentLayout,
    batch: Any,
    loss_fn: Callable[[Any, Any], torch.Tensor],
    device: torch.device,
) -> torch.Tensor | None:
    """Scores of one batch, None if they are not finite. Works on aliases of the parameters: `.grad` stays."""
    try:
        inputs, target = batch
    except (TypeError, ValueError) as error:
        raise SaliencyError(f"data must yield (input, target) batches, got {type(batch).__name__}") from error
    inputs, target = tree_map(lambda t: t.to(device) if isinstance(t, torch.Tensor) else t, (inputs, target))
    wanted = set(names)
    aliases = {n: p.detach().requires_grad_(n in wanted) for n, p in model.named_parameters()}
    args, kwargs = (), {}
    if isinstance(inputs, dict):
        kwargs = inputs
    else:
        args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    with torch.enable_grad():
        loss = loss_fn(functional_call(model, aliases, args, kwargs), target)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise SaliencyError(f"loss_fn must return a scalar tensor, got {getattr(loss, 'shape', type(loss))}")
        if not bool(torch.isfinite(loss)):
            return None
        weights = [aliases[n] for n in names]
        grads = torch.autograd.grad(loss, weights, allow_unused=True)
    step = channel_scores(layout, [w.detach() for w in weights], grads, "taylor")
    return step if bool(torch.isfinite(step).all()) else None


def _taylor_members(group: ChannelGroup, model: nn.Module) -> list[Member]:
    """The affine parameters of the normalisations that the group passes, else the weights that produce it."""
    parameters = dict(model.named_parameters())
    norms = [m for m in group.members if m.role == "norm" and m.axis.tensor in parameters]
    return norms or [m for m in group.members if m.role in ("producer", "bias") and m.axis.tensor in parameters]


def _layout(
    model: nn.Module, groups: Sequence[ChannelGroup], members: Mapping[str, Sequence[Member]]
) -> tuple[list[str], SegmentLayout]:
    """Channels numbered over all groups; one segment per axis."""
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    channels: dict[tuple[str, int, int], np.ndarray] = {}
    start = 0
    for group in groups:
        for member in members[group.name]:
            tensor, dim = member.axis.tensor, member.axis.dim
            if tensor not in shapes:
                continue
            # The channels that a branch adds are slots of other groups, too: those go into a row of their own.
            rows = (channels.setdefault((tensor, dim, i), np.full(shapes[tensor][dim], -1, np.int64)) for i in count())
            row = next(row for row in rows if (row[member.slots] < 0).all())
            row[member.slots] = np.arange(start, start + group.size)[:, None]
        start += group.size
    names = sorted({tensor for tensor, _, _ in channels})
    index = {name: i for i, name in enumerate(names)}
    segments = [Segment(index[tensor], dim, row) for (tensor, dim, _), row in channels.items()]
    return names, SegmentLayout.build([shapes[n] for n in names], segments, start)


def _split(flat: torch.Tensor, groups: Sequence[ChannelGroup]) -> Scores:
    parts = np.split(flat.double().cpu().numpy(), np.cumsum([g.size for g in groups])[:-1]) if groups else []
    return {g.name: part for g, part in zip(groups, parts, strict=True)}
