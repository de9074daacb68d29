"""noise: example inputs -> batches of random inputs of their kind, for networks without data.

Smooth noise: images have most of their energy in coarse structure, and white noise leaves the deeper layers of a
trained network nearly silent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from ..types import Inputs

SAMPLES = 512
"""Random inputs in all."""

BATCH = 32


def noise_like(inputs: Inputs) -> list[Any] | None:
    """Batches for `Sampled` without a loss: positional arguments as a tuple.

    Args:
        inputs: of the forward: tensors of floating point become noise with mean 0 and deviation 1 a channel; None if
            there is anything else among them, whose values have a meaning.
    """
    args, kwargs = inputs
    tensors = tree_leaves((args, kwargs))
    images = all(isinstance(t, torch.Tensor) and t.is_floating_point() and t.ndim >= 3 for t in tensors)
    if not tensors or kwargs or not images:
        return None
    generator = torch.Generator().manual_seed(0)
    count = max(1, SAMPLES // BATCH)
    return [tree_map(lambda t: _smooth((BATCH, *t.shape[1:]), generator).to(t), args) for _ in range(count)]


def _smooth(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """The sum of noise at several scales, the coarse ones stronger."""
    total = torch.zeros(shape)
    places = shape[2:]
    scale = 1
    while scale == 1 or scale <= max(places) // 2:
        coarse = torch.randn((*shape[:2], *(max(1, p // scale) for p in places)), generator=generator)
        total += F.interpolate(coarse, places, mode="nearest") * scale
        scale *= 2
    dims = tuple(range(2, len(shape)))
    return (total - total.mean(dims, keepdim=True)) / total.std(dims, keepdim=True).clamp_min(1e-6)
