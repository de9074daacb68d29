"""Structures that were frozen, or failed when they were rewritten, for no reason of their own: each at random widths
against its zeroed twin."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, equals_twin_closely, half_plan, random_plan, randomized, relative_error
from torch import nn
from torch.nn import functional as F

import halp_fx


def image(function, width=8, **layers):
    """`function` of 8 channels, or so many, and a classifier behind it."""
    model = Net(lambda s, x: s.head(function(s, s.stem(x).relu()).mean((2, 3))), stem=nn.Conv2d(3, 8, 1))
    model.head = nn.Linear(width, 4)
    for name, layer in layers.items():
        setattr(model, name, layer)
    return randomized(model).eval()


# Noise that is drawn in place.
def sampled_gates(s, x):
    logits = s.gate(x.mean((2, 3))).unflatten(1, (-1, 2))
    gates = F.gumbel_softmax(logits)[..., 0] if s.training else logits.softmax(-1)[..., 0]
    return x * gates[..., None, None]


def noisy(draw):
    return lambda s, x: x + draw(torch.empty_like(x)) if s.training else x


# Experts that a router picks.
def sparse_experts(s, x):
    tokens = x.flatten(2).transpose(1, 2).flatten(0, 1)
    weights, picked = s.router(tokens).softmax(-1).topk(1, -1)
    out = torch.zeros_like(tokens)
    for mask, expert in zip(F.one_hot(picked[:, 0], 3).unbind(-1), s.experts, strict=True):
        (rows,) = torch.where(mask)
        out.index_add_(0, rows, expert(tokens[rows]) * weights[rows])
    return (tokens + out).unflatten(0, (len(x), -1)).transpose(1, 2).unflatten(2, x.shape[2:])


# One attribute for the widths of several layers of a few channels each.
def non_local(s, x):
    key, query, value = (f(x).view(len(x), s.inner, -1) for f in (s.key, s.query, s.value))
    y = value @ (query.transpose(1, 2) @ key).softmax(-1).transpose(1, 2)
    return x + s.out(y.view(len(x), s.inner, *x.shape[2:]))


# Branches that are stacked, and weights for each of their channels.
def selected(s, x):
    branches = torch.stack([s.near(x), s.far(x)], 1)
    weights = s.weights(branches.sum(1).mean((2, 3))).unflatten(1, (2, -1)).softmax(1)
    return (branches * weights[..., None, None]).sum(1)


def selected_by_view(s, x):
    branches = torch.stack([s.near(x), s.far(x)])
    weights = s.weights(x.mean((2, 3))).view(len(x), 2, s.width).transpose(0, 1).sigmoid()
    return torch.einsum("nbchw,nbc->bchw", branches, weights)


# Rows that are written into a new tensor, whose other sizes are constants.
def by_rows(s, x):
    out = torch.zeros((len(x), x.shape[1], 2, 2), dtype=x.dtype)
    for size in (0, 1):
        rows = torch.arange(len(x))[size::2]
        out[rows] = F.adaptive_avg_pool2d(x[rows] * (size + 1), 2)
    return s.flat(out.flatten(1))[..., None, None]


# A part of the network has a literal width.
def states_of_a_cell(s, x):
    h = x.new_zeros(len(x), 6)
    for i in range(3):
        h = s.cell(x[:, :, i, i], h)
    return h[..., None, None]


def literal_parts(s, x):
    parts = s.split(x).view(len(x), 2, 6, 5, 5)
    weights = s.weights(parts.sum(1).mean((2, 3))).view(len(x), 2, 6, 1, 1).softmax(1)
    return (parts * weights).sum(1)


# A part of the channels that only says how large a tensor is to be.
def with_time(s, x):
    return s.conv(torch.cat([torch.full_like(x[:, :1], 0.3), x], 1)).relu()


def with_coordinates(s, x):
    rows = torch.zeros_like(x[:, -1]) + torch.linspace(0, 1, x.shape[2]).to(x)[:, None]
    return s.conv(torch.cat([x, rows[:, None]], 1)).relu() + 0 * torch.ones_like(x[:, 0, None]).cumsum(2)


# Parts that are read in another order than they lie in, whose widths an attribute has.
def parts_read_later(s, x):
    own, a, b, c = s.wide(x).split(s.parts, 1)
    return torch.cat([s.a(a), s.b(b), s.c(c), own], 1)


# Rows that a fixed number of directions have, repeated for every channel.
def directions(s, x):
    n, channels = x.shape[:2]
    both = torch.stack([x.flatten(2), x.flatten(2).flip(-1)], 1)
    wide = torch.einsum("nkdl,kcd->nkcl", both, s.rows).repeat_interleave(channels, 1).tanh()
    y = (both.flatten(1, 2)[:, :, None] * wide).sum(2)
    return y.view(n, 2, channels, *x.shape[2:]).sum(1)


def layers(**kinds):
    return lambda: {name: make() for name, make in kinds.items()}


def conv(a, b, kernel=1):
    return lambda: nn.Conv2d(a, b, kernel, padding=kernel // 2)


def linear(a, b):
    return lambda: nn.Linear(a, b)


def experts():
    return nn.ModuleList(nn.Sequential(nn.Linear(8, 5), nn.GELU(), nn.Linear(5, 8)) for _ in range(3))


EXPERTS = {f"experts.{i}.0": 5 for i in range(3)}
CASES = {
    "sampled gates": (sampled_gates, 8, layers(gate=linear(8, 16)), {"stem": 8}),
    "normal noise": (noisy(torch.Tensor.normal_), 8, layers(), {"stem": 8}),
    "uniform noise": (noisy(torch.Tensor.uniform_), 8, layers(), {"stem": 8}),
    "exponential noise": (noisy(lambda x: x.exponential_().log()), 8, layers(), {"stem": 8}),
    "log-normal noise": (noisy(lambda x: x.log_normal_(0, 0.1)), 8, layers(), {"stem": 8}),
    "sparse experts": (sparse_experts, 8, layers(router=linear(8, 3), experts=experts), {"stem": 8, **EXPERTS}),
    "non-local": (
        non_local,
        8,
        layers(key=conv(8, 4), query=conv(8, 4), value=conv(8, 4), out=conv(4, 8)),
        {"stem": 8, "key": 4},
    ),
    "selected": (
        selected,
        6,
        layers(near=conv(8, 6), far=conv(8, 6, 3), weights=linear(6, 12)),
        {"stem": 8, "near": 6},
    ),
    "selected by view": (
        selected_by_view,
        6,
        layers(near=conv(8, 6), far=conv(8, 6, 3), weights=linear(8, 12)),
        {"stem": 8, "near": 6},
    ),
    "states of a cell": (states_of_a_cell, 6, layers(cell=lambda: nn.GRUCell(8, 6)), {"stem": 8}),
    "with time": (with_time, 6, layers(conv=conv(9, 6)), {"stem": 8, "conv": 6}),
    "with coordinates": (with_coordinates, 6, layers(conv=conv(9, 6)), {"stem": 8, "conv": 6}),
    "parts read later": (
        parts_read_later,
        16,
        lambda: {
            **{name: nn.Conv2d(2, 2, 3, padding=1, groups=2) for name in "abc"},
            "wide": nn.Conv2d(8, 16, 1),
            "parts": (10, 2, 2, 2),
        },
        {"stem": 8, "wide": 10, "wide:1": 2},
    ),
    "directions": (
        directions,
        8,
        lambda: {"rows": nn.Parameter(torch.randn(2, 3, 8))},
        {"stem": 8, "rows:1": 3},
    ),
    "by rows": (by_rows, 7, layers(flat=linear(32, 7)), {"stem": 8, "flat": 7}),
}


@pytest.mark.parametrize("name", CASES)
def test_groups_and_twin(name):
    function, width, made, groups = CASES[name]
    torch.manual_seed(0)
    model, x = image(function, width, **made()), torch.randn(3, 3, 5, 5, dtype=torch.float64)
    model.inner, model.width = 4, 6
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == groups
    for seed in range(3):
        small, twin = equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
        with torch.no_grad():
            assert relative_error(twin(x), model(x)) > 1e-3
    small.train()(x).sum().backward()


def test_a_choice_that_leaves_less_than_freezing_is_not_taken():
    """Whole groups of the split layer, of which one is left, instead of positions: then nothing before it could go."""
    torch.manual_seed(0)
    split = nn.Conv2d(8, 12, 3, padding=1, groups=2)
    model, x = image(literal_parts, 6, split=split, weights=nn.Linear(6, 12)), torch.randn(3, 3, 5, 5).double()
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"stem": 4}
    assert "a constant in the forward" in coupling.frozen["split"]
    equals_twin_closely(model, half_plan(coupling), x, coupling)


def equally_wide(s, x):
    y = s.mix(x)
    return y * 2 if s.mix.in_channels == s.mix.out_channels else y


def wide_enough(s, x):
    y = s.mix(x)
    return y.sin() if s.mix.out_channels > 6 else y


def first_of(layer):
    return layer.out_channels >= 8


def by_a_helper(s, x):
    return s.mix(x).sin() if first_of(s.mix) else s.mix(x)


@pytest.mark.parametrize("function", [equally_wide, wide_enough, by_a_helper], ids=lambda f: f.__name__)
def test_a_forward_that_asks_layers_how_wide_they_are(function):
    """It may go another way in the pruned network: that is tried out beforehand."""

    class Asking(Net):
        def forward(self, x):
            return self.head(function(self, self.stem(x)).mean((2, 3)))

    torch.manual_seed(0)
    model = Asking(None, stem=nn.Conv2d(3, 8, 1), mix=nn.Conv2d(8, 8, 1), head=nn.Linear(8, 4))
    model, x = randomized(model).eval(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert "stem" in {g.name for g in coupling.prunable}
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)


class OfBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Linear(4, 5), nn.Linear(13, 3)

    def forward(self, batch, scale=1.0):
        image = self.a(batch["image"]).relu().mean((2, 3))
        return self.head(torch.cat([image, self.b(batch["more"]).relu()], 1)) * scale


@pytest.mark.parametrize("form", [lambda b: b, lambda b: (b,), lambda b: (b, {}), lambda b: (b, {"scale": 2.0})])
def test_a_dict_may_be_an_argument(form):
    """Where the forward has no keywords of these names, it cannot be meant for them."""
    model, batch = OfBatch().eval(), {"image": torch.rand(2, 3, 5, 5), "more": torch.rand(2, 4)}
    small = halp_fx.prune(model, 0.5, form(batch), latency="macs", round_to=1, progress=False)
    assert small.halp.met
    assert small(batch).shape == (2, 3)


def test_a_dict_of_keywords_stays_that():
    with pytest.raises(halp_fx.TraceError, match="unexpected keyword argument 'images'"):
        halp_fx.channel_groups(OfBatch().eval(), ({"image": torch.rand(2, 3, 5, 5)}, {"images": 1}))


class Placed(nn.Module):
    """A transformer of tokens with embeddings of rows and of columns side by side, as the demo of DETR has them."""

    def __init__(self):
        super().__init__()
        self.stem, self.layers, self.head = nn.Conv2d(3, 8, 1), nn.Transformer(8, 2, 1, 1, 6), nn.Linear(8, 4)
        self.rows, self.columns = (nn.Parameter(torch.rand(5, 4)) for _ in range(2))

    def forward(self, x):
        place = torch.cat([self.columns.repeat(5, 1, 1), self.rows[:, None].repeat(1, 5, 1)], -1).flatten(0, 1)
        tokens = place[:, None] + self.stem(x).flatten(2).permute(2, 0, 1)
        return self.head(self.layers(tokens, tokens)).mean(0)


def test_feed_forwards_go_beside_heads_that_stay():
    torch.manual_seed(0)
    model, x = randomized(Placed()).eval(), torch.randn(1, 3, 5, 5, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    hidden = [f"layers.{part}.layers.0.linear1" for part in ("encoder", "decoder")]
    assert {*hidden} <= {g.name for g in coupling.prunable}, coupling.frozen
    equals_twin_closely(model, random_plan(coupling), x, coupling)


def shuffled_halves(s, x):
    """Contiguous, whatever `x` is: what the last layer makes of it is laid out as its weights are."""
    left, right = s.stem(x).relu().chunk(2, 1)
    y = torch.cat([left, s.right(right)], 1).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return s.head(F.adaptive_avg_pool2d(s.last(y).relu(), 1).flatten(1))


def test_pooling_may_restate_strides():
    """Pooling to 1 x 1 is one more operator where images are channels last, and where one channel is left it is not."""
    layers = {"stem": nn.Conv2d(3, 8, 1), "right": nn.Conv2d(4, 4, 1), "last": nn.Conv2d(8, 16, 1)}
    model = randomized(Net(shuffled_halves, **layers, head=nn.Linear(16, 4))).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    coupling = halp_fx.channel_groups(model.eval(), x)
    assert {g.name: g.size for g in coupling.prunable} == {"stem": 4, "last": 16}
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
