"""Weights that a forward computes from its parameters score as those of a plain network that has the computed ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import assert_equals_twin, half_plan
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import halp_fx
from halp_fx.coupling.branches import output_groups

WIDTH = 6


class Net(nn.Module):
    """conv, a layer under test, conv: `weight()` is what the layer under test multiplies by."""

    def __init__(self, norm=False):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, WIDTH, 3), nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, 4, 1)
        self.n = nn.BatchNorm2d(WIDTH) if norm else nn.Identity()
        self.build()

    def build(self):
        pass

    def weight(self):
        return self.b.weight

    def forward(self, x):
        x = F.conv2d(self.a(x).relu(), self.weight(), self.b.bias)
        return self.c(self.n(x).relu()).mean((2, 3))


class MaskFirst(Net):
    def build(self):
        self.b.register_buffer(
            "mask", (torch.arange(WIDTH) % 2).double().view(-1, 1, 1, 1).expand_as(self.b.weight).clone()
        )

    def weight(self):
        return self.b.mask * self.b.weight


class MaskLast(MaskFirst):
    def weight(self):
        return self.b.weight * self.b.mask


class NarrowMask(Net):
    """One number per output channel."""

    def build(self):
        self.register_buffer("keep", (torch.arange(WIDTH) % 2).double())

    def weight(self):
        return self.keep[:, None, None, None] * self.b.weight


class SeveralMasks(MaskFirst):
    def build(self):
        super().build()
        self.register_buffer(
            "other", (torch.arange(WIDTH) > 1).double().view(-1, 1, 1, 1).expand_as(self.b.weight).clone()
        )

    def weight(self):
        return self.other * (self.b.mask * self.b.weight)


class PlusZero(Net):
    def weight(self):
        return self.b.weight + 0


class Halved(Net):
    def weight(self):
        return 0.5 * self.b.weight.clone()


class Standardised(Net):
    def weight(self):
        w = self.b.weight
        return (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)


class Flattened(Net):
    """Standardised as a matrix and folded back."""

    def weight(self):
        w = self.b.weight.flatten(1)
        return ((w - w.mean(1, keepdim=True)) / w.norm(dim=1, keepdim=True)).view_as(self.b.weight)


class Lora(Net):
    def build(self):
        self.down = nn.Parameter(torch.randn(2, WIDTH))
        self.up = nn.Parameter(torch.randn(WIDTH, 2))

    def weight(self):
        return self.b.weight + (self.up @ self.down)[..., None, None]


class TwoBases(Net):
    def build(self):
        self.other = nn.Parameter(torch.randn(WIDTH, WIDTH, 1, 1))

    def weight(self):
        return self.other + self.b.weight


class Signed(Net):
    def weight(self):
        return torch.tanh(self.b.weight) * 2


FORMS = [
    MaskFirst,
    MaskLast,
    NarrowMask,
    SeveralMasks,
    PlusZero,
    Halved,
    Standardised,
    Flattened,
    Lora,
    TwoBases,
    Signed,
]


class Plain(Net):
    """The same network with the computed weight as its parameter."""


def batches():
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(4, 3, 6, 6, generator=generator).double(), torch.randint(4, (4,), generator=generator))
        for _ in range(2)
    ]


def both_scores(model, plain, group="b", plain_group="b"):
    """Scores of a network and of its plain twin, by magnitude and by data."""
    x = batches()[0][0]
    rows = []
    for net, name in ((model, group), (plain, plain_group)):
        coupling = halp_fx.channel_groups(net, x)
        own = next(
            g.name
            for g in coupling.prunable
            if any(m.role == "producer" and m.axis.tensor.startswith(name) for m in g.members)
        )
        scores = halp_fx.score(net, coupling), halp_fx.score(net, coupling, batches(), F.cross_entropy, "taylor")
        rows.append([s.scores[own] for s in scores])
    return zip(*rows, strict=True)


@pytest.mark.parametrize("form", FORMS)
def test_scored_as_the_weight_that_the_operator_gets(form):
    model = form().double()
    plain = Plain().double()
    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        plain.b.weight.copy_(model.weight())
    for got, want in both_scores(model, plain):
        assert want.max() > 0
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-9)


def _pruned(layer):
    prune.random_structured(layer, "weight", 0.5, dim=0)
    return prune.l1_unstructured(layer, "weight", 0.3)


WRAPPED = {
    "utils.prune": _pruned,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.parametrize("name", WRAPPED)
def test_parametrised_layers(name):
    def net():
        return nn.Sequential(
            nn.Conv2d(3, WIDTH, 1), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3), nn.ReLU(), nn.Conv2d(WIDTH, 4, 1),
            nn.Flatten(1), nn.Linear(4 * 16, 4),
        )  # fmt: skip

    model, plain = net().double(), net().double()
    plain.load_state_dict(model.state_dict())
    WRAPPED[name](model[2])
    model.eval()
    with torch.no_grad():
        model(batches()[0][0])
        plain[2].weight.copy_(model[2].weight)
    group = next(g.name for g in halp_fx.channel_groups(model, batches()[0][0]).prunable if g.name.startswith("2"))
    for got, want in both_scores(model, plain, group, "2"):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("form", [MaskFirst, MaskLast, NarrowMask])
@pytest.mark.parametrize("data", [False, True], ids=["magnitude", "taylor"])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
def test_masked_channels_go_first(form, data, norm):
    model = form(norm).double()
    with torch.no_grad():
        model.b.bias.fill_(0.7)  # A constant is left of a masked channel; it is no reason to keep it.
    arguments = {"data": batches(), "loss_fn": F.cross_entropy, "steps": 1, "min_keep": 1} if data else {}
    small = halp_fx.prune(
        model, 0.8, batches()[0][0], latency=halp_fx.MacsCost(), round_to=1, ignore=["a"], progress=False, **arguments
    )
    masked = {0, 2, 4}
    kept = set(small.halp.plan["b"])
    assert len(kept) < WIDTH
    assert masked - kept
    assert kept >= {1, 3, 5} or not kept & masked


class Functional(nn.Module):
    """Matrix products that take a masked weight transposed: square, so that its two dimensions are easily mistaken."""

    def __init__(self, copy):
        super().__init__()
        self.w = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.register_buffer("mask", (torch.arange(WIDTH) % 2).double()[:, None].expand(WIDTH, WIDTH).clone())
        self.a, self.c, self.copy = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 4), copy

    def forward(self, x):
        w = (self.mask * self.w).t()
        return self.c((self.a(x).relu() @ (w.contiguous() if self.copy else w)).relu())


@pytest.mark.parametrize("copy", [False, True], ids=["view", "copy"])
def test_transposed_masked_weight(copy):
    model = Functional(copy).double()
    x, y = torch.randn(8, 5).double(), torch.randint(4, (8,))
    coupling = halp_fx.channel_groups(model, x)
    taylor = halp_fx.score(model, coupling, [(x, y)], F.cross_entropy, "taylor").scores["w"]
    F.cross_entropy(model(x), y).backward()
    np.testing.assert_allclose(taylor, (model.w * model.w.grad).sum(1).abs().detach().numpy(), rtol=1e-5)
    norms = (model.mask * model.w).norm(dim=1).detach().numpy()
    np.testing.assert_allclose(halp_fx.score(model, coupling).scores["w"], norms / norms.mean(), rtol=1e-6)


class CentredGamma(nn.Module):
    """A norm whose scale is `1 + gamma`, gamma zero at first: its Taylor score is that of the scale."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 4)
        self.gamma = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x):
        x = self.a(x)
        return self.c(F.layer_norm(x, x.shape[-1:], 1 + self.gamma).relu())


