"""Data, losses and figures for the kinds of network in `comparing.kinds`: drawn on the machine, nothing is downloaded.

Digits of scikit-learn, enlarged, with a piece of another one as clutter and with noise; those to test on were never
seen. Sequences are generated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .data import Data

SIDE = 16
"""Pixels a side."""

PARTS = ((2048, slice(0, 1200)), (1024, slice(1200, None)))
"""To train and to test on: how many are drawn, and of which digits."""

SEEN = 512
"""Test images whose embeddings tell where each class lies; the others are judged by it."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Digits that lie somewhere.

    Attributes:
        images: (count, 1, side, side); `clean` is without clutter and noise, between 0 and 1.
        places: (count, 2): row and column, between 0 and 1.
    """

    images: Tensor
    clean: Tensor
    labels: Tensor
    places: Tensor

    @property
    def quarters(self) -> Tensor:
        """Which quarter of the image the digit lies in."""
        lower, right = (self.places > 0.5).long().unbind(1)
        return lower * 2 + right


def _draw(count: int, own: slice, generator: torch.Generator, noise: float = 0.4) -> Drawn:
    from sklearn.datasets import load_digits

    known = load_digits()
    order = torch.randperm(len(known.target), generator=torch.Generator().manual_seed(7))
    digits = torch.as_tensor(known.images, dtype=torch.float32)[order][own] / 16
    labels = torch.as_tensor(known.target)[order][own]
    picked = torch.randint(len(digits), (count,), generator=generator)
    size = SIDE * 5 // 8
    large = F.interpolate(digits[picked][:, None], size=size, mode="bilinear")
    images = torch.zeros(count, 1, SIDE, SIDE)
    places = torch.randint(SIDE - size + 1, (count, 2), generator=generator)
    for i, (y, x) in enumerate(places.tolist()):
        images[i, :, y : y + size, x : x + size] = large[i]
    clean = images.clone()
    for i in range(count):
        y, x = torch.randint(0, SIDE - 6, (2,), generator=generator).tolist()
        other = large[int(torch.randint(count, (), generator=generator))]
        window = images[i, :, y : y + 6, x : x + 6]
        window.copy_(torch.maximum(window, 0.6 * other[:, 2:8, 2:8]))
    return Drawn(_noisy(images, noise, generator), clean, labels[picked], places / (SIDE - size))


def _noisy(images: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    return (images - 0.2) / 0.3 + noise * torch.randn(images.shape, generator=generator)


@lru_cache
def _digits() -> list[Drawn]:
    generator = torch.Generator().manual_seed(0)
    return [_draw(count, own, generator) for count, own in PARTS]


def classes() -> Data:
    """Which digit."""
    return Data("classes", 10, *((d.images, d.labels) for d in _digits()))


def classes_and_quarters() -> Data:
    """Which digit, and in which quarter: two targets."""
    return Data("classes and quarters", 0, *((d.images, torch.stack([d.labels, d.quarters], 1)) for d in _digits()))


def forty() -> Data:
    """Which digit in which quarter: forty classes."""
    return Data("forty", 40, *((d.images, d.labels * 4 + d.quarters) for d in _digits()))


def cleaned() -> Data:
    """The image without clutter and noise."""
    return Data("cleaned", 0, *((d.images, d.clean) for d in _digits()))


def pixels() -> Data:
    """For each pixel: none (0), or which digit, of each two the same class."""
    return Data("pixels", 6, *((d.images, _shown(d)) for d in _digits()))


def _shown(drawn: Drawn) -> Tensor:
    return torch.where(drawn.clean[:, 0] > 0.4, drawn.labels[:, None, None] % 5 + 1, 0)


@lru_cache
def centred() -> Data:
    """Digits that lie almost in the middle, without clutter, with more noise: for networks that learn places slowly."""
    generator = torch.Generator().manual_seed(3)
    parts = []
    for count, own in PARTS:
        drawn = _draw(count, own, generator)
        images = torch.zeros_like(drawn.clean)
        for i, image in enumerate(drawn.clean):
            where = torch.nonzero(image[0] > 0.3, as_tuple=True)
            moved = [int(SIDE // 2 - along.float().mean()) for along in where]
            images[i] = torch.roll(image, moved, (1, 2))
        parts.append((_noisy(images, 0.6, generator), drawn.labels))
    return Data("centred", 10, *parts)


@lru_cache
def sequences() -> Data:
    """Two channels of 96 steps: which of four shapes of wave in which of six pitches, in noise."""
    draw = np.random.default_rng(0)
    pitches, steps = np.array([5, 6.2, 7.6, 9.4, 11.6, 14.3]), np.arange(96)[None]
    parts = []
    for count, _ in PARTS:
        labels = draw.integers(0, 24, count)
        pitch = (2 * np.pi / pitches)[labels // 4][:, None] * draw.uniform(0.95, 1.05, (count, 1))
        phase = pitch * steps + draw.uniform(0, 6.3, (count, 1))
        phase = phase + 0.5 * np.sin(steps / 15 + draw.uniform(0, 6.3, (count, 1)))
        wave = np.sin(phase)
        shapes = np.stack([wave, np.sign(wave) * 0.8, phase / np.pi % 2 - 1, wave * (np.sin(phase / 4) > 0) * 1.4])
        first = shapes[labels % 4, np.arange(count)]
        second = np.roll(first, 3, 1) * draw.uniform(0.3, 1, (count, 1))
        found = np.stack([first, second], 1) + draw.normal(0, 0.7, (count, 2, 96))
        parts.append((torch.tensor(found, dtype=torch.float32), torch.tensor(labels)))
    return Data("sequences", 24, *parts)


def right(output: Tensor, target: Tensor) -> float:
    """Share that is recognised, in percent."""
    return 100 * float((output.argmax(1) == target).float().mean())


def both(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    """The sum of the losses of two classifications."""
    return F.cross_entropy(output[0], target[:, 0]) + F.cross_entropy(output[1], target[:, 1])


def both_right(output: tuple[Tensor, Tensor], target: Tensor) -> float:
    return (right(output[0], target[:, 0]) + right(output[1], target[:, 1])) / 2


def contrastive(output: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive (arXiv 2004.11362), of embeddings of length 1."""
    own = torch.eye(len(output), dtype=torch.bool, device=output.device)
    logs = (output @ output.t() / temperature).masked_fill(own, -1e4).log_softmax(1)
    alike = (target[:, None] == target[None]) & ~own
    return -(logs * alike).sum(1).div(alike.sum(1).clamp_min(1)).mean()


def prototypes(output: Tensor, target: Tensor) -> Tensor:
    """Distances to the means of the classes in the batch, each without the sample itself (arXiv 1703.05175)."""
    member = F.one_hot(target, 10).to(output.dtype)
    others = member.sum(0)[None] - member
    total = (member.t() @ output)[None] - member[:, :, None] * output[:, None]
    distances = (output[:, None] - total / others.clamp_min(1)[:, :, None]).square().sum(2)
    return F.cross_entropy(-distances.masked_fill(others < 1, 1e4), target)


def _means(output: Tensor, target: Tensor) -> Tensor:
    return torch.stack([output[:SEEN][target[:SEEN] == c].mean(0) for c in range(10)])


def by_angle(output: Tensor, target: Tensor) -> float:
    """Share whose embedding points most to the mean of its class, in percent."""
    return right(output[SEEN:] @ _means(output, target).t(), target[SEEN:])


def by_distance(output: Tensor, target: Tensor) -> float:
    """Share whose embedding lies closest to the mean of its class, in percent."""
    return right(-torch.cdist(output[SEEN:], _means(output, target)), target[SEEN:])
