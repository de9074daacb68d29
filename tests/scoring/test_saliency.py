"""score against a float64 reference written out by hand, and bad data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx import SaliencyError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.bn_b = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c, self.fc = nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, x):
        x = self.bn_a(self.a(x)).relu()
        x = x + self.bn_b(self.b(x))
        return self.fc(self.c(x).relu().mean((2, 3)))


@pytest.fixture
def setting():
    model = Net().double().train()
    batches = [(torch.randn(5, 3, 6, 6).double(), torch.randint(4, (5,))) for _ in range(3)]
    return model, halp_fx.channel_groups(model, batches[0][0]), batches


def test_taylor_is_the_formula(setting):
    model, coupling, batches = setting
    got = halp_fx.score(model, coupling, batches, F.cross_entropy, "taylor")
    want = {"a": np.zeros(8), "c": np.zeros(6)}
    model.eval()
    for x, y in batches:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        residual = sum(bn.weight.grad * bn.weight + bn.bias.grad * bn.bias for bn in (model.bn_a, model.bn_b))
        want["a"] += residual.abs().detach().numpy() / 3
        plain = (model.c.weight.grad * model.c.weight).sum((1, 2, 3)) + model.c.bias.grad * model.c.bias
        want["c"] += plain.abs().detach().numpy() / 3
    assert got.scores.keys() == want.keys()
    for name, expected in want.items():
        np.testing.assert_allclose(got.scores[name], expected, rtol=1e-5)
    assert (got.kind, got.batches, got.skipped) == ("taylor", 3, 0)


def test_model_stays_as_it_is(setting):
    model, coupling, batches = setting
    model.a.weight.grad = torch.ones_like(model.a.weight)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    halp_fx.score(model, coupling, batches, F.cross_entropy, "taylor")
    assert model.training
    assert model.b.weight.grad is None
    assert torch.equal(model.a.weight.grad, torch.ones_like(model.a.weight))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_frozen_parameters_are_scored_too(setting):
    model, coupling, batches = setting
    before = halp_fx.score(model, coupling, batches, F.cross_entropy, "taylor")
    model.requires_grad_(False)
    after = halp_fx.score(model, coupling, batches, F.cross_entropy, "taylor")
    np.testing.assert_allclose(after.scores["a"], before.scores["a"])
    assert not any(p.requires_grad for p in model.parameters())


def test_magnitude_without_data(setting):
    model, coupling, _ = setting
    got = halp_fx.score(model, coupling)
    assert got.kind == "magnitude"
    norms = torch.sqrt((model.a.weight**2).sum((1, 2, 3)) + (model.b.weight**2).sum((1, 2, 3))).detach().numpy()
    np.testing.assert_allclose(got.scores["a"], norms / norms.mean(), rtol=1e-6)


def test_a_head_is_worth_as_many_neurons_as_it_has_slots():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.qkv, self.out = 4, nn.Linear(16, 96), nn.Linear(32, 16)
            self.mlp = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 16))

        def forward(self, x):
            q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.mlp(self.out(y))

    coupling = halp_fx.channel_groups(Attention(), torch.rand(1, 5, 16))
    got = halp_fx.score(Attention(), coupling).scores
    assert {name: round(float(s.mean())) for name, s in got.items()} == {"qkv": 24, "out": 1, "mlp.0": 1}


def test_custom_importance(setting):
    model, coupling, _ = setting
    got = halp_fx.score(model, coupling, importance=lambda g: torch.arange(g.size))
    np.testing.assert_array_equal(got.scores["c"], np.arange(6))
    for bad in (lambda g: [1.0], lambda g: [float("nan")] * g.size, lambda g: [-1.0] * g.size):
        with pytest.raises(SaliencyError, match="'a'"):
            halp_fx.score(model, coupling, importance=bad)


def test_non_finite_batches_are_skipped_and_counted(setting):
    model, coupling, batches = setting
    bad = (torch.full_like(batches[0][0], float("nan")), batches[0][1])
    clean = halp_fx.score(model, coupling, batches, F.cross_entropy, "taylor")
    mixed = halp_fx.score(model, coupling, [bad, *batches], F.cross_entropy, "taylor")
    assert (mixed.batches, mixed.skipped) == (3, 1)
    np.testing.assert_array_equal(mixed.scores["a"], clean.scores["a"])
    with pytest.raises(SaliencyError, match="all 2 batches"):
        halp_fx.score(model, coupling, [bad, bad], F.cross_entropy)


@pytest.mark.parametrize(
    ("data", "loss_fn", "words"),
    [
        ([], F.cross_entropy, "no batches"),
        ([torch.zeros(1)], F.cross_entropy, r"\(input, target\)"),
        ([(torch.zeros(1, 3, 6, 6).double(), torch.zeros(1, dtype=torch.long))], lambda o, t: o, "scalar"),
        (None, F.cross_entropy, "loss_fn without data"),
        ([], None, "'taylor' needs loss_fn"),
    ],
    ids=["empty", "no pair", "no scalar", "no data", "no loss"],
)
def test_bad_data(setting, data, loss_fn, words):
    model, coupling, _ = setting
    with pytest.raises(SaliencyError, match=words):
        halp_fx.score(model, coupling, data, loss_fn, "taylor")


class Held(nn.Module):
    """Statistics of a batch norm as parameters that are not trained (MAML)."""

    def __init__(self, plain):
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.w, self.b = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        for name, value in (("mean", torch.linspace(-1, 1, 8)), ("var", torch.linspace(1, 2, 8))):
            if plain:
                self.register_buffer(name, value)
            else:
                setattr(self, name, nn.Parameter(value, requires_grad=False))

    def forward(self, x):
        return self.fc(F.batch_norm(self.a(x), self.mean, self.var, self.w, self.b).relu().mean((2, 3)))


@pytest.mark.parametrize("importance", ["taylor", "fisher", "batches"])
def test_statistics_that_are_parameters_score_as_buffers_do(importance):
    found = []
    for plain in (True, False):
        torch.manual_seed(0)
        model = Held(plain).double()
        batches = [(torch.randn(5, 3, 6, 6).double(), torch.randint(4, (5,))) for _ in range(3)]
        coupling = halp_fx.channel_groups(model, batches[0][0])
        found.append(halp_fx.score(model, coupling, batches, F.cross_entropy, importance).scores["a"])
        assert all(p.grad is None for p in model.parameters())
    np.testing.assert_allclose(*found, rtol=1e-9)
