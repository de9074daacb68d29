"""Constants in a forward that repeat a width: mended where that can be shown to be right, frozen otherwise."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_equals_twin, half_plan, random_plan, randomized
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx.reporting.report import RewriteKind
from halp_fx.rewriting.verification import verify


class Net(nn.Module):
    """A stem, a function, a head; `numbers` become attributes."""

    def __init__(self, function, out=16, **numbers):
        super().__init__()
        self.function = function
        self.a, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(out, 2, 1)
        for name, value in numbers.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.c(self.function(self, self.a(x)))


class Attention(nn.Module):
    """Attention by hand. `sizes` gives heads and head dimension from the module and the width of its input."""

    def __init__(self, sizes, scaled=False, **numbers):
        super().__init__()
        self.sizes, self.scaled = sizes, scaled
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        for name, value in numbers.items():
            setattr(self, name, value)

    def forward(self, x):
        b, n, c = x.shape
        heads, each, total = self.sizes(self, c)
        q, k, v = self.qkv(x).view(b, n, 3, heads, each).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v) if self.scaled else (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(b, n, total))


class Transformer(nn.Module):
    def __init__(self, *args, depth=2, **kwargs):
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 16, 1), nn.Linear(16, 2)
        self.blocks = nn.ModuleList(Attention(*args, **kwargs) for _ in range(depth))

    def forward(self, x):
        x = self.a(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return self.c(x.mean(1))


def inputs():
    return torch.randn(2, 3, 4, 4, dtype=torch.float64)


def pruned(model, plans=3):
    """The coupling, after random plans were compared with their twins; and the model at half its widths."""
    x = inputs()
    coupling = halp_fx.channel_groups(model, x)
    for seed in range(plans):
        plan = random_plan(coupling, seed)
        small = halp_fx.rewrite(model, plan, x, coupling=coupling).eval()
        twin = halp_fx.zero(model, plan, x, coupling=coupling).eval()
        torch.testing.assert_close(small(x), twin(x), rtol=1e-9, atol=1e-9)
    return coupling, assert_equals_twin(model, half_plan(coupling), x, coupling)


def sizes(coupling):
    return {g.name: g.size for g in coupling.prunable}


LITERAL_GROUPS = {
    # A view with a literal on one side: the other side shrinks.
    "inner literal": (lambda s, y: y.view(*y.shape[:1], -1, 4, 4, 4).transpose(1, 2).flatten(1, 2), 4),
    "outer literal": (lambda s, y: y.view(*y.shape[:1], 4, -1, 4, 4).transpose(1, 2).flatten(1, 2), 4),
}


@pytest.mark.parametrize("name", LITERAL_GROUPS)
def test_the_other_choice_of_a_view(name):
    function, channels = LITERAL_GROUPS[name]
    coupling, small = pruned(randomized(Net(function)))
    assert sizes(coupling) == {"a": channels}
    assert small.a.out_channels == 8
    assert not coupling.mended


def test_literal_number_of_heads_leaves_the_head_dimension():
    coupling, small = pruned(randomized(Transformer(lambda s, c: (4, -1, 4 * (s.qkv.out_features // 12)))))
    assert {n: w for n, w in sizes(coupling).items() if "attn" in n or "qkv" in n}
    assert all(block.qkv.out_features == 24 for block in small.blocks)


CUTS = {
    "halves": (lambda s, y: y[:, : y.shape[1] // 2] * y[:, y.shape[1] // 2 :], 8, {"a": 8}),
    "quarter": (lambda s, y: y[:, : y.shape[1] // 4], 4, {"a": 4}),
    "quarter and rest": (
        lambda s, y: torch.cat([y[:, y.shape[1] // 4 :], y[:, : y.shape[1] // 4].relu()], 1),
        16,
        {"a": 4},
    ),
    "narrow": (lambda s, y: y.narrow(1, y.shape[1] // 2, y.shape[1] // 2), 8, {"a": 8}),
    "split": (lambda s, y: torch.mul(*torch.split(y, y.shape[1] // 2, 1)), 8, {"a": 8}),
    "unequal split": (
        lambda s, y: torch.cat(torch.split(y, [y.shape[1] // 4, y.shape[1] // 4 * 3], 1)[::-1], 1),
        16,
        {"a": 4},
    ),
    "every second": (lambda s, y: y[:, ::2] + y[:, 1::2], 8, {"a": 8}),
}


@pytest.mark.parametrize("name", CUTS)
def test_cuts_at_computed_positions_keep_their_proportions(name):
    function, out, expected = CUTS[name]
    coupling, _ = pruned(randomized(Net(function, out=out)))
    assert sizes(coupling) == expected
    assert not coupling.frozen.keys() - {"c"}


ATTRIBUTES = {
    "number": (lambda s, y: y.view(-1, s.width, 4, 4), {"width": 16}, {"a": 16}, {"width": 8}),
    "element of a tuple": (lambda s, y: y.view(-1, *s.size),
                           {"size": (16, 4, 4)}, {"a": 16}, {"size": (8, 4, 4)}),
    "twice the width": (lambda s, y: y.view(-1, s.twice // 2, 4, 4), {"twice": 32}, {"a": 16}, {"twice": 16}),
    "sizes of a split": (
        lambda s, y: torch.cat([p.relu() for p in torch.split(y, s.parts, 1)], 1),
        {"parts": [4, 12]},
        {"a": 4},
        {"parts": [2, 6]},
    ),
    "one number for two parts": (
        lambda s, y: torch.mul(*torch.split(y, [s.part, s.part], 1)),
        {"part": 8},
        {"a": 8},
        {"part": 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_that_repeat_a_width(name):
    function, numbers, expected, after = ATTRIBUTES[name]
    out = 8 if name == "one number for two parts" else 16
    model = randomized(Net(function, out=out, **numbers))
    coupling, small = pruned(model)
    assert sizes(coupling) == expected
    assert {n: getattr(small, n) for n in after} == after
    assert {n: getattr(model, n) for n in numbers} == numbers, "the original was changed"


def test_attention_with_attributes():
    model = randomized(
        Transformer(lambda s, c: (s.num_heads, s.head_dim, s.dim), True, num_heads=4, head_dim=4, dim=16)
    )
    coupling, small = pruned(model)
    assert sizes(coupling) == {"a": 16, "blocks.0.qkv": 4, "blocks.1.qkv": 4}
    assert [(b.num_heads, b.head_dim, b.dim) for b in small.blocks] == [(2, 4, 8)] * 2
    kind = RewriteKind.of(coupling)
    assert set(kind.mended) == {f"blocks.{i}.{name}" for i in (0, 1) for name in ("num_heads", "dim")}
    assert "changed with the widths" in str(kind)
    assert not kind.frozen


def test_sizes_computed_from_one_another_are_tied():
    """`c // num_heads` is the head dimension only if the width of the input follows the heads."""
    model = randomized(Transformer(lambda s, c: (s.num_heads, c // s.num_heads, c), True, num_heads=4))
    coupling, small = pruned(model)
    assert sizes(coupling) == {"a": 4}
    assert small.a.out_channels == 8
    assert [b.num_heads for b in small.blocks] == [2, 2]


def test_multihead_attention():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Conv2d(3, 16, 1), nn.Linear(16, 2)
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x):
            x = self.a(x).flatten(2).transpose(1, 2)
            return self.c((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))

    coupling, small = pruned(randomized(Encoder()))
    assert sizes(coupling) == {"a": 4}
    assert (small.attention.embed_dim, small.attention.num_heads) == (8, 2)


@pytest.mark.parametrize("order", [("width", "window"), ("window", "width")])
def test_a_number_that_equals_the_width_by_coincidence(order):
    """`window` is as large as the width, but cuts the image: it must stay."""

    def function(s, y):
        y = y.view(y.shape[0], s.width, *y.shape[2:])
        return F.pad(y, (0, s.window - y.shape[3], 0, 0)).unfold(3, s.window, s.window).mean((3, 4), keepdim=True)

    model = randomized(Net(lambda s, y: function(s, y)[..., 0], **dict.fromkeys(order, 16)))
    coupling, small = pruned(model)
    assert sizes(coupling) == {"a": 16}
    assert (small.width, small.window) == (8, 16)
    assert [str(e) for e in coupling.mended] == ["width"]


def test_coincidence_alone_freezes():
    """No attribute is to blame, though one has the right size."""
    coupling = halp_fx.channel_groups(randomized(Net(lambda s, y: y.view(-1, 16, 4, 4), window=16)), inputs())
    assert "a constant in the forward repeats its width" in coupling.frozen["a"]
    assert "test_constants.py" in coupling.frozen["a"]
    assert RewriteKind.of(coupling).frozen.keys() == {"a"}
    assert not coupling.mended


@pytest.mark.parametrize(
    "function",
    [lambda s, y: y[:, :4], lambda s, y: y.narrow(1, 4, 4), lambda s, y: y.split([4, 12], 1)[0]],
    ids=["slice", "narrow", "split"],
)
def test_literal_positions_freeze(function):
    coupling = halp_fx.channel_groups(randomized(Net(function, out=4)), inputs())
    assert "a constant in the forward repeats its width" in coupling.frozen["a"]
    assert not coupling.prunable


@pytest.mark.parametrize("like", [True, False], ids=["like", "afresh"])
def test_mends_survive_pruning_twice(like):
    x = inputs()
    model = randomized(
        Transformer(lambda s, c: (s.num_heads, s.head_dim, s.dim), True, num_heads=4, head_dim=4, dim=16)
    )
    coupling = halp_fx.channel_groups(model, x)
    once = halp_fx.rewrite(model, {"a": range(12), "blocks.0.qkv": [0, 1, 3]}, x, coupling=coupling)
    again = halp_fx.channel_groups(once, x, like=coupling if like else None)
    assert sizes(again) == {"a": 12, "blocks.0.qkv": 3, "blocks.1.qkv": 4}
    twice = assert_equals_twin(once, half_plan(again), x, again)
    assert [(b.num_heads, b.dim) for b in twice.blocks] == [(1, 4), (2, 8)]


def test_rewrite_kind_is_in_the_report():
    model = randomized(Net(ATTRIBUTES["number"][0], width=16))
    small = halp_fx.prune(model, 0.6, inputs(), latency=halp_fx.MacsCost(), progress=False)
    assert small.halp.rewrite_kind.mended == ("width",)
    assert "rewrite: 1 attribute changed with the widths (width)" in small.halp.summary()
    assert small.width == small.a.out_channels < 16


def test_index_by_a_buffer():
    """A table of biases, one column a head, looked up by a buffer: the heads shrink, the rows stay."""

    class Biased(Attention):
        def __init__(self):
            super().__init__(None)
            self.table = nn.Parameter(torch.randn(9, 4))
            self.register_buffer("index", torch.arange(256).reshape(16, 16) % 9)

        def forward(self, x):
            b, n, _ = x.shape
            q, k, v = self.qkv(x).view(b, n, 3, -1, 4).permute(2, 0, 3, 1, 4)
            bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1)
            return self.proj(((q @ k.transpose(-1, -2) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2))

    model = Transformer(None, depth=1)
    model.blocks[0] = Biased()
    coupling, small = pruned(randomized(model))
    assert sizes(coupling) == {"a": 16, "blocks.0.qkv": 4}
    assert small.blocks[0].table.shape == (9, 2)


def test_caches_that_a_forward_fills_are_given_back():
    model = Net(lambda s, y: s.cache.setdefault(str(y.device), y.new_ones(1)) * y, cache={})
    halp_fx.rewrite(model, {"a": range(8)}, inputs().float())
    assert model.cache == {}


def test_an_attribute_of_a_helper_that_does_not_run_itself():
    """Tags lead to it: the operator runs in the module around the helper."""
    helper = nn.Module()
    helper.shape = (4, 4, 16)
    model = randomized(Net(lambda s, y: y.view(-1, s.helper.shape[2], *s.helper.shape[:2]), helper=helper))
    coupling, small = pruned(model)
    assert sizes(coupling) == {"a": 16}
    assert small.helper.shape == (4, 4, 8)


def test_one_number_of_heads_for_two_widths():
    """Queries and values have heads of their own width; one attribute says how many there are."""

    class TwoWidths(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.v, self.proj, self.heads = nn.Linear(16, 24), nn.Linear(16, 32), nn.Linear(32, 16), 8

        def forward(self, x):
            q, v = (y.view(*x.shape[:2], self.heads, -1).transpose(1, 2) for y in (self.q(x), self.v(x)))
            mixed = (q @ q.transpose(-1, -2)).softmax(-1) @ v
            return self.proj(mixed.transpose(1, 2).flatten(2))

    model = Transformer(None, depth=1)
    model.blocks[0] = TwoWidths()
    coupling, small = pruned(randomized(model))
    assert sizes(coupling) == {"a": 16, "blocks.0.q": 8}
    assert (small.blocks[0].heads, small.blocks[0].q.out_features, small.blocks[0].v.out_features) == (4, 12, 16)


def test_a_single_head_and_several_at_one_line():
    """The width of a single head shrinks, and with it the scale, which counts it; of several whole ones go."""
    model = Transformer(lambda s, c: (s.heads, s.dim // s.heads, s.dim), True, heads=4, dim=16)
    model.blocks[0].heads = 1
    coupling, _ = pruned(randomized(model))
    assert sizes(coupling) == {"a": 16, "blocks.0.qkv": 16, "blocks.1.qkv": 4}


def test_no_trial_runs_twice(monkeypatch):
    made = []

    def counted(small, plan, coupling, *args, **kwargs):
        made.append((repr(coupling.decisions), tuple(sorted(coupling.frozen)), tuple(plan.values())))
        return verify(small, plan, coupling, *args, **kwargs)

    monkeypatch.setattr("halp_fx.trials.running.verify", counted)
    halp_fx.channel_groups(
        Transformer(lambda s, c: (s.num_heads, c // s.num_heads, c), True, num_heads=4).double(), inputs()
    )
    assert len(made) == len(set(made))
    assert len(made) <= 5


def test_batch_norm_of_nothing():
    """A detector that found no boxes: its layers couple as if it had."""
    norm = nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model = randomized(Net(lambda s, y: s.norm(y[:0]), out=4, norm=norm))
    coupling = halp_fx.channel_groups(model, inputs())
    assert {"norm.1.weight[0]", "norm.1.running_var[0]"} <= {
        str(m.axis) for g in coupling.prunable for m in g.members if g.name == "norm.0"
    }
    small = halp_fx.rewrite(model, half_plan(coupling), inputs(), coupling=coupling)
    assert small.norm[1].num_features == small.norm[0].out_channels == 4
    assert small.norm(torch.randn(1, small.a.out_channels, 2, 2).double()).shape[1] == small.c.in_channels


def test_einsum_with_heads_down_to_one():
    model = Transformer(None, depth=1)
    model.blocks[0] = Contracted()
    coupling, small = pruned(randomized(model))
    assert sizes(coupling) == {"a": 16, "blocks.0.qkv": 2}
    assert small.blocks[0].heads == 1


class Contracted(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(16, 48), nn.Linear(16, 16), 2

    def forward(self, x):
        q, k, v = (y.reshape(*x.shape[:2], self.heads, 8).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        weights = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
        return self.proj(torch.einsum("bhij,bhjd->bhid", weights, v).transpose(1, 2).flatten(2))