def test_scale_of_a_norm_that_is_computed():
    model = CentredGamma().double()
    x, y = torch.randn(8, 5).double(), torch.randint(4, (8,))
    got = halp_fx.score(model, halp_fx.channel_groups(model, x), [(x, y)], F.cross_entropy, "taylor").scores["a"]
    F.cross_entropy(model(x), y).backward()
    np.testing.assert_allclose(got, model.gamma.grad.abs().numpy(), rtol=1e-5)
    assert got.min() > 0


def test_a_layer_that_runs_twice_counts_both_times():
    class Twice(MaskFirst):
        def forward(self, x):
            x = F.conv2d(self.a(x).relu(), self.weight(), self.b.bias).relu()
            return self.c(F.conv2d(x, self.weight(), self.b.bias).relu()).mean((2, 3))

    model = Twice().double()
    x, y = batches()[0]
    coupling = halp_fx.channel_groups(model, x)
    (name,) = (g.name for g in coupling.prunable)
    F.cross_entropy(model(x), y).backward()
    rows = [
        (model.a.weight, 1.0), (model.a.bias, 1.0), (model.b.weight, model.b.mask), (model.b.bias, 1.0)
    ]  # fmt: skip
    want = sum((w * m * w.grad).flatten(1).sum(1) if w.dim() > 1 else w * w.grad for w, m in rows)
    got = halp_fx.score(model, coupling, [(x, y)], F.cross_entropy, "taylor").scores[name]
    np.testing.assert_allclose(got, want.detach().abs().numpy(), rtol=1e-5)


def test_mask_that_is_a_plain_tensor():
    """Neither a parameter nor a buffer: it shrinks as these do."""
    model = Net().double()
    model.keep = torch.rand(WIDTH, WIDTH, 1, 1).double()
    model.weight = lambda: model.keep * model.b.weight
    x = batches()[0][0]
    coupling = halp_fx.channel_groups(model, x)
    assert "b" in {g.name for g in coupling.prunable}
    small = assert_equals_twin(model, half_plan(coupling), x, coupling)
    assert small.keep.shape[:2] == small.b.weight.shape[:2] != model.keep.shape[:2]


class MaskedConv(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.mask * self.weight, self.bias)


def test_branch_of_a_masked_layer_is_scored():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = MaskedConv(WIDTH, WIDTH, 1)
            self.conv.mask = nn.Buffer((torch.rand_like(self.conv.weight) > 0.3).float())

        def forward(self, x):
            return x + self.conv(x.relu())

    model = nn.Sequential(nn.Conv2d(3, WIDTH, 1), Block(), Block(), nn.Conv2d(WIDTH, 4, 1)).double()
    x = batches()[0][0]
    coupling = halp_fx.channel_groups(model, x)
    branches = halp_fx.find_branches(coupling)
    added = output_groups(branches.removable)
    assert len(added) == 2
    scores = halp_fx.score(model, replace(coupling, groups=(*coupling.groups, *added))).scores
    for branch, block in zip(added, (model[1], model[2]), strict=True):
        norms = (block.conv.mask * block.conv.weight).flatten(1).norm(dim=1).detach().numpy()
        np.testing.assert_allclose(scores[branch.name], norms / norms.mean(), rtol=1e-6)
