"""Networks as people write them: a U-Net that interpolates, a recurrent head, two inputs, results by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class UNet(nn.Module):
    """Down twice and up again, once to the size of what is joined, once by a factor."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()

        def conv(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.SiLU())

        self.first, self.second, self.third = conv(3, width), conv(width, 2 * width, 2), conv(2 * width, 4 * width, 2)
        self.up2, self.up1 = conv(6 * width, 2 * width), conv(3 * width, width)
        self.out = nn.Conv2d(width, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.first(x)
        b = self.second(a)
        y = F.interpolate(self.third(b), size=b.shape[-2:], mode="bilinear", align_corners=False)
        y = self.up2(torch.cat([y, b], 1))
        y = self.up1(torch.cat([F.interpolate(y, scale_factor=2, mode="nearest"), a], 1))
        return self.out(y)


class TextReader(nn.Module):
    """Columns of an image as a sequence, read by a recurrent layer in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()),
        )
        self.gru = nn.GRU(24 * 4, 20, batch_first=True, bidirectional=True)
        self.head = nn.Linear(40, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = self.body(x).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.gru(columns)[0]).log_softmax(-1)


class ImageAndTable(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.table = nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 32))
        self.mix, self.head = nn.Linear(64, 32), nn.Linear(32, 3)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(torch.cat([self.image(image), self.table(table)], 1)).relu())


class ByName(nn.Module):
    """Results in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 24, 3, 2, 1), nn.GroupNorm(4, 24), nn.ReLU()),
            *(nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 32, 1), nn.ReLU()),
        )
        self.scores, self.boxes = nn.Linear(32, 5), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.body(x)
        mean = y.mean((2, 3))
        return {"scores": self.scores(mean), "boxes": self.boxes(mean).sigmoid(), "map": y.mean(1)}


def _pyramid() -> nn.Module:
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone: nn.Module = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    return backbone


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "unet": (UNet, ((1, 3, 64, 64),)),
    "text_reader": (TextReader, ((1, 1, 8, 40),)),
    "image_and_table": (ImageAndTable, ((1, 3, 33, 33), (1, 6))),
    "by_name": (ByName, ((1, 3, 32, 32),)),
    "resnet18_fpn": (_pyramid, ((1, 3, 64, 64),)),
}
"""By name: what makes it, and the shapes of its inputs."""


def made(name: str) -> tuple[nn.Module, Any]:
    """The network, and inputs for it."""
    make, shapes = NETWORKS[name]
    generator = torch.Generator().manual_seed(0)
    return make().eval(), tuple(torch.rand(shape, generator=generator) for shape in shapes)
