"""Example inputs -> as many images that nobody took, for what needs inputs where there is no data."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from ..internals import tree_flatten, tree_leaves, tree_unflatten
from ..types import Inputs

FEWEST, MOST, PLACES = 32, 512, 2**19
"""Images that are drawn: so many that they have this many pixels in all, within these."""


def are_images(inputs: Inputs) -> bool:
    """Whether a forward is given images or volumes, (samples, channels, places, ...), and nothing that images cannot
    be drawn beside: every tensor has the samples of the others first."""
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    return any(map(_is_image, tensors)) and all(t.ndim and len(t) == len(tensors[0]) for t in tensors)


def drawn_images(inputs: Inputs, most: int = MOST, seed: int = 0) -> Inputs:
    """Arguments of the forward with images drawn in place of those of an example, and its other tensors repeated.

    Their spectrum is that of photographs, whose amplitudes fall as 1 / frequency (Field, J. Opt. Soc. Am. A 4, 2379,
    1987), and colours go together. They have mean 0 and deviation 1, as images that were normalised.

    Args:
        inputs: of which `are_images` holds.
        most: how many at most.
    """
    leaves, tree = tree_flatten(inputs)
    pixels = max(prod(leaf.shape[2:]) for leaf in leaves if _is_image(leaf))
    count = max(1, min(most, max(FEWEST, min(MOST, PLACES // pixels))))
    generator = torch.Generator().manual_seed(seed)

    def more(leaf: Any) -> Any:
        if _is_image(leaf):
            return _spectral((count, *leaf.shape[1:]), generator).to(leaf.device, leaf.dtype)
        return leaf[torch.arange(count, device="cpu") % len(leaf)] if isinstance(leaf, torch.Tensor) else leaf

    drawn: Inputs = tree_unflatten([more(leaf) for leaf in leaves], tree)
    return drawn


def _is_image(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.ndim >= 4


def _spectral(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Noise whose amplitudes fall as 1 / frequency over the places, with channels that go together."""
    (channels, *places), dims = shape[1:], tuple(range(2, len(shape)))
    usual: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    frequencies = torch.meshgrid(*[torch.fft.fftfreq(n, **usual) for n in places], indexing="ij")
    frequency = torch.stack(frequencies).square().sum(0).sqrt()
    frequency[(0,) * len(places)] = 1 / max(places)
    waves = torch.fft.fftn(torch.randn(shape, generator=generator, **usual), dim=dims) / frequency
    mixed = torch.eye(channels, **usual) + 0.4 * torch.randn(channels, channels, generator=generator, **usual)
    images = torch.einsum("nc...,dc->nd...", torch.fft.ifftn(waves, dim=dims).real, mixed)
    own = (0, *dims)
    images = images - images.mean(own, keepdim=True)
    return images / images.square().mean(own, keepdim=True).sqrt().clamp_min(1e-12)
