"""Tasks that are no classification of images, on scenes that are made of scikit-learn's digits: nothing is downloaded.

Digits lie on smooth backgrounds; those to test on were never seen. Each task has a network of the kind that is used for
it, a loss, and a figure that is larger for a better network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import SIDE, Data

DIGIT = 12
"""Pixels a side that a digit is drawn with."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A task.

    Attributes:
        network: makes one.
        pairs: scenes -> inputs and targets.
        metric: of outputs and targets; `unit` is its name.
        epochs: of the dense network.
    """

    network: Callable[[], nn.Module]
    pairs: Callable[[Scenes], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[Tensor, Tensor], float]
    unit: str
    epochs: int


@dataclass(frozen=True, slots=True)
class Scenes:
    """What tasks are made of.

    Attributes:
        images: (count, 3, side, side); `clean` is without noise.
        shown: what each pixel shows: 1 where a digit is.
        digits: (count, 10): which there are.
        place: (count, 2): the middle of where they lie, between -1 and 1.
    """

    images: Tensor
    clean: Tensor
    shown: Tensor
    digits: Tensor
    place: Tensor


def make(kind: str, train: int = 2560, test: int = 768, seed: int = 0) -> Data:
    """Inputs and targets of a task."""
    from sklearn.datasets import load_digits

    found = load_digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(found.target), generator=generator)
    drawn = torch.as_tensor(found.images, dtype=torch.float32)[order][:, None] / 16
    drawn, labels = F.interpolate(drawn, size=DIGIT, mode="bilinear")[:, 0], torch.as_tensor(found.target)[order]
    parts = [
        KINDS[kind].pairs(_scenes(drawn[own], labels[own], count, generator))
        for own, count in ((slice(0, 1200), train), (slice(1200, None), test))
    ]
    return Data(kind, 0, *parts)


def _scenes(drawn: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> Scenes:
    clean = 0.5 * _smooth(count, generator)
    shown = torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    digits, places = torch.zeros(count, 10), torch.empty(count, 2)
    for i in range(count):
        corners = []
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            which = int(torch.randint(len(labels), (), generator=generator))
            y, x = torch.randint(SIDE - DIGIT + 1, (2,), generator=generator).tolist()
            colour, ink = 1.2 * torch.randn(3, 1, 1, generator=generator), drawn[which]
            window = clean[i, :, y : y + DIGIT, x : x + DIGIT]
            window.copy_(window * (1 - ink) + colour * ink)
            shown[i, y : y + DIGIT, x : x + DIGIT][ink > 0.4] = 1
            digits[i, labels[which]] = 1
            corners.append(2 * torch.tensor([y, x]) / (SIDE - DIGIT) - 1)
        places[i] = torch.stack(corners).mean(0)
    return Scenes(clean + 0.15 * torch.randn(clean.shape, generator=generator), clean, shown, digits, places)


def _smooth(count: int, generator: torch.Generator) -> Tensor:
    waves = [
        F.interpolate(torch.randn(count, 3, n, n, generator=generator), size=SIDE, mode="bicubic") * (4 / n) ** 0.7
        for n in (4, 8, 16)
    ]
    return torch.stack(waves).sum(0)


def _layer(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())


class Sum(nn.Module):
    """`body(x) + shortcut(x)`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


def _upscaling(width: int = 32, blocks: int = 4) -> nn.Module:
    """As EDSR (arXiv 1707.02921): no norms, residual blocks within a residual, a shuffle to twice the side."""

    def conv(outer: int = width) -> nn.Module:
        return nn.Conv2d(width, outer, 3, 1, 1)

    inside = [Sum(nn.Sequential(conv(), nn.ReLU(), conv())) for _ in range(blocks)]
    body = Sum(nn.Sequential(*inside, conv()))
    return nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), body, conv(4 * width), nn.PixelShuffle(2), conv(3))


def _denoising(width: int = 32, depth: int = 5) -> nn.Module:
    """As DnCNN (arXiv 1608.03981), without its outer residual."""
    inside = [_layer(width, width) for _ in range(depth)]
    return nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.ReLU(), *inside, nn.Conv2d(width, 3, 3, 1, 1))


class UNet(nn.Module):
    """Three levels, joined by concatenation (arXiv 1505.04597)."""

    def __init__(self, outputs: int, width: int = 16) -> None:
        super().__init__()
        w = width
        self.down = nn.ModuleList(
            nn.Sequential(_layer(i, o, s), _layer(o, o)) for i, o, s in ((3, w, 1), (w, 2 * w, 2), (2 * w, 4 * w, 2))
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * o, o, 2, 2) for o in (2 * w, w))
        self.join = nn.ModuleList(nn.Sequential(_layer(2 * o, o), _layer(o, o)) for o in (2 * w, w))
        self.head = nn.Conv2d(w, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level in self.down:
            x = level(x)
            kept.append(x)
        kept.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([up(x), kept.pop()], 1))
        return self.head(x)


def _residual(outputs: int, width: int = 20) -> nn.Module:
    """Basic blocks over three stages, pooled."""
    layers: list[nn.Module] = [_layer(3, width)]
    inner = width
    for outer, stride in ((width, 1), (2 * width, 2), (2 * width, 1), (4 * width, 2), (4 * width, 1)):
        body = nn.Sequential(_layer(inner, outer, stride), *list(_layer(outer, outer))[:2])
        same = stride == 1 and inner == outer
        wider = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
        layers += [Sum(body, None if same else wider), nn.ReLU()]
        inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, outputs))


def _decibels(output: Tensor, target: Tensor) -> float:
    """The peak is taken as three deviations."""
    return float(10 * torch.log10(9 * target.var() / (output - target).square().mean()))


def overlap(output: Tensor, target: Tensor) -> float:
    """Mean over the classes of intersection over union, in percent."""
    found = output.argmax(1)
    each = [
        ((found == c) & (target == c)).sum() / ((found == c) | (target == c)).sum().clamp_min(1)
        for c in range(output.shape[1])
    ]
    return 100 * float(torch.stack(each).mean())


def _f1(output: Tensor, target: Tensor) -> float:
    found = (output > 0).float()
    return 100 * float(2 * (found * target).sum() / (found.sum() + target.sum()))


def explained(output: Tensor, target: Tensor) -> float:
    """Share of the variance, in percent."""
    return 100 * float(1 - (output - target).square().mean() / target.var())


KINDS: Mapping[str, Kind] = {
    "upscaling": Kind(_upscaling, lambda s: (F.avg_pool2d(s.clean, 2), s.clean), F.l1_loss, _decibels, "dB", 12),
    "denoising": Kind(
        _denoising, lambda s: (s.clean + 4 * (s.images - s.clean), s.clean), F.mse_loss, _decibels, "dB", 12
    ),
    "segmentation": Kind(
        lambda: UNet(2), lambda s: (s.images, s.shown), F.cross_entropy, overlap, "% mean overlap", 24
    ),
    "several labels": Kind(
        lambda: _residual(10), lambda s: (s.images, s.digits), F.binary_cross_entropy_with_logits, _f1, "% F1", 24
    ),
    "coordinates": Kind(
        lambda: _residual(2), lambda s: (s.images, s.place), F.mse_loss, explained, "% of the variance", 20
    ),
}
