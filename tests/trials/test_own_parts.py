"""A tensor that is cut into parts whose sizes attributes have: each part shrinks by itself."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_equals_twin, equals_twin_closely, half_plan, random_plan, randomized
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx.coupling.propagation import propagate
from halp_fx.coupling.rules.cuts import is_cut


class StateSpace(nn.Module):
    """Mamba-2: one layer for the gate, the input, two rows of states and a step size for every head."""

    def __init__(self, width, heads=4, each=6, states=5):
        super().__init__()
        self.heads, self.each, self.states = heads, each, states
        self.inner = heads * each
        self.wide = nn.Linear(width, 2 * self.inner + 2 * states + heads)
        self.decay, self.skip, self.bias = (nn.Parameter(torch.rand(heads)) for _ in range(3))
        self.norm, self.out = nn.LayerNorm(self.inner), nn.Linear(self.inner, width)

    def forward(self, u):
        b, n, _ = u.shape
        sizes = [self.inner, self.inner, self.states, self.states, self.heads]
        z, x, write, read, step = self.wide(u).split(sizes, -1)
        step = F.softplus(step + self.bias)
        x = x.view(b, n, self.heads, self.each)
        total = (-self.decay.exp() * step).cumsum(1)
        later = torch.ones(n, n, dtype=torch.bool).tril()[None, :, :, None]
        decay = (total[:, :, None] - total[:, None]).masked_fill(~later, -1e9).exp()
        y = torch.einsum("bln,bsn,blsh,bsh,bshp->blhp", read, write, decay, step, x) + x * self.skip[:, None]
        return self.out(self.norm(y.reshape(b, n, -1) * F.silu(z)))


class GatedConvolution(nn.Module):
    """MambaOut: a gate, channels that pass and channels that are convolved, by a tuple."""

    def __init__(self, width, hidden=12, convolved=4):
        super().__init__()
        self.wide, self.out = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        self.parts = (hidden, hidden - convolved, convolved)
        self.conv = nn.Conv1d(convolved, convolved, 3, padding=1, groups=convolved)

    def forward(self, x):
        gate, passed, c = torch.split(self.wide(x), self.parts, -1)
        c = self.conv(c.transpose(1, 2)).transpose(1, 2)
        return self.out(F.gelu(gate) * torch.cat([passed, c], -1))


class Recursive(nn.Module):
    """HorNet: a part is cut again, by the same list."""

    def __init__(self, width, order=3):
        super().__init__()
        self.dims = [width // 2 ** (order - 1 - i) for i in range(order)]
        total = sum(self.dims)
        self.wide, self.out = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 1)
        self.deep = nn.Conv1d(total, total, 3, padding=1, groups=total)
        self.steps = nn.ModuleList(nn.Conv1d(a, b, 1) for a, b in zip(self.dims, self.dims[1:], strict=False))

    def forward(self, x):
        first, rest = torch.split(self.wide(x.transpose(1, 2)), (self.dims[0], sum(self.dims)), 1)
        gates = torch.split(self.deep(rest), self.dims, 1)
        x = first * gates[0]
        for step, gate in zip(self.steps, gates[1:], strict=True):
            x = step(x) * gate
        return self.out(x).transpose(1, 2)


class Latent(nn.Module):
    """DeepSeek's attention: queries, keys and values of low rank, positions in a part that all heads share."""

    def __init__(self, width, heads=4, own=6, shared=4, value=6, low=10):
        super().__init__()
        self.heads, self.own, self.shared, self.value, self.low = heads, own, shared, value, low
        self.queries = nn.Linear(width, heads * (own + shared))
        self.down, self.norm = nn.Linear(width, low + shared), nn.LayerNorm(low)
        self.up, self.out = nn.Linear(low, heads * (own + value)), nn.Linear(heads * value, width)
        self.scale = (own + shared) ** -0.5

    def forward(self, x):
        b, n, _ = x.shape
        queries = self.queries(x).view(b, n, self.heads, -1)
        low, shared = self.down(x).split([self.low, self.shared], -1)
        both = self.up(self.norm(low)).view(b, n, self.heads, self.own + self.value)
        keys, values = both.split([self.own, self.value], -1)
        keys = torch.cat([keys, shared.unsqueeze(2).expand(-1, -1, self.heads, -1)], -1)
        scores = torch.einsum("bshd,bthd->bsht", queries, keys) * self.scale
        return self.out(torch.einsum("bsht,bthd->bshd", scores.softmax(-1), values).flatten(2))


