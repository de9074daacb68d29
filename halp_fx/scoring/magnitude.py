"""magnitude: the L2 norms of the weights that produce each channel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ..kernels import channel_scores
from ..types import ChannelGroup
from .scored import Weights

Scores = dict[str, np.ndarray]


def magnitudes(weights: Weights, groups: Sequence[ChannelGroup]) -> Scores:
    """Norms relative to their group's mean, since norms of different layers do not compare; times the slots that a
    channel has in the layers that produce it, for a head of 64 slots is not one neuron."""
    scores = norms(weights, groups, weights.computed)
    slots = {g.name: max((m.slots.shape[1] for m in g.members if m.role == "producer"), default=1) for g in groups}
    return {name: slots[name] * (s / s.mean() if s.mean() > 0 else s) for name, s in scores.items()}


def norms(weights: Weights, groups: Sequence[ChannelGroup], nodes: Iterable[str]) -> Scores:
    """L2 norms of the weights that produce each channel; of computed weights, those of these nodes."""
    used = set(nodes)
    keys, layout = weights.layout(groups, lambda g: [p for p in weights.places(g, used) if p.role == "producer"])
    return split(channel_scores(layout, [weights.value(k) for k in keys], None, "l2"), groups)


def masked(weights: Weights, groups: Sequence[ChannelGroup]) -> dict[str, np.ndarray]:
    """Channels that a mask has removed already, as bools: those with a norm of zero in a group that has others. They go
    first, whatever the constant that is left of them is worth."""
    return {name: (norm == 0) & norm.any() for name, norm in norms(weights, groups, weights.computed).items()}


def split(flat: torch.Tensor, groups: Sequence[ChannelGroup]) -> Scores:
    """Numbers of all channels by group, as float64."""
    parts = np.split(flat.double().cpu().numpy(), np.cumsum([g.size for g in groups])[:-1]) if groups else []
    return {g.name: part for g, part in zip(groups, parts, strict=True)}
