"""Structures of published networks, as their code writes them: what may shrink in them, at random widths against the
zeroed twin."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import assert_equals_twin, equals_twin_closely, half_plan, random_plan, randomized
from torch import nn
from torch.nn import functional as F

import halp_fx


class Wavelets(nn.Module):
    """Haar filters in buffers, depthwise both ways; the low pass of two sums is laid beside the rest (WTConv)."""

    def __init__(self, width=6):
        super().__init__()
        pairs = torch.tensor([[[1.0, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]) / 2
        self.register_buffer("there", pairs[:, None].repeat(width, 1, 1, 1))
        self.register_buffer("back", pairs[:, None].repeat(width, 1, 1, 1))
        self.stem, self.head = nn.Conv2d(3, width, 1), nn.Linear(width, 4)
        self.conv = nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width)
        self.scale = nn.Parameter(torch.rand(1, 4 * width, 1, 1))

    def forward(self, x):
        x = self.stem(x)
        b, c, h, w = x.shape
        bands = F.conv2d(x, self.there, stride=2, groups=c).reshape(b, c, 4, h // 2, w // 2)
        made = (self.conv(bands.reshape(b, c * 4, h // 2, w // 2)) * self.scale).reshape(bands.shape)
        low = made[:, :, 0] + bands[:, :, 0]
        made = torch.cat([low.unsqueeze(2), made[:, :, 1:4]], 2).reshape(b, c * 4, h // 2, w // 2)
        return self.head((x + F.conv_transpose2d(made, self.back, stride=2, groups=c)).relu().mean((2, 3)))


class Mixed(nn.Module):
    """A kernel for every image, mixed from experts, run as the groups of one convolution (CondConv)."""

    def __init__(self, inputs, outputs, size=3, experts=3):
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = inputs, outputs, size
        self.route = nn.Linear(inputs, experts)
        self.weight = nn.Parameter(torch.randn(experts, outputs, inputs, size, size) / 5)
        self.bias = nn.Parameter(torch.randn(experts, outputs))

    def forward(self, x):
        b, c, h, w = x.shape
        share = self.route(x.mean((2, 3))).sigmoid()
        kernel = (share[:, :, None, None, None, None] * self.weight[None]).sum(1)
        kernel = kernel.view(b * self.out_channels, self.in_channels, self.kernel_size, self.kernel_size)
        bias = (share[..., None] * self.bias).sum(1)
        y = F.conv2d(x.view(1, b * c, h, w), kernel, bias.view(-1), padding=self.kernel_size // 2, groups=b)
        return y.view(b, self.out_channels, y.shape[-2], y.shape[-1])


class Kernels(nn.Module):
    """The size of a kernel is a quarter of one layer's width, and of no other's."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 2, 1), Mixed(8, 16), Mixed(16, 12), Mixed(12, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.b(self.a(self.stem(x).relu()).relu()).relu()
        return self.head((x + self.c(x)).mean((2, 3)))


class Features(nn.Module):
    """Attention by random features, whose number goes into the scale (Performer)."""

    def __init__(self, width=16, heads=4, features=6):
        super().__init__()
        self.heads, self.each = heads, width // heads
        self.patch, self.head = nn.Conv2d(3, width, 4, 4), nn.Linear(width, 4)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("projection", torch.randn(features, self.each))

    def features(self, x):
        scale, share = x.shape[-1] ** -0.25, self.projection.shape[0] ** -0.5
        projection = self.projection.expand(x.shape[0], self.heads, -1, -1)
        seen = torch.einsum("...id,...jd->...ij", scale * x, projection)
        size = (x**2).sum(-1, keepdim=True) / 2 * scale**2
        return share * (torch.exp(seen - size - seen.amax(-1, keepdim=True).detach()) + 1e-4)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.each).permute(2, 0, 3, 1, 4)
        q, k = self.features(q), self.features(k)
        whole = 1 / torch.einsum("...nd,...d->...n", q, k.sum(-2))
        seen = torch.einsum("...nd,...ne->...de", k, v)
        out = torch.einsum("...de,...nd,...n->...ne", seen, q, whole)
        return self.head((x + self.out(out.transpose(1, 2).reshape(b, n, c))).mean(1))


class Cell(nn.Module):
    """States of one width, gates by pieces of three convolutions (PredRNN)."""

    def __init__(self, inputs, width):
        super().__init__()
        self.width = width
        self.x, self.h = nn.Conv2d(inputs, 3 * width, 3, padding=1), nn.Conv2d(width, 3 * width, 3, padding=1)
        self.m, self.last = nn.Conv2d(width, 2 * width, 3, padding=1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x, h, m):
        a, b, c = torch.split(self.x(x), self.width, 1)
        d, e, f = torch.split(self.h(h), self.width, 1)
        g, i = torch.split(self.m(m), self.width, 1)
        m = (a + d).sigmoid() * m + (b + g).tanh() * i.sigmoid()
        h = (e + a).tanh() * h
        return (c + f).sigmoid() * self.last(torch.cat([h, m], 1)).tanh(), m


