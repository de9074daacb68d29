"""Structures collected from what people build, a few of each kind: the groups that they have, each at random widths
against its zeroed twin, and the caller's network as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import Net, half_plan, random_plan, randomized, relative_error
from torch import nn
from torch.nn import functional as F

import halp_fx


def image(function, width=8, **layers):
    """A convolution, a function of it and of the layers, and a head."""
    head = nn.Linear(layers.pop("out", width), 3)
    stem = nn.Conv2d(2, width, 3, padding=1)
    model = Net(lambda s, x: s.head(function(s, F.relu(s.stem(x))).mean((2, 3))), stem=stem, head=head, **layers)
    return model, torch.randn(2, 2, 8, 8)


class Attention(nn.Module):
    """A residual attention over the four rows of its input, with queries, keys and values of so many heads."""

    def __init__(self, attend, heads=4, kept=4, width=16, **layers):
        super().__init__()
        self.attend, self.heads, self.kept, self.each = attend, heads, kept, width // heads
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.q, self.o = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = (nn.Linear(width, kept * self.each) for _ in range(2))
        for name, layer in layers.items():
            setattr(self, name, layer)

    def split(self, x, heads):
        return x.view(*x.shape[:2], heads, self.each).transpose(1, 2)

    def forward(self, x):
        x = self.stem(x)
        q, k, v = self.split(self.q(x), self.heads), self.split(self.k(x), self.kept), self.split(self.v(x), self.kept)
        y = self.attend(self, q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.o(y)).mean(1))


def attention(attend, **given):
    return Attention(attend, **given), torch.randn(2, 4, 5)


def softmax(q, k, v):
    return (0.3 * q @ k.mT).softmax(-1) @ v


def turned(table):
    """An attention with rotary embeddings: `table(self, x)` -> cosine and sine of (positions, head width)."""

    def attend(self, q, k, v):
        def turn(x):
            cos, sin = table(self, x)
            a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
            return x * cos + torch.cat([-b, a], -1) * sin

        return softmax(turn(q), turn(k), v)

    return attention(attend, cos=nn.Buffer(torch.randn(4, 4)), sin=nn.Buffer(torch.randn(4, 4)))


def computed_table(self, x):
    angles = torch.outer(torch.arange(x.shape[2]).to(x), torch.arange(x.shape[3]).to(x))
    return angles.cos(), angles.sin()


def as_complex(self, q, k, v):
    def turn(x):
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * torch.complex(self.cos, self.sin)).flatten(3)

    return softmax(turn(q), turn(k), v)


def weighted(weight, **parameters):
    """A convolution whose weight is computed from `v` (8, 8, 3, 3) and other parameters."""
    parameters = {"v": torch.randn(8, 8, 3, 3), **parameters}
    layers = {name: nn.Parameter(value) for name, value in parameters.items()}
    return image(lambda s, x: F.conv2d(x, weight(s), padding=1), **layers)


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def modulated(s, x):
    """As StyleGAN2 has it: weights scaled for every sample, and normalised."""
    n, c, h, w = x.shape
    weight = s.v * (s.style(x.mean((1, 2, 3))[:, None])[:, None, :, None, None] + 1)
    weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    return F.conv2d(x.reshape(1, n * c, h, w), weight.flatten(0, 1), padding=1, groups=n).view(n, -1, h, w)


def mixed_kernels(s, x):
    """Kernels mixed by weights that a layer computes, sample by sample."""
    kernels = torch.einsum("bn,noikl->boikl", s.gate(x.mean((2, 3))).softmax(-1), s.v)
    return torch.cat([F.conv2d(x[i : i + 1], kernels[i], padding=1) for i in range(len(x))])


def padded(s, x):
    """Two steps into wider stages, whose shortcuts are padded by as many channels as are missing."""
    for conv in (s.a, s.b):
        y = conv(x)
        x = F.relu(y + F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1])))
    return x


class Literally(nn.Module):
    """Shortcuts that are padded on both sides by numbers that nothing keeps in step."""

    def __init__(self):
        super().__init__()
        self.stem, self.a = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.inner, self.out, self.head = nn.Conv2d(16, 6, 1), nn.Conv2d(6, 16, 1), nn.Linear(16, 3)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(self.a(x) + F.pad(x, (0, 0, 0, 0, 4, 4)))
        return self.head((x + self.out(self.inner(x).relu())).mean((2, 3)))


def shifted(s, x):
    """Quarters of the channels move forward and backward in time (temporal shift)."""
    c = x.shape[1] // 4
    y = torch.zeros_like(x)
    y[:, :c, 1:] = x[:, :c, :-1]
    y[:, c : 2 * c, :-1] = x[:, c : 2 * c, 1:]
    y[:, 2 * c :] = x[:, 2 * c :]
    return s.conv(y)


def codes(s, x):
    """Residuals to learnt centres, normalised and laid side by side (NetVLAD)."""
    share = s.share(x).flatten(2).softmax(1)
    rest = x.flatten(2)[:, None] - s.centres[None, :, :, None]
    return s.last(F.normalize((rest * share[:, :, None]).sum(-1), dim=2).view(len(x), -1))[:, :, None, None]


def codes_in_turn(s, x):
    """The same, one centre after the other, written into what was made for them."""
    share, out = s.share(x).flatten(2).softmax(1), torch.zeros(len(x), 6, x.shape[1], dtype=x.dtype)
    for k in range(6):
        rest = (x.flatten(2) - s.centres[k, :, None]) * share[:, k : k + 1]
        out[:, k : k + 1] = rest.sum(-1)[:, None]
    return s.last(F.normalize(out, dim=2).view(len(x), -1))[:, :, None, None]


def graph_convolution(s, x):
    """Three products with learnt adjacencies, summed (ST-GCN)."""
    y = s.conv(x)
    n, c, h, w = y.shape
    return torch.einsum("nkchw,kwv->nchv", y.view(n, 3, c // 3, h, w), s.edges)


def over_tokens(s, x):
    """A gate from a layer over positions, with the channels behind (gMLP)."""
    a, b = s.both(x).flatten(2).chunk(2, 1)
    return (a * s.mix(b.mT).mT).unflatten(2, (8, 8))


def over_channels(s, x):
    """Attention by a kernel that slides over channels and columns (triplet attention)."""
    y = x.permute(0, 2, 1, 3)
    return x * s.mix(torch.cat([y.amax(1, True), y.mean(1, True)], 1)).sigmoid().permute(0, 2, 1, 3)


@torch.jit.script
def gated(x):
    return x * torch.sigmoid(x)


HEADS = {"stem": 16, "q": 4}
NORMED = {"stem": 8, "v": 8}
CASES = {
    "normalised weight": (
        lambda: weighted(lambda s: s.g * s.v / s.v.flatten(1).norm(dim=1).view(-1, 1, 1, 1), g=torch.rand(8, 1, 1, 1)),
        {"stem": 8, "g": 8},
    ),
    "normalised weight, by reciprocal": (
        lambda: weighted(lambda s: s.v * s.v.square().sum((1, 2, 3), keepdim=True).rsqrt()),
        NORMED,
    ),
    "gain over norm": (
        lambda: weighted(
            lambda s: s.v * (s.g / s.v.square().sum((1, 2, 3), keepdim=True).sqrt()), g=torch.rand(8, 1, 1, 1)
        ),
        NORMED,
    ),
    "normalised rows": (lambda: weighted(lambda s: F.normalize(s.v.flatten(1), dim=1).view_as(s.v)), NORMED),
    "learnt steps": (
        lambda: weighted(lambda s: Rounded.apply(s.v / s.step) * s.step, step=torch.rand(8, 1, 1, 1)),
        NORMED,
    ),
    "modulated convolution": (
        lambda: image(modulated, style=nn.Linear(1, 8), v=nn.Parameter(torch.randn(8, 8, 3, 3))),
        {"stem": 8, "v": 8},
    ),
    "mixed kernels": (
        lambda: image(mixed_kernels, 6, out=8, gate=nn.Linear(6, 3), v=nn.Parameter(torch.randn(3, 8, 6, 3, 3))),
        {"gate": 3, "v": 8},
    ),
    "padded shortcuts": (
        lambda: image(padded, 4, out=11, a=nn.Conv2d(4, 7, 3, padding=1), b=nn.Conv2d(7, 11, 3, padding=1)),
        {"stem": 4, "a": 3, "b": 4},
    ),
    "padded by literals": (lambda: (Literally(), torch.randn(2, 2, 8, 8)), {"stem": 8, "inner": 6}),
    "temporal shift": (lambda: image(shifted, 16, out=5, conv=nn.Conv2d(16, 5, 1)), {"stem": 4, "conv": 5}),
    "grouped queries": (
        lambda: attention(lambda s, q, *kv: softmax(q, *(t.repeat_interleave(2, 1) for t in kv)), kept=2),
        {"stem": 16, "q": 2},
    ),
    "grouped queries, expanded": (
        lambda: attention(
            lambda s, q, *kv: softmax(q, *(t[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for t in kv)), kept=2
        ),
        {"stem": 16, "q": 2},
    ),
    "one key for all": (lambda: attention(lambda s, q, k, v: softmax(q, k, v), kept=1), HEADS),
    "keys and values pooled alike for all heads": (
        lambda: attention(
            lambda s, q, *kv: softmax(q, *(s.pool(t.flatten(0, 1).mT).mT.unflatten(0, (-1, 4)) for t in kv)),
            pool=nn.Conv1d(4, 4, 3, padding=1, groups=4),
        ),
        {"stem": 16, "q": 4},
    ),
    "rotary, from a table": (lambda: turned(lambda s, x: (s.cos, s.sin)), HEADS),
    "rotary, computed": (lambda: turned(computed_table), HEADS),
    "rotary, complex": (
        lambda: attention(as_complex, cos=nn.Buffer(torch.randn(4, 2)), sin=nn.Buffer(torch.randn(4, 2))),
        HEADS,
    ),
    "normalised queries": (lambda: attention(lambda s, q, k, v: softmax(s.n(q), k, v), n=nn.LayerNorm(4)), HEADS),
    "a layer for all heads": (lambda: attention(lambda s, q, k, v: s.n(softmax(q, k, v)), n=nn.Linear(4, 4)), HEADS),
    "centres": (
        lambda: image(
            codes, out=4, share=nn.Conv2d(8, 6, 1), last=nn.Linear(48, 4), centres=nn.Parameter(torch.randn(6, 8))
        ),
        {"stem": 8, "last": 4},
    ),
    "centres in turn": (
        lambda: image(
            codes_in_turn,
            out=4,
            share=nn.Conv2d(8, 6, 1),
            last=nn.Linear(48, 4),
            centres=nn.Parameter(torch.randn(6, 8)),
        ),
        {"stem": 8, "last": 4},
    ),
    "directional derivative": (
        lambda: image(
            lambda s, x: sum(torch.func.jvp(s.inner, (x.mean((2, 3)),), (x.amax((2, 3)),)))[:, :, None, None],
            out=4,
            inner=nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)),
        ),
        {"stem": 8, "inner.0": 6, "inner.2": 4},
    ),
    "adjacencies": (
        lambda: image(graph_convolution, out=6, conv=nn.Conv2d(8, 18, 1), edges=nn.Parameter(torch.rand(3, 8, 8))),
        {"stem": 8, "conv": 6, "edges": 8},
    ),
    "layer over tokens": (
        lambda: image(over_tokens, out=6, both=nn.Conv2d(8, 12, 1), mix=nn.Conv1d(64, 64, 1)),
        {"stem": 8, "both": 6},
    ),
    "kernel over channels": (lambda: image(over_channels, mix=nn.Conv2d(2, 1, 3, padding=1)), {"stem": 8}),
    "norm of several dimensions": (lambda: image(lambda s, x: s.n(x), n=nn.LayerNorm([8, 8, 8])), {"stem": 8}),
    "rows against a table": (
        lambda: image(
            lambda s, x: x + (F.normalize(x.mean((2, 3)), dim=1) @ F.normalize(s.m, dim=1).T @ s.m)[:, :, None, None],
            m=nn.Parameter(torch.randn(5, 8)),
        ),
        {"stem": 8, "m": 5},
    ),
    "scripted function": (
        lambda: image(lambda s, x: gated(s.conv(x)), conv=nn.Conv2d(8, 8, 1)),
        {"stem": 8, "conv": 8},
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_groups_twin_and_caller(name):
    build, groups = CASES[name]
    torch.manual_seed(0)
    model, x = build()
    model, x = randomized(model).eval(), x.double()
    before = copy.deepcopy(model.state_dict())
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == groups, coupling.frozen
    thinnest = halp_fx.Plan({g.name: [g.size - 1] for g in coupling.prunable})
    with torch.no_grad():
        dense = model(x)
        for plan in (half_plan(coupling), *(random_plan(coupling, seed) for seed in range(2)), thinnest):
            small, twin = (f(model, plan, x, coupling=coupling) for f in (halp_fx.rewrite, halp_fx.zero))
            assert relative_error(small(x), twin(x)) <= 1e-9
        assert relative_error(dense, twin(x)) > 1e-9, "the plan changed nothing: the comparison proves nothing"
        assert torch.equal(model(x), dense)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_flattened_matrix_of_channels_is_a_square():
    def pairs(s, x):
        rows = x.flatten(2)
        return s.last((rows @ rows.mT).flatten(1))[:, :, None, None]

    model, x = image(pairs, 4, last=nn.Linear(16, 4))
    coupling = halp_fx.channel_groups(model, x)
    assert "lays the square of its width along one dimension" in coupling.frozen["stem"]
    assert [g.name for g in coupling.prunable] == ["last"]


@pytest.mark.parametrize("name", ["grouped queries", "one key for all"])
def test_pruned_to_a_budget(name):
    model, x = CASES[name][0]()
    small = halp_fx.prune(model.eval(), 0.5, x, latency="macs", progress=False)
    assert 0.35 < small.halp.measured / small.halp.dense <= 0.5
    assert small(x).shape == model(x).shape
