"""Values by the Fisher information: gates against weights, sets against brute force, and what prune makes of them."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import halp_fx
from halp_fx import SaliencyError
from halp_fx.latency import MacsCost
from halp_fx.scoring.gates import Gates
from halp_fx.scoring.sampled import Sampled, samples_of
from halp_fx.scoring.sets import elimination

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 4


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.n1 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.b, self.n2 = nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = F.hardswish(self.n0(self.stem(x)), inplace=True)
        y = self.n2(self.b(F.relu(self.n1(self.a(x)), inplace=True)))
        return self.fc(F.relu_(x + y).mean((2, 3)))


class Twice(nn.Module):
    """A layer that runs twice, no norm, a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.same, self.up = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(8, 6, 2, 2)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = self.same(self.same(self.stem(x)).relu_()).sigmoid()
        return self.fc(self.up(x).relu_().mean((2, 3)))


class Tokens(nn.Module):
    """Layer norm, linear layers over places, a product of two branches."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.up, self.gate, self.down, self.fc = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        y = self.norm(x)
        return self.fc((x + self.down(self.up(y) * self.gate(y).sigmoid())).mean(1))


class PlacesFirst(Tokens):
    """The samples are no longer the first dimension where layers run."""

    def forward(self, x):
        x = self.stem(x).flatten(2).permute(2, 0, 1)
        y = self.norm(x)
        return self.fc((x + self.down(self.up(y) * self.gate(y).sigmoid())).mean(0))


def network(kind):
    torch.manual_seed(1)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    return model, halp_fx.channel_groups(model, X)


def alone(gates, batch):
    return torch.stack([gates.by_weights(samples_of(batch, i), 0) for i in range(len(batch[0]))])


@pytest.mark.parametrize("kind", [Residual, Twice, Tokens])
def test_rows_of_a_batch_are_those_of_samples_run_alone(kind):
    model, coupling = network(kind)
    gates = Gates.of(model, coupling, Sampled(loss=lambda m, b: F.cross_entropy(m(b[0]), b[1])))
    found = gates.rows([(X, Y)], 8)
    assert (found.way, found.batches, found.rows.shape) == ("batches", 1, (6, gates.channels))
    torch.testing.assert_close(found.rows, alone(gates, (X, Y)), rtol=1e-3, atol=1e-5)


def test_a_gate_is_what_it_is_called():
    """Derivatives by gates that multiply the output of a norm."""
    model, coupling = network(Residual)
    gate = torch.ones(6, 12, 1, 1, requires_grad=True)
    gated = copy.deepcopy(model)
    gated.n1.register_forward_hook(lambda module, args, out: out * gate)
    (want,) = torch.autograd.grad(F.cross_entropy(gated(X), Y, reduction="sum"), gate)
    gates = Gates.of(model, coupling, Sampled(loss=lambda m, b: F.cross_entropy(m(b[0]), b[1])))
    start = gates.starts["a"]
    torch.testing.assert_close(
        gates.rows([(X, Y)], 8).rows[:, start : start + 12], want[..., 0, 0], rtol=1e-4, atol=1e-6
    )


def test_samples_are_run_alone_where_a_batch_does_not_show_them():
    model, coupling = network(PlacesFirst)
    gates = Gates.of(model, coupling, Sampled(loss=lambda m, b: F.cross_entropy(m(b[0]), b[1])))
    found = gates.rows([(X, Y)], 8)
    assert found.way == "samples"
    torch.testing.assert_close(found.rows, alone(gates, (X, Y)))


def test_a_batch_is_one_row_where_samples_share_statistics():
    model, coupling = network(Residual)
    gates = Gates.of(model, coupling, Sampled(loss=lambda m, b: F.cross_entropy(m.train()(b[0]), b[1])))
    found = gates.rows([(X, Y), (X.flip(0), Y)], 8)
    assert (found.way, len(found.rows)) == ("whole batches", 2)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_elimination_is_greedy_and_its_loss_that_of_the_set(size):
    rows = np.random.default_rng(size).normal(size=(5, size))
    gram = rows.T @ rows / len(rows)
    order, loss = elimination(gram)
    assert sorted(order) == list(range(size))
    assert loss[size] == 0

    def of_set(removed):
        return gram[np.ix_(removed, removed)].sum() / 2

    for width in range(size):
        removed = list(order[width:])
        np.testing.assert_allclose(loss[width], of_set(removed), rtol=1e-9, atol=1e-12)
        others = [of_set([*order[width + 1 :], c]) for c in order[: width + 1]]
        np.testing.assert_allclose(loss[width], min(others), rtol=1e-9, atol=1e-12)


def test_values_rise_with_the_width_and_say_who_stays():
    values = halp_fx.WidthValues.of_losses(np.array([2, 0, 1]), np.array([3.0, 4.0, 1.0, 0.0]))
    assert values.value.tolist() == [0.0, 0.0, 3.0, 4.0]
    assert [values.kept(w) for w in range(4)] == [(), (2,), (0, 2), (0, 1, 2)]
    sums = halp_fx.WidthValues.of_scores(np.array([1.0, 3.0, 2.0]))
    assert sums.value.tolist() == [0.0, 3.0, 5.0, 6.0]
    assert sums.kept(1) == (1,)


@pytest.mark.parametrize("data", [[X, X], [(X, Y)], [({"x": X}, Y)]], ids=["inputs", "pairs", "dict"])
def test_no_loss_is_needed(data):
    model, coupling = network(Residual)
    found = halp_fx.score(model, coupling, data)
    assert found.kind == "fisher"
    assert all(found.known[g.name].value[-1] > 0 for g in coupling.prunable)


def test_scores_are_the_same_each_time_and_nothing_is_left():
    model, coupling = network(Residual)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    first, second = (halp_fx.score(model, coupling, [(X, Y)], F.cross_entropy) for _ in range(2))
    for name, values in first.known.items():
        np.testing.assert_array_equal(values.value, second.known[name].value)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_an_importance_may_give_values():
    model, coupling = network(Residual)

    def last_first(group):
        return halp_fx.WidthValues(np.arange(group.size)[::-1], np.sqrt(np.arange(group.size + 1.0)))

    small = halp_fx.prune(model, 0.5, X, importance=last_first, latency=MacsCost(), round_to=1, progress=False)
    assert all(
        rows == tuple(range(g.size - len(rows), g.size)) for g in coupling.prunable if (rows := small.halp.plan[g.name])
    )
    with pytest.raises(SaliencyError, match="each of 8 channels once"):
        halp_fx.score(
            model, coupling, importance=lambda g: halp_fx.WidthValues(np.zeros(g.size, int), np.zeros(g.size + 1))
        )


def test_without_data_all_groups_are_about_equally_narrow():
    model, coupling = network(Residual)
    small = halp_fx.prune(model, 0.5, X, latency=MacsCost(), round_to=1, progress=False)
    shares = {g.name: len(small.halp.plan[g.name]) / g.size for g in coupling.prunable}
    assert max(shares.values()) / min(shares.values()) < 1.25, shares
    assert any("no data was given" in note for note in small.halp.notes)


def test_recalibration_is_the_mean_over_batches():
    model, _ = network(Residual)
    model.n0.momentum = 0.3
    model.a.train()
    halp_fx.recalibrate(model, [(X, Y), (X.flip(3) * 2, Y)])
    outs = torch.stack([model.stem(x).mean((0, 2, 3)) for x in (X, X.flip(3) * 2)])
    torch.testing.assert_close(model.n0.running_mean, outs.mean(0))
    assert (model.n0.momentum, model.n1.momentum) == (0.3, 0.1)
    assert [m.training for m in (model, model.a, model.n0)] == [False, True, False]


@pytest.mark.parametrize("data", [[], [(X, Y), (X[:, :2], Y)]], ids=["no batch", "wrong batch"])
def test_recalibration_that_fails_changes_nothing(data):
    model, _ = network(Residual)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(SaliencyError, match="cannot be re-estimated"):
        halp_fx.recalibrate(model, data)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_what_prune_returns_is_recalibrated_unless_told_otherwise():
    model, _ = network(Residual)
    given = {"data": [(X, Y)], "latency": MacsCost(), "round_to": 1, "progress": False}
    plain = halp_fx.prune(model, 0.5, X, recalibrate=False, steps=1, **given)
    torch.testing.assert_close(plain(X), halp_fx.zero(model, plain.halp.plan, X)(X), rtol=1e-4, atol=1e-5)
    small = halp_fx.prune(model, 0.5, X, steps=1, compensate=False, **given)
    assert small.halp.plan == plain.halp.plan
    want = halp_fx.recalibrate(plain, [(X, Y)])
    torch.testing.assert_close(small(X), want(X))


def test_no_batch_is_run_twice_and_the_first_sample_once_more():
    model, seen = Residual().eval(), []
    batches = [X, X + 1, X + 2]
    coupling = halp_fx.channel_groups(model, X)
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    gates = Gates.of(model, coupling, Sampled())
    found = gates.rows(batches, 64)
    handle.remove()
    assert sorted(seen) == [1, 6, 6, 6]
    # Labels are drawn as if nothing had been tried.
    alone = Gates.of(model, coupling, Sampled())
    rows = [alone._together(batch, i) for i, batch in enumerate(batches)]
    torch.testing.assert_close(found.rows, torch.cat(rows))