class States(nn.Module):
    """States that are made by a list of widths, and frames of three colours, a divisor of each, in between."""

    def __init__(self, widths=(6, 6)):
        super().__init__()
        self.widths = list(widths)
        self.cells = nn.ModuleList([Cell(3, widths[0]), Cell(widths[0], widths[1])])
        self.frame, self.head = nn.Conv2d(widths[1], 3, 1), nn.Linear(3, 4)

    def forward(self, x):
        b, _, height, width = x.shape
        states = []
        for n in self.widths:
            zeros = torch.zeros([b, n, height, width]).to(x)
            states.append(zeros)
        memory = torch.zeros([b, self.widths[0], height, width]).to(x)
        frames = []
        for _ in range(3):
            inputs = x
            for i, cell in enumerate(self.cells):
                states[i], memory = cell(inputs, states[i], memory)
                inputs = states[i]
            frames.append(self.frame(inputs))
        return self.head(torch.stack(frames, 1).mean((1, 3, 4)))


EXPECTED = {
    "states": (States, {"cells.0.x": 6, "frame": 3}, {}),
    "wavelets": (Wavelets, {"stem": 6}, {}),
    "kernels": (Kernels, {"stem": 8, "a": 16, "b": 12, "a.route": 3, "b.route": 3, "c.route": 3}, {}),
    "random features": (Features, {"patch": 4, "projection": 6}, {}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_groups_and_twin(name):
    kind, groups, frozen = EXPECTED[name]
    torch.manual_seed(0)
    model, x = randomized(kind()).eval(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == groups, coupling.frozen
    assert {n: w for n, w in coupling.frozen.items() if n != "head"}.keys() == frozen.keys()
    assert all(words in coupling.frozen[n] for n, words in frozen.items())
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
    assert_equals_twin(model, half_plan(coupling), x, coupling)


class FewestOperations:
    """What opt_einsum does, for up to three tensors: the order in which they are multiplied with fewest operations."""

    @staticmethod
    def contract_path(equation, *operands, optimize):
        parts, _, result = equation.replace("...", "").partition("->")
        letters = [set(part) for part in parts.split(",")]
        shapes = [
            dict(zip(reversed(part), reversed(x.shape), strict=False))
            for part, x in zip(parts.split(","), operands, strict=True)
        ]
        sizes = {letter: size for shape in shapes for letter, size in shape.items()}

        def operations(pair):
            [last] = {0, 1, 2}.difference(pair)
            product = letters[pair[0]] | letters[pair[1]]
            left = product & (letters[last] | set(result)) | letters[last]
            return math.prod(sizes[n] for n in product) + math.prod(sizes[n] for n in left)

        return [min([(0, 1), (0, 2), (1, 2)], key=operations), (0, 1)], optimize


def test_widths_do_not_decide_the_order_of_sums_where_opt_einsum_is_installed(monkeypatch):
    einsum = torch.backends.opt_einsum.m
    for name, value in {"is_available": lambda: True, "get_opt_einsum": lambda: FewestOperations}.items():
        monkeypatch.setattr(einsum, name, value)
    for name, value in {"enabled": True, "strategy": "optimal"}.items():
        monkeypatch.setattr(einsum, name, value)
    test_groups_and_twin("random features")
    assert torch.backends.opt_einsum.enabled
    assert torch.backends.opt_einsum.strategy == "optimal"


def test_a_part_of_one_element_is_laid_beside_longer_ones():
    """Whole channels go: their first element lies beside the others of the same channel."""

    class Laid(nn.Module):
        def __init__(self, axis):
            super().__init__()
            self.axis, self.a, self.c = axis, nn.Conv2d(3, 24, 1), nn.Conv2d(24, 2, 1)

        def forward(self, x):
            y = self.a(x)
            y = y.unflatten(1, (y.shape[1] // 4, 4) if self.axis == 2 else (4, y.shape[1] // 4))
            first, rest = y.narrow(self.axis, 0, 1), y.narrow(self.axis, 1, 3)
            return self.c(torch.cat([first.cos(), rest], self.axis).flatten(1, 2))

    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for axis in (1, 2):
        model = randomized(Laid(axis)).eval()
        coupling = halp_fx.channel_groups(model, x)
        assert {g.name: g.size for g in coupling.prunable} == {"a": 6}
        for seed in range(3):
            equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
