"""Statistics over channels that are written in several operators, one of which has the number of channels: an RMS norm
as `F.normalize(x, dim=1) * g * x.shape[1] ** 0.5`, a mean as `x.sum(1) / x.shape[1]`."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from oracle import Net, assert_equals_twin, equals_twin_closely, half_plan, random_plan, randomized
from torch import nn
from torch.nn import functional as F

import halp_fx


class Between(nn.Module):
    """Something between two layers, with a gain of its own."""

    def __init__(self, function, width=16):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 8, 3), nn.Linear(8, 4)
        self.g = nn.Parameter(torch.ones(width, 1, 1))
        self.scale = width**0.5
        self.function = function

    def forward(self, x):
        return self.fc(self.second(self.function(self, self.first(x))).relu().mean((2, 3)))


def length(h, dim=1):
    return h.pow(2).sum(dim, keepdim=True).sqrt()


COUNTED = {
    "normalised, gain, root": lambda m, h: F.normalize(h, dim=1) * m.g * h.shape[1] ** 0.5,
    "root, gain": lambda m, h: F.normalize(h, dim=1) * (h.shape[1] ** 0.5) * m.g,
    "gain times root": lambda m, h: F.normalize(h, dim=1) * (m.g * math.sqrt(h.shape[1])),
    "normalised first": lambda m, h: m.g * (math.sqrt(len(m.g)) * F.normalize(h, dim=1)),
    "by the norm": lambda m, h: h / (h.norm(dim=1, keepdim=True) + 1e-6) * m.g * h.size(1) ** 0.5,
    "root of the mean": lambda m, h: h / (h.norm(dim=1, keepdim=True) * h.shape[1] ** -0.5).clamp(min=1e-6) * m.g,
    "divided": lambda m, h: h / (torch.linalg.vector_norm(h, dim=1, keepdim=True) / h.shape[1] ** 0.5) * m.g,
    "channels last": lambda m, h: (F.normalize(h.movedim(1, -1), dim=-1) * h.shape[1] ** 0.5).movedim(-1, 1) * m.g,
    "times a layer": lambda m, h: F.normalize(h * m.g, dim=1) * h.shape[1] ** 0.5,
    "all": lambda m, h: F.normalize(h, dim=(1, 2, 3)) * m.g * h[0].numel() ** 0.5,
    "sum": lambda m, h: h * (h.sum(1, keepdim=True) / h.shape[1]).sigmoid() * m.g,
    "sum by a share": lambda m, h: h * ((1 / h.shape[1]) * h.sum(1)).sigmoid()[:, None] * m.g,
    "sum of squares": lambda m, h: h * torch.rsqrt(h.pow(2).sum(1, keepdim=True) / h.shape[1] + 1e-5) * m.g,
    "sum of all": lambda m, h: h * m.g - h.sum((1, 2, 3), keepdim=True) / h[0].numel(),
    "unbiased variance": lambda m, h: h * m.g / ((h - h.mean(1, True)).square().sum(1, True) / (h.shape[1] - 1)).sqrt(),
    "by a share of it": lambda m, h: h * m.g * ((h**2).sum(1, True) * (1 / (h.shape[1] - 1)) + 1e-5).rsqrt(),
    "in place": lambda m, h: h * m.g * h.sum(1, keepdim=True).div_(h.shape[1]).sigmoid(),
}

NOT_COUNTED = {
    "another power": lambda m, h: F.normalize(h, dim=1) * m.g * h.shape[1],
    "sum by the root": lambda m, h: h * (h.sum(1, keepdim=True) / h.shape[1] ** 0.5).sigmoid(),
    "no norm": lambda m, h: h * m.g * h.shape[1] ** 0.5,
    "of another order": lambda m, h: F.normalize(h, p=1, dim=1) * m.g * h.shape[1] ** 0.5,
    "along positions": lambda m, h: F.normalize(h, dim=2) * m.g * h.shape[1] ** 0.5,
    "sum along positions": lambda m, h: h * (h.sum(2, keepdim=True) / h.shape[1]).sigmoid(),
    "less two": lambda m, h: h * m.g * ((h**2).sum(1, True) / (h.shape[1] - 2) + 1e-5).rsqrt(),
    "sum and more": lambda m, h: h * ((h.sum(1, keepdim=True) + h.amax(1, keepdim=True)) / h.shape[1]).sigmoid(),
}


def couple(function, kind=Between, sides=(16, 8)):
    """As many rows as there are channels, unless told."""
    torch.manual_seed(0)
    model, x = randomized(kind(function)).eval(), torch.randn(2, 3, *sides, dtype=torch.float64)
    return model, x, halp_fx.channel_groups(model, x)


@pytest.mark.parametrize("name", COUNTED)
def test_what_a_statistic_runs_over_is_counted(name):
    model, x, coupling = couple(COUNTED[name])
    assert "first" not in coupling.frozen, coupling.frozen
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
    plan = half_plan(coupling)
    small = assert_equals_twin(model, plan, x, coupling)
    # And once more: what was decided holds for the pruned network.
    again = halp_fx.channel_groups(small, x, like=coupling)
    assert "first" not in again.frozen
    equals_twin_closely(small.eval(), half_plan(again), x, again)


@pytest.mark.parametrize("name", NOT_COUNTED)
def test_other_numbers_freeze(name):
    _, _, coupling = couple(NOT_COUNTED[name])
    assert "a constant in the forward repeats its width" in coupling.frozen["first"]


def standardised(weight, gain, kind):
    """Rows of mean zero and length one, times a gain, as networks without norms have them (arXiv 2102.06171)."""
    (v, m), fan = torch.var_mean(weight, (1, 2, 3), keepdim=True, unbiased=kind == "unbiased"), weight[0].numel()
    return {
        "under the root": lambda: (weight - m) * torch.rsqrt(v * fan + 1e-4) * gain,
        "unbiased": lambda: (weight - m) * torch.rsqrt(v * fan + 1e-4) * gain,
        "held away from zero": lambda: (weight - m) * torch.rsqrt((v * fan).clamp(min=1e-4)) * gain,
        "after it": lambda: (weight - m) * torch.rsqrt(v + 1e-4) * (gain * fan**-0.5),
        "divided": lambda: gain * (weight - m) / (weight.std((1, 2, 3), keepdim=True) * fan**0.5 + 1e-4),
        "less one": lambda: (weight - m) / (v * (fan - 1)).sqrt() * gain,
    }[kind]()


class Standardised(nn.Conv2d):
    def __init__(self, *args, kind):
        super().__init__(*args)
        self.kind, self.gain = kind, nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x):
        return F.conv2d(x, standardised(self.weight, self.gain, self.kind), self.bias)


@pytest.mark.parametrize(
    "kind", ["under the root", "unbiased", "held away from zero", "after it", "divided", "less one"]
)
def test_the_number_of_inputs_of_a_standardised_weight_is_counted(kind):
    torch.manual_seed(0)
    layers = [Standardised(i, o, 3, kind=kind) for i, o in ((3, 16), (16, 12), (12, 8))]
    model = randomized(nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))).eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert not {"0", "1", "2"} & set(coupling.frozen), coupling.frozen
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)


def test_an_unbiased_variance_of_a_single_channel_is_refused():
    model, x, coupling = couple(COUNTED["unbiased variance"])
    with pytest.raises(halp_fx.RewriteError, match="is over a single element"):
        halp_fx.rewrite(model, {"first": [3]}, x, coupling=coupling)
    small = halp_fx.prune(model, 0.3, x, latency="macs", progress=False)
    assert small.first.out_channels > 1


class Rounded(nn.Module):
    """A layer whose weight and inputs are rounded in steps that are learnt, whose gradients are scaled by how many
    numbers there are (LSQ)."""

    def __init__(self, layer, scaled):
        super().__init__()
        self.layer, self.scaled = layer, scaled
        self.step, self.given = (nn.Parameter(torch.tensor(0.1)) for _ in range(2))

    def rounded(self, x, step):
        step = self.scaled(step, 1 / (7 * x.numel()) ** 0.5)
        x = (x / step).clamp(-8, 7)
        return ((x.round() - x).detach() + x) * step

    def forward(self, x):
        return F.linear(self.rounded(x, self.given), self.rounded(self.layer.weight, self.step), self.layer.bias)


def by_name(x, scale):
    scaled = x * scale
    return (x - scaled).detach() + scaled


SCALED = {
    "by name": by_name,
    "at once": lambda x, scale: (x - x * scale).detach() + x * scale,
    "the other way round": lambda x, scale: x * scale + (x - x * scale).detach(),
}
NOT_SCALED = {
    "another number": lambda x, scale: (x - x * scale).detach() + 2 * x * scale,
    "read elsewhere": lambda x, scale: by_name(x, scale) + (x * scale).square(),
    "less of another": lambda x, scale: (x - (x + 1) * scale).detach() + x * scale,
}


@pytest.mark.parametrize("name", [*SCALED, *NOT_SCALED])
def test_numbers_that_scale_gradients_alone(name):
    torch.manual_seed(0)
    function = {**SCALED, **NOT_SCALED}[name]
    layers = {n: Rounded(nn.Linear(i, o), function) for n, i, o in (("a", 12, 8), ("b", 8, 10), ("c", 10, 4))}
    model = randomized(Net(lambda s, x: s.c(s.b(s.a(x).relu()).relu()), **layers)).eval()
    x = torch.randn(3, 12, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == ({"a.layer": 8, "b.layer": 10} if name in SCALED else {})
    for seed in range(3 if name in SCALED else 0):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)


def test_a_number_that_does_not_follow_stays():
    """The root of the dense width as an attribute: so it is in the twin, too."""
    model, x, coupling = couple(lambda m, h: F.normalize(h, dim=1) * m.g * m.scale)
    small, twin = equals_twin_closely(model, half_plan(coupling), x, coupling)
    assert small.scale == twin.scale == 4.0


def test_equals_the_norm_of_pytorch():
    """Pruned alike, it is the network with `nn.RMSNorm` in its place."""
    model, x, coupling = couple(COUNTED["normalised, gain, root"])
    norm = nn.RMSNorm(16, eps=0.0).double()
    norm.weight.data = model.g.data.flatten()
    other = Between(lambda m, h: m.norm(h.movedim(1, -1)).movedim(-1, 1)).double().eval()
    other.load_state_dict(model.state_dict())
    del other.g
    other.norm = norm
    plan = half_plan(coupling)
    small, same = (halp_fx.rewrite(m, plan, x) for m in (model, other))
    torch.testing.assert_close(small(x), same(x), rtol=1e-9, atol=1e-9)


def test_blocks_of_several_widths_and_lines():
    class Norm(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.g = nn.Parameter(torch.ones(1, width, 1, 1))

        def forward(self, x):
            return F.normalize(x, dim=1) * self.g * (x.shape[1] ** 0.5)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            pairs = pairwise((3, 8, 12, 16))
            self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(i, o, 3), Norm(o), nn.SiLU()) for i, o in pairs))
            self.fc = nn.Linear(16, 4)

        def forward(self, x):
            x = self.blocks(x).mean((2, 3))
            return self.fc(F.normalize(x, dim=-1) * x.shape[-1] ** 0.5)

    torch.manual_seed(0)
    model, x = randomized(Net()).eval(), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"blocks.0.0": 8, "blocks.1.0": 12, "blocks.2.0": 16}
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
    small = halp_fx.prune(model, 0.5, x, latency="macs", progress=False)
    assert small.halp.measured <= 0.5 * small.halp.dense


GROUPS = {
    "mean": lambda h: h.mean(2),
    "largest": lambda h: h.amax(2),
    "sum": lambda h: h.sum(2),
    "spread": lambda h: h.std(2),
    "by number": lambda h: h.sum(2) / h.shape[2],
    "normed": lambda h: (F.normalize(h, dim=2) * h.cos()).sum(2),
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_fixed_number_of_groups_each_reduced_to_one_value(name):
    """Correlations of five groups of channels (GwcNet): the same positions of all groups go."""

    def forward(m, x):
        h = m.first(x)
        h = h * h.flip(3)
        return m.second(GROUPS[name](h.view(len(h), 5, -1, *h.shape[2:]))).mean((2, 3))

    torch.manual_seed(0)
    model = Net(forward, first=nn.Conv2d(3, 20, 3), second=nn.Conv2d(5, 4, 3))
    model, x = randomized(model).eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"first": 4}
    for seed in range(0 if name == "spread" else 3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
    assert_equals_twin(model, half_plan(coupling), x, coupling)


def test_sizes_of_the_first_filter():
    """`weight[0].numel()` takes no channel: outputs may go, though inputs, whose number is computed with, may not."""

    def forward(m, x):
        weight = m.second.weight
        return m.last(F.conv2d(m.first(x), weight / weight[0].numel() ** 0.5).relu().mean((2, 3)))

    torch.manual_seed(0)
    layers = {"first": nn.Conv2d(3, 8, 1), "second": nn.Conv2d(8, 12, 1, bias=False), "last": nn.Linear(12, 4)}
    model, x = randomized(Net(forward, **layers)).eval(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"second": 12}
    assert "a constant in the forward repeats its width" in coupling.frozen["first"]
    assert_equals_twin(model, half_plan(coupling), x, coupling)


class Attention(nn.Module):
    """Attention of a single head whose products are scaled by a number that the forward computes."""

    def __init__(self, scores, width=16):
        super().__init__()
        self.stem, self.q, self.k, self.v = nn.Conv2d(3, width, 1), *(nn.Conv2d(width, width, 1) for _ in range(3))
        self.out, self.head, self.scores = nn.Conv2d(width, width, 1), nn.Conv2d(width, 4, 1), scores

    def forward(self, x):
        x = self.stem(x)
        q, k, v = (layer(x).flatten(2).mT for layer in (self.q, self.k, self.v))
        y = self.scores(x, q, k, v).mT.unflatten(2, x.shape[2:])
        return self.head(x + self.out(y))


def scores(function):
    return lambda x, q, k, v: function(x, q, k).softmax(-1) @ v


SUMMED = {
    "of its own": lambda x, q, k, v: F.scaled_dot_product_attention(q, k, v),
    "product": scores(lambda x, q, k: (q @ k.mT) * int(q.shape[-1]) ** -0.5),
    "divided": scores(lambda x, q, k: (q @ k.mT) / math.sqrt(k.shape[2])),
    "a factor": scores(lambda x, q, k: (q * q.shape[-1] ** -0.5) @ k.mT),
    "both factors": scores(lambda x, q, k: (q / q.shape[-1] ** 0.25) @ (k / k.shape[-1] ** 0.25).mT),
    "einsum": scores(lambda x, q, k: torch.einsum("bid,bjd->bij", q / q.shape[-1] ** 0.5, k)),
    "a mean": scores(lambda x, q, k: torch.einsum("bid,bjd->bij", q, k) / q.shape[-1]),
    "by what the layers read": scores(lambda x, q, k: (q @ k.mT) * int(x.shape[1]) ** -0.5),
    "in place": scores(lambda x, q, k: (q @ k.mT).mul_(q.shape[-1] ** -0.5)),
}


def attention(function):
    return couple(function, Attention, (4, 4))


@pytest.mark.parametrize("name", SUMMED)
def test_the_number_of_a_scaled_product_counts_what_it_sums_over(name):
    model, x, coupling = attention(SUMMED[name])
    assert {g.name: g.size for g in coupling.prunable} == {"stem": 16, "q": 16, "v": 16}
    counted = "stem" if name == "by what the layers read" else "q"
    assert not next(g for g in coupling.groups if g.name == counted).zero_exact
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
    plan = half_plan(coupling)
    small = assert_equals_twin(model, plan, x, coupling)
    again = halp_fx.channel_groups(small, x, like=coupling)
    assert {"stem", "q"} <= {g.name for g in again.prunable}
    equals_twin_closely(small.eval(), half_plan(again), x, again)


@pytest.mark.parametrize("power", [0.5, -0.3])
def test_another_power_of_what_a_product_sums_over_freezes(power):
    _, _, coupling = attention(scores(lambda x, q, k: (q @ k.mT) * q.shape[-1] ** power))
    assert "a constant in the forward repeats its width" in coupling.frozen["q"]
    assert "stem" not in coupling.frozen


def test_a_number_that_is_the_same_at_all_widths_is_so_in_the_twin():
    _, _, coupling = attention(scores(lambda x, q, k: (q @ k.mT) * 16**-0.5))
    assert all(g.zero_exact for g in coupling.groups)
    assert "q" not in coupling.frozen


class Read(nn.Module):
    """The blocks of VQGAN and latent diffusion: sizes of the queries are those of keys and values, too."""

    def __init__(self, width=16):
        super().__init__()
        self.stem, self.q, self.k, self.v = nn.Conv2d(3, width, 1), *(nn.Conv2d(width, width, 1) for _ in range(3))
        self.out, self.head = nn.Conv2d(width, width, 1), nn.Conv2d(width, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        q, k, v = self.q(x), self.k(x), self.v(x)
        b, c, h, w = q.shape
        weights = torch.bmm(q.reshape(b, c, h * w).permute(0, 2, 1), k.reshape(b, c, h * w))
        weights = (weights * (int(c) ** -0.5)).softmax(2)
        y = torch.bmm(v.reshape(b, c, h * w), weights.permute(0, 2, 1)).reshape(b, c, h, w)
        return self.head(x + self.out(y))


@pytest.mark.parametrize("height", [4, 5])  # In the first as many positions as channels.
def test_sizes_of_one_tensor_that_are_given_to_others(height):
    torch.manual_seed(0)
    model, x = randomized(Read()).eval(), torch.randn(2, 3, height, 4, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"stem": 16, "q": 16}
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
