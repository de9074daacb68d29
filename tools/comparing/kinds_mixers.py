"""Kinds of network that mix places by linear layers or by attention, for `comparing.kinds`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .kinds_convolutions import layer


class Mix(nn.Module):
    """Two linear layers along the places, two along the channels, each behind a layer norm and beside a shortcut."""

    def __init__(self, places: int, width: int, wide_places: int, wide: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.along_places = nn.Sequential(nn.Linear(places, wide_places), nn.GELU(), nn.Linear(wide_places, places))
        self.along_channels = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.along_places(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.along_channels(self.norms[1](x))


class Mixer(nn.Module):
    """An MLP-Mixer (arXiv 2105.01601) on patches of 2 x 2: no convolution over places, no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = self.stem()
        self.blocks = nn.Sequential(*(Mix(64, 64, 48, 128) for _ in range(3)))
        self.norm = nn.LayerNorm(64)
        self.head: nn.Module = nn.Linear(64, 10)

    def stem(self) -> nn.Module:
        return nn.Conv2d(1, 64, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


class NeckedMixer(Mixer):
    """A mixer with one batch norm, before its head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 10))


class EmbeddingMixer(Mixer):
    """A mixer that puts out an embedding of length 1, trained by a contrastive loss."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x), dim=1)


class Hybrid(Mixer):
    """A stem of convolutions with batch norms, then mixer blocks with layer norms."""

    def stem(self) -> nn.Module:
        return nn.Sequential(layer(1, 24), layer(24, 64, stride=2))


class Windows(nn.Module):
    """Attention within windows of 4 x 4 places, which may be shifted, with a bias for each pair of places."""

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.heads, self.size, self.shift = heads, 4, shift
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(heads, self.size**2, self.size**2))

    def forward(self, x: Tensor) -> Tensor:
        count, rows, columns, width = x.shape
        size, each = self.size, width // self.heads
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(count, rows // size, size, columns // size, size, width)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, width)
        q, k, v = self.qkv(x).reshape(-1, size * size, 3, self.heads, each).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * each**-0.5 + self.bias).softmax(-1)
        x = self.out((weights @ v).transpose(1, 2).reshape(-1, size * size, width))
        x = x.view(count, rows // size, columns // size, size, size, width)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(count, rows, columns, width)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class WindowBlock(nn.Module):
    """Attention within windows, then two linear layers, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, shift: int = 0) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = Windows(width, heads, shift)
        self.linear = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.linear(self.norms[1](x))


class Merge(nn.Module):
    """The channels of each 2 x 2 places, concatenated, to fewer."""

    def __init__(self, width: int, outer: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(4 * width), nn.Linear(4 * width, outer, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.linear(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    """A transformer with shifted windows (arXiv 2103.14030), two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 2, 2)
        self.first = nn.Sequential(WindowBlock(32, 4), WindowBlock(32, 4, 2))
        self.merge = Merge(32, 64)
        self.second = nn.Sequential(WindowBlock(64, 8), WindowBlock(64, 8))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.merge(self.first(self.patches(x).permute(0, 2, 3, 1))))
        return self.head(self.norm(x).mean((1, 2)))
