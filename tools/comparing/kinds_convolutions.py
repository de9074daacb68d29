"""Kinds of network that are made of convolutions, for `comparing.kinds`: images of one channel, 16 x 16."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .networks import head


def layer(inner: int, outer: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    """A convolution, its batch norm."""
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer), *([nn.ReLU()] if act else []))


class Add(nn.Module):
    """`relu(body(x) + x)`."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + x)


def basic(width: int) -> Add:
    return Add(nn.Sequential(layer(width, width), layer(width, width, act=False)))


def stages() -> list[nn.Module]:
    """Two basic blocks behind strided layers."""
    return [layer(1, 24), layer(24, 32, stride=2), basic(32), layer(32, 64, stride=2), basic(64)]


def _vgg(norm: Callable[[int], list[nn.Module]]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    inner = 1
    for outer in (24, 48, 64):
        for _ in range(2):
            norms = norm(outer)
            layers += [nn.Conv2d(inner, outer, 3, padding=1, bias=not norms), *norms, nn.ReLU()]
            inner = outer
        layers.append(nn.MaxPool2d(2))
    return layers


class PlainVgg(nn.Sequential):
    """A row of convolutions without any norm, as the first VGG."""

    def __init__(self) -> None:
        super().__init__(*_vgg(lambda _: []), nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)


class GroupNormVgg(nn.Sequential):
    """A row of convolutions with group norms of eight groups."""

    def __init__(self) -> None:
        super().__init__(*_vgg(lambda width: [nn.GroupNorm(8, width)]), *head(64, 10))


class Ghost(nn.Module):
    """Half of the channels by a pointwise convolution, the other half from those by a depthwise one."""

    def __init__(self, inner: int, outer: int, act: bool = True) -> None:
        super().__init__()
        half = outer // 2
        self.made = layer(inner, half, 1, act=act)
        self.cheap = layer(half, half, groups=half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.made(x)
        return torch.cat([y, self.cheap(y)], 1)


class GhostBlock(nn.Module):
    """Two ghost layers, between them a strided depthwise one, and a shortcut."""

    def __init__(self, inner: int, wide: int, outer: int, stride: int) -> None:
        super().__init__()
        self.up = Ghost(inner, wide)
        self.spatial = layer(wide, wide, stride=stride, groups=wide, act=False) if stride > 1 else nn.Identity()
        self.down = Ghost(wide, outer, act=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inner != outer:
            spatial = layer(inner, inner, stride=stride, groups=inner, act=False)
            self.shortcut = nn.Sequential(spatial, layer(inner, outer, 1, act=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.spatial(self.up(x))) + self.shortcut(x)


class GhostNet(nn.Sequential):
    """Ghost layers (arXiv 1911.11907): channels that are computed from others are concatenated with them."""

    def __init__(self) -> None:
        super().__init__(
            layer(1, 24),
            GhostBlock(24, 72, 24, 1),
            GhostBlock(24, 96, 40, 2),
            GhostBlock(40, 160, 64, 2),
            layer(64, 128, 1),
            *head(128, 10),
        )


class Prototypes(nn.Module):
    """Basic blocks that put out an embedding, trained by distances to the means of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*stages(), *head(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class Embedding(Prototypes):
    """Basic blocks that put out an embedding of length 1, trained by a contrastive loss."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x), dim=1)


class TwoTasks(nn.Module):
    """A trunk and two heads: which digit, and where it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(layer(1, 24), layer(24, 32, stride=2), layer(32, 48))
        self.which = nn.Sequential(layer(48, 64, stride=2), layer(64, 64), *head(64, 10))
        self.where = nn.Sequential(
            layer(48, 32, stride=2), nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 4)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return self.which(x), self.where(x)


class Autoencoder(nn.Sequential):
    """Convolutions down to 48 numbers and transposed ones up again, without norms."""

    def __init__(self) -> None:
        down = [nn.Conv2d(1, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 48, 3, 2, 1), nn.ReLU(), nn.Flatten()]
        code = [nn.Linear(768, 48), nn.ReLU(), nn.Linear(48, 768), nn.Unflatten(1, (48, 4, 4)), nn.ReLU()]
        up = [nn.ConvTranspose2d(48, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 24, 4, 2, 1), nn.ReLU()]
        super().__init__(*down, *code, *up, nn.Conv2d(24, 1, 3, padding=1))


class Parallel(nn.Module):
    """A convolution of 3 x 3, one of 1 x 1 and, where it fits, the input alone, each with a batch norm, added."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.wide, self.narrow = (layer(inner, outer, kernel, stride, act=False) for kernel in (3, 1))
        self.same = nn.BatchNorm2d(inner) if stride == 1 and inner == outer else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x) + self.narrow(x)
        return torch.relu(y if self.same is None else y + self.same(x))


class RepVgg(nn.Sequential):
    """Parallel branches that are folded for inference (arXiv 2101.03697), before they are."""

    def __init__(self) -> None:
        widths = [(1, 24), (24, 32, 2), (32, 32), (32, 32), (32, 64, 2), (64, 64), (64, 64)]
        super().__init__(*(Parallel(*width) for width in widths), *head(64, 10))


class Deep(nn.Sequential):
    """Twenty basic blocks of 8 to 16 channels."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        inner = 1
        for width, blocks in ((8, 10), (12, 5), (16, 5)):
            layers += [layer(inner, width, stride=1 if inner == 1 else 2), *(basic(width) for _ in range(blocks))]
            inner = width
        super().__init__(*layers, *head(16, 10))


class Blocks(nn.Sequential):
    """Basic blocks, trained in batches of eight: statistics of batch norms are noisy."""

    def __init__(self) -> None:
        super().__init__(*stages(), *head(64, 10))


class Pyramid(nn.Module):
    """A feature pyramid (arXiv 1612.03144): levels of three sizes, enlarged and added, a class for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = layer(1, 16)
        self.second = nn.Sequential(layer(16, 32, stride=2), layer(32, 32))
        self.third = nn.Sequential(layer(32, 64, stride=2), layer(64, 64))
        self.lateral = nn.ModuleList(nn.Conv2d(width, 24, 1) for width in (16, 32, 64))
        self.out = nn.Sequential(layer(24, 24), nn.Conv2d(24, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        large = self.first(x)
        middle = self.second(large)
        small = self.lateral[2](self.third(middle))
        middle = self.lateral[1](middle) + F.interpolate(small, scale_factor=2.0)
        return self.out(self.lateral[0](large) + F.interpolate(middle, scale_factor=2.0))


class Standardised(nn.Conv2d):
    """Its weights are standardised in the forward, and multiplied by a gain."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        scale = torch.rsqrt(variance * self.weight[0].numel() + 1e-4)
        weight = (self.weight - mean) * scale * self.gain
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class UnnormedBottleneck(nn.Module):
    """A bottleneck residual without norms, which scales what it is given and what it adds."""

    def __init__(self, inner: int, outer: int, stride: int = 1, beta: float = 1.0) -> None:
        super().__init__()
        half = outer // 2
        self.alpha, self.beta = 0.2, beta
        self.down, self.spatial = Standardised(inner, half, 1), Standardised(half, half, 3, stride, 1)
        self.up = Standardised(half, outer, 1)
        self.shortcut = Standardised(inner, outer, 1, stride) if stride > 1 or inner != outer else None
        self.skip = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x * self.beta) * 1.7
        beside = x if self.shortcut is None else self.shortcut(y)
        y = self.spatial(torch.relu(self.down(y)) * 1.7)
        return beside + self.up(torch.relu(y) * 1.7) * self.alpha * self.skip


class NormaliserFree(nn.Sequential):
    """No norms, but standardised weights and scaled residuals (arXiv 2102.06171)."""

    def __init__(self) -> None:
        super().__init__(
            Standardised(1, 32, 3, 1, 1),
            UnnormedBottleneck(32, 64, 2),
            UnnormedBottleneck(64, 64, beta=0.95),
            UnnormedBottleneck(64, 64, beta=0.9),
            UnnormedBottleneck(64, 96, 2),
            UnnormedBottleneck(96, 96, beta=0.95),
            nn.ReLU(),
            *head(96, 10),
        )


def _along(inner: int, outer: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv1d(inner, outer, kernel, stride, dilation * (kernel // 2), dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm1d(outer), nn.ReLU())


class Sequences(nn.Sequential):
    """Convolutions along a sequence, with a dilated residual."""

    def __init__(self) -> None:
        layers = [_along(2, 32, 9), _along(32, 48, 7, 2), _along(48, 64, 5), _along(64, 64, 5, 2)]
        block = Add(nn.Sequential(_along(64, 64, 3), _along(64, 64, 3, 1, 2)))
        super().__init__(*layers, block, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 24))


class SharedWeights(nn.Module):
    """Two convolutions that are each applied three times, with norms of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(layer(1, 24), layer(24, 40, stride=2))
        self.first = nn.Conv2d(40, 40, 3, padding=1, bias=False)
        self.first_norms = nn.ModuleList(nn.BatchNorm2d(40) for _ in range(3))
        self.between = layer(40, 64, stride=2)
        self.second = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.second_norms = nn.ModuleList(nn.BatchNorm2d(64) for _ in range(3))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm in self.first_norms:
            x = torch.relu(x + norm(self.first(x)))
        x = self.between(x)
        for norm in self.second_norms:
            x = torch.relu(x + norm(self.second(x)))
        return self.head(x.mean((2, 3)))


class ConvGru(nn.Module):
    """A recurrent unit of convolutions, over three overlapping parts of the image from left to right."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU())
        self.gates = nn.Conv2d(32 + width, 2 * width, 3, padding=1)
        self.new = nn.Conv2d(32 + width, width, 3, padding=1)
        self.out = nn.Sequential(nn.Conv2d(width, 64, 3, 2, 1), nn.ReLU(), *head(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        state = torch.zeros_like(x[:, :, :, :4]).mean(1, keepdim=True).expand(-1, self.width, -1, -1)
        for part in (x[..., 0:4], x[..., 2:6], x[..., 4:8]):
            update, reset = torch.sigmoid(self.gates(torch.cat([part, state], 1))).chunk(2, 1)
            new = torch.tanh(self.new(torch.cat([part, reset * state], 1)))
            state = (1 - update) * new + update * state
        return self.out(state)


class TinyHead(nn.Sequential):
    """Twelve numbers for forty classes: a narrow bottleneck before the head."""

    def __init__(self) -> None:
        super().__init__(
            layer(1, 16),
            layer(16, 32, stride=2),
            basic(32),
            layer(32, 64, stride=2),
            nn.Flatten(),
            nn.Linear(1024, 12, bias=False),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Linear(12, 40),
        )
