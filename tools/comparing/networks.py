"""Small networks of the kinds that pruning meets, for images of 32 x 32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer


def _conv(inner: int, outer: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer), nn.ReLU(inplace=True) if act else nn.Identity())


class Residual(nn.Module):
    """`act(body(x) + shortcut(x))`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut, act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.shortcut(x))


def _basic(inner: int, outer: int, stride: int) -> Residual:
    body = nn.Sequential(_conv(inner, outer, 3, stride), _conv(outer, outer, 3, act=False))
    same = stride == 1 and inner == outer
    return Residual(body, nn.Identity() if same else _conv(inner, outer, 1, stride, act=False), nn.ReLU())


def head(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def residual(classes: int) -> nn.Module:
    """Basic blocks [2, 2, 2, 2], 16 wide."""
    layers: list[nn.Module] = [_conv(3, 16, 3, 2)]
    inner = 16
    for stage in range(4):
        for block in range(2):
            outer = 16 * 2**stage
            layers.append(_basic(inner, outer, 2 if stage and not block else 1))
            inner = outer
    return nn.Sequential(*layers, *head(inner, classes))


class Split(nn.Module):
    """Two ways, one through bottleneck residuals; their results and what lies between are concatenated."""

    def __init__(self, inner: int, outer: int, depth: int) -> None:
        super().__init__()
        half = outer // 2
        self.left, self.right = _conv(inner, half), _conv(inner, half)
        self.blocks = nn.ModuleList(
            Residual(
                nn.Sequential(_conv(half, half // 2), _conv(half // 2, half, 3, act=False)), nn.Identity(), nn.ReLU()
            )
            for _ in range(depth)
        )
        self.out = _conv(half * (depth + 2), outer)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.left(x), self.right(x)]
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.out(torch.cat(parts, 1))


def concat(classes: int) -> nn.Module:
    """Bottlenecks and concatenations as in cross-stage partial networks."""
    layers: list[nn.Module] = [_conv(3, 24, 3, 2)]
    inner = 24
    for stage, outer in enumerate((48, 96, 128)):
        if stage:
            layers.append(_conv(inner, inner, 3, 2))
        layers.append(Split(inner, outer, 2))
        inner = outer
    return nn.Sequential(*layers, *head(inner, classes))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


def _inverted(inner: int, outer: int, stride: int, expand: int = 4) -> nn.Module:
    wide = inner * expand
    body = nn.Sequential(
        _conv(inner, wide),
        _conv(wide, wide, 3, stride, groups=wide),
        SqueezeExcite(wide, max(8, wide // 8)),
        _conv(wide, outer, act=False),
    )
    return Residual(body, nn.Identity(), nn.Identity()) if stride == 1 and inner == outer else body


def inverted(classes: int) -> nn.Module:
    """Inverted residuals with squeeze-excite, expansion 4."""
    layers: list[nn.Module] = [_conv(3, 16, 3, 2)]
    inner = 16
    for outer, stride, depth in ((16, 1, 1), (24, 2, 2), (40, 2, 3), (80, 2, 2)):
        for block in range(depth):
            layers.append(_inverted(inner, outer, 1 if block else stride))
            inner = outer
    return nn.Sequential(*layers, _conv(inner, 192), *head(192, classes))


class _Normed(nn.Module):
    """A block without batch norm: depthwise, layer norm over the channels, two pointwise layers, layer scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(nn.functional.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


def normed(classes: int) -> nn.Module:
    """Depthwise convolutions, layer norms and wide pointwise layers, as in ConvNeXt. No batch norm anywhere."""
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 3, 2, 1), nn.GroupNorm(1, 24)]
    inner = 24
    for outer, depth in ((24, 1), (48, 2), (96, 2)):
        if outer != inner:
            layers += [nn.GroupNorm(1, inner), nn.Conv2d(inner, outer, 2, 2)]
            inner = outer
        layers += [_Normed(outer) for _ in range(depth)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(inner), nn.Linear(inner, classes))


def dense(classes: int) -> nn.Module:
    """Densely connected, growth 12, after a plain stem: every layer's output meets every later layer."""
    layers: list[nn.Module] = [_conv(3, 24, 3, 2)]
    inner = 24
    for stage in range(3):
        for _ in range(4):
            layers.append(_Grown(inner, 12))
            inner += 12
        if stage < 2:
            layers += [_conv(inner, inner // 2), nn.AvgPool2d(2)]
            inner //= 2
    return nn.Sequential(*layers, nn.BatchNorm2d(inner), nn.ReLU(), *head(inner, classes))


class _Grown(nn.Module):
    def __init__(self, inner: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inner)
        self.body = nn.Sequential(_conv(inner, 4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(torch.relu(self.norm(x)))], 1)


class _Grouped(nn.Module):
    """A bottleneck with group norms before its convolutions."""

    def __init__(self, inner: int, middle: int, outer: int, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b, kernel, step in ((inner, middle, 1, 1), (middle, middle, 3, stride), (middle, outer, 1, 1)):
            layers += [nn.GroupNorm(4, a), nn.ReLU(), nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False)]
        self.body = nn.Sequential(*layers)
        same = stride == 1 and inner == outer
        self.shortcut = nn.Identity() if same else nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


def grouped(classes: int) -> nn.Module:
    """Bottleneck residuals with group norms, as in Big Transfer."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1)]
    inner = 32
    for middle, outer, stride in ((24, 64, 1), (32, 96, 2), (48, 128, 2)):
        layers += [_Grouped(inner, middle, outer, stride), _Grouped(outer, middle, outer, 1)]
        inner = outer
    return nn.Sequential(*layers, nn.GroupNorm(4, inner), nn.ReLU(), *head(inner, classes))


def tokens(classes: int) -> nn.Module:
    """A transformer of torchvision: patches of 4 x 4, four layers of four heads of 16."""
    model = VisionTransformer(32, 4, 4, 4, 64, 128, num_classes=classes)
    nn.init.normal_(model.heads.head.weight, std=0.02)  # It begins at zero.
    return model


def plain(classes: int) -> nn.Module:
    """Convolutions in a row, halved by maxima, and two fully connected layers over all places, as in VGG."""
    layers: list[nn.Module] = []
    inner = 3
    for outer, depth in ((24, 1), (48, 1), (64, 2), (96, 2)):
        for _ in range(depth):
            layers.append(_conv(inner, outer, 3))
            inner = outer
        layers.append(nn.MaxPool2d(2))
    fully = [nn.Linear(4 * inner, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, classes)]
    return nn.Sequential(*layers, nn.Flatten(), *fully)


def cardinal(classes: int) -> nn.Module:
    """Bottlenecks around convolutions in groups of eight channels, with squeeze-excite, as in RegNetY and ResNeXt."""
    layers: list[nn.Module] = [_conv(3, 24, 3, 2)]
    inner = 24
    for outer, stride, depth in ((32, 1, 1), (64, 2, 2), (128, 2, 2)):
        for block in range(depth):
            step = 1 if block else stride
            body = nn.Sequential(
                _conv(inner, outer),
                _conv(outer, outer, 3, step, groups=outer // 8),
                SqueezeExcite(outer, max(8, inner // 4)),
                _conv(outer, outer, act=False),
            )
            same = step == 1 and inner == outer
            layers.append(Residual(body, nn.Identity() if same else _conv(inner, outer, 1, step, act=False), nn.ReLU()))
            inner = outer
    return nn.Sequential(*layers, *head(inner, classes))


class _Shuffled(nn.Module):
    """Half of the channels pass, half go through a depthwise body; then the halves are interleaved."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.stride, half = stride, outer // 2
        start = half if stride == 1 else inner
        self.right = nn.Sequential(
            _conv(start, half), _conv(half, half, 3, stride, groups=half, act=False), _conv(half, half)
        )
        self.left = (
            nn.Identity()
            if stride == 1
            else nn.Sequential(_conv(inner, inner, 3, stride, groups=inner, act=False), _conv(inner, half))
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.stride == 1 else (x, x)
        joined = torch.cat([self.left(left), self.right(right)], 1)
        batch, channels, height, width = joined.shape
        return joined.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(joined.shape)


def shuffled(classes: int) -> nn.Module:
    """Channel splits and shuffles, as in ShuffleNet V2."""
    layers: list[nn.Module] = [_conv(3, 24, 3, 2)]
    inner = 24
    for outer, stride, depth in ((48, 1, 1), (96, 2, 2), (192, 2, 2)):
        if stride == 1:
            layers.append(_conv(inner, outer))
            inner = outer
        for block in range(depth):
            layers.append(_Shuffled(inner, outer, 1 if block else stride))
            inner = outer
    return nn.Sequential(*layers, _conv(inner, 256), *head(256, classes))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "residual": residual,
    "concat": concat,
    "inverted": inverted,
    "dense": dense,
    "normed": normed,
    "grouped": grouped,
    "tokens": tokens,
    "plain": plain,
    "cardinal": cardinal,
    "shuffled": shuffled,
}

BY_NAME = ("grouped", "tokens")
"""Without batch norms, compared where they are asked for."""

HELD_BACK = ("dense", "normed", "plain", "cardinal", "shuffled")
"""Looked at once, after everything was decided."""