class Fused(nn.Module):
    """PaLM: queries of all heads, a key and a value that they share, and two hidden layers, by one layer."""

    def __init__(self, width, heads=4, each=4, hidden=20):
        super().__init__()
        self.heads, self.scale = heads, each**-0.5
        self.parts = (heads * each, each, each, hidden, hidden)
        self.wide = nn.Linear(width, sum(self.parts), bias=False)
        self.out, self.down = nn.Linear(heads * each, width, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        q, k, v, up, gate = self.wide(x).split(self.parts, -1)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2) * self.scale
        scores = torch.einsum("bhid,bjd->bhij", q, k).softmax(-1)
        mixed = torch.einsum("bhij,bjd->bhid", scores, v).transpose(1, 2).flatten(2)
        return self.out(mixed) + self.down(F.silu(gate) * up)


class Sliced(nn.Module):
    """Dual paths: the first channels are added, the others are concatenated, by slices."""

    def __init__(self, width, added=10, joined=6):
        super().__init__()
        self.added = added
        self.wide, self.first = nn.Linear(width, added + joined), nn.Linear(width, added)
        self.out = nn.Linear(added + joined, width)

    def forward(self, x):
        y = self.wide(x)
        return self.out(torch.cat([self.first(x) + y[..., : self.added], y[..., self.added :].relu()], -1))


class Block(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.stem, self.head, self.inner = nn.Linear(3, 16), nn.Linear(16, 4), inner(16)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head((x + self.inner(x)).mean(1))


CASES = {
    "states": (StateSpace, {"stem": 16, "inner.wide": 4, "inner.wide:1": 5}),
    "convolved": (GatedConvolution, {"stem": 16, "inner.wide": 8, "inner.wide:1": 4}),
    "cut again": (Recursive, {"stem": 16, "inner.wide": 4, "inner.wide:1": 8, "inner.wide:2": 16}),
    "latent": (Latent, {"stem": 16, "inner.queries": 4, "inner.down": 10}),
    "fused": (Fused, {"stem": 16, "inner.wide": 4, "inner.wide:2": 20}),
    "sliced": (Sliced, {"stem": 16, "inner.wide": 10, "inner.wide:1": 6}),
}


@pytest.mark.parametrize("name", CASES)
def test_parts_shrink_each_by_itself(name):
    inner, widths = CASES[name]
    torch.manual_seed(0)
    model, x = randomized(Block(inner)).eval(), torch.randn(2, 7, 3).double()
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == widths
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
    small = assert_equals_twin(model, half_plan(coupling), x, coupling).eval()
    again = halp_fx.channel_groups(small, x)
    assert_equals_twin(small, half_plan(again, 1), x, again)


def test_parts_of_literal_sizes_keep_their_proportions():
    class Literal(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.wide, self.out = nn.Linear(width, 16), nn.Linear(16, width)

        def forward(self, x):
            y = self.wide(x)
            first, rest = y.split([y.shape[-1] // 4, y.shape[-1] // 4 * 3], -1)
            return self.out(torch.cat([rest, first], -1))

    model, x = randomized(Block(Literal)).eval(), torch.randn(2, 7, 3).double()
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"stem": 16, "inner.wide": 4}
    equals_twin_closely(model, half_plan(coupling), x, coupling)


@pytest.mark.parametrize("name", [*CASES])
@pytest.mark.parametrize("like", [True, False], ids=["like", "afresh"])
def test_parts_of_one_channel_are_pruned_again(name, like):
    """An axis of length 1 has no slots any more: what attributes follow counts it all the same."""
    torch.manual_seed(0)
    model, x = randomized(Block(CASES[name][0])).eval(), torch.randn(2, 7, 3).double()
    coupling = halp_fx.channel_groups(model, x)
    first = next(g.name for g in coupling.prunable if g.name != "stem")
    once = halp_fx.rewrite(model, {first: [0]}, x, coupling=coupling)
    again = halp_fx.channel_groups(once, x, like=coupling if like else None)
    assert "stem" in {g.name for g in again.prunable}
    for seed in range(2):
        equals_twin_closely(once, random_plan(again, seed), x, again)


def test_what_the_forward_makes_itself_holds_no_channels():
    """A mask of shifted windows is cut at attributes, too: that is not tried."""

    class Masked(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.sizes = (2, 5)
            self.wide, self.out = nn.Linear(width, 12), nn.Linear(12, width)

        def forward(self, x):
            label = x.new_zeros(x.shape[1])
            for number, piece in enumerate(label.split(self.sizes)):
                piece += number
            apart = (label[:, None] != label).to(x.dtype) * -10
            y = self.wide(x)
            return self.out((y @ y.transpose(1, 2) + apart).softmax(-1) @ y)

    x = torch.randn(2, 7, 3).double()
    traced = halp_fx.trace(randomized(Block(Masked)), x)
    cuts = [n for n in traced.graph.nodes if is_cut(n)]
    assert cuts
    assert not propagate(traced, (), {}).with_channels(cuts)
    traced = halp_fx.trace(randomized(Block(GatedConvolution)), x)
    cuts = [n for n in traced.graph.nodes if is_cut(n)]
    assert cuts
    assert propagate(traced, (), {}).with_channels(cuts) == cuts
