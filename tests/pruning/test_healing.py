"""heal: a pruned network is trained without labels to do what the dense one does, in place, where that brings it closer
on samples that it was not trained on."""

from __future__ import annotations

import copy

import pytest
import torch
from test_contest import pruned
from test_state import IMAGES, model, score_fn, trained
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import halp_fx
from halp_fx import BudgetError, Plan, SaliencyError
from halp_fx.pruning import healing, restoring, teaching
from halp_fx.pruning.healing import held_apart
from halp_fx.scoring.divergence import Reference

DRAW = torch.Generator().manual_seed(5)
SAMPLES = torch.randn(224, 3, 6, 6, generator=DRAW) + 2 * torch.randn(224, 3, 1, 1, generator=DRAW)
"""In colours, which is what the network's mean over all places tells apart."""
DATA = list(SAMPLES[:160].split(16))
LABELLED = [(x, torch.arange(16) % 5) for x in DATA]
FURTHER = [SAMPLES[160:]]
"""That nobody is taught, nor compared on."""


@pytest.fixture(scope="module")
def dense():
    """Scaled, so that its outputs differ: it is not trained, and does not need to be."""
    net = model()
    with torch.no_grad():
        for layer in (net.a, net.branch[0], net.branch[3], net.b, net.out):
            layer.weight *= 3
    return halp_fx.recalibrate(net, DATA)


@pytest.fixture
def small(dense):
    return cut(dense)


def cut(net, **settings):
    """To be healed: nothing else makes up for what was removed."""
    return pruned(net, 0.3, **{"data": DATA, "compensate": False} | settings)


def values(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(net, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_it_comes_closer_also_on_samples_that_nobody_has_seen(dense, norms, frozen):
    net = copy.deepcopy(dense)
    if not norms:
        net.norm = nn.Identity()
    for parameter in net.parameters():
        parameter.requires_grad_(not frozen)  # As a caller may have it who only runs networks.
    small = cut(net)
    judge = Reference.of(net, FURTHER)
    before = judge.distance(small)
    found = halp_fx.heal(small, net, DATA, steps=80, progress=False)
    assert judge.distance(small) < 0.8 * before
    assert found.taken
    assert (found.steps, found.samples, found.kind) == (80, 64 if len(DATA) >= 16 else 32, "divergence")
    assert found.after < found.before
    part = "" if found.share == 1 else f", {found.share:.0%} of what they changed taken"
    assert f"healed in 80 steps{part}: divergence {found.before:.4g} before, {found.after:.4g} after" in str(found)
    assert all(p.requires_grad is not frozen for p in (*net.parameters(), *small.parameters()))


def test_nothing_else_is_changed(dense, small):
    whole, seeds = values(dense), torch.get_rng_state()
    small.train()
    small.branch.eval()
    momenta = [m.momentum for m in small.modules() if isinstance(m, nn.BatchNorm2d)]
    tensors = {name: id(tensor) for name, tensor in small.named_parameters()}
    small.b.weight.grad = torch.ones_like(small.b.weight)
    halp_fx.heal(small, dense, DataLoader(TensorDataset(torch.cat(DATA)), 16, shuffle=True), steps=12, progress=False)
    assert same(dense, whole)
    assert not dense.training
    assert torch.equal(torch.get_rng_state(), seeds)
    assert small.training
    assert not small.branch.training
    assert [m.momentum for m in small.modules() if isinstance(m, nn.BatchNorm2d)] == momenta
    assert {name: id(tensor) for name, tensor in small.named_parameters()} == tensors
    assert bool((small.b.weight.grad == 1).all())


def test_what_comes_no_closer_stays_as_it_was(dense):
    small = halp_fx.rewrite(dense, Plan(), IMAGES[:1])
    before = values(small)
    found = halp_fx.heal(small, dense, DATA, steps=4, progress=False)
    assert not found.taken
    assert same(small, before)
    assert "not healed: 4 steps did not bring it closer" in str(found)


@pytest.mark.parametrize("norms", [True, False])
def test_it_ends_where_it_is_closest_between_what_it_was_and_what_it_was_trained_to(dense, monkeypatch, norms):
    """A training on few samples, at a rate that is too high, goes too far."""
    net = copy.deepcopy(dense)
    if not norms:
        net.norm = nn.Identity()
    plan = Plan({"b": list(range(5))})
    start = halp_fx.rewrite(net, plan, IMAGES[:1])
    halp_fx.compensate(start, net, DATA, plan, IMAGES[:1])
    monkeypatch.setattr(healing, "RATE", 0.1)
    small, trained = copy.deepcopy(start), copy.deepcopy(start)
    found = halp_fx.heal(small, net, DATA[:4], steps=20, progress=False)
    monkeypatch.setattr(healing, "SHARES", (1.0,))
    whole = halp_fx.heal(trained, net, DATA[:4], steps=20, progress=False)
    assert whole.share == 1
    assert 0 < found.share < 1
    assert found.after < min(found.before, whole.after)
    assert f"{found.share:.0%} of what they changed taken" in str(found)
    if whole.taken:
        for now, before, after in zip(small.parameters(), start.parameters(), trained.parameters(), strict=True):
            torch.testing.assert_close(now, torch.lerp(before, after, found.share))
    taught, held = held_apart(DATA[:4])
    again = halp_fx.recalibrate(copy.deepcopy(small), taught)
    assert Reference.of(net, held).distance(again) == pytest.approx(found.after)


def test_a_parameter_that_needs_no_gradient_stays(dense, small):
    small.out.weight.requires_grad_(False)
    before = values(small)
    assert halp_fx.heal(small, dense, DATA, steps=40, progress=False).taken
    assert torch.equal(small.out.weight, before["out.weight"])
    assert not torch.equal(small.b.weight, before["b.weight"])


def listed(data):
    return list(data)


def loaded(data):
    return DataLoader(TensorDataset(torch.cat(data)), 16)


def streamed(data):
    return (batch for batch in data)


@pytest.mark.parametrize("source", [listed, loaded, streamed])
def test_what_is_compared_on_is_not_taught(dense, small, monkeypatch, source):
    taught, compared = [], []
    monkeypatch.setattr(teaching, "mixed", lambda inputs, share: taught.append(inputs) or inputs)
    inner = Reference.of.__func__
    monkeypatch.setattr(
        Reference,
        "of",
        classmethod(lambda cls, net, held, *rest: compared.extend(held) or inner(cls, net, held, *rest)),
    )
    found = halp_fx.heal(small, dense, source(DATA), steps=25, progress=False)
    rows = {
        tuple(row)
        for given in taught
        for row in torch.as_tensor(given[0] if isinstance(given, list) else given).flatten(1).tolist()
    }
    held = torch.cat([batch[0] if isinstance(batch, list) else batch for batch in compared])
    assert found.steps == 25
    assert len(held) == found.samples == 32
    assert len(rows) == 160 - 32
    assert not rows & {tuple(row) for row in held.flatten(1).tolist()}


@pytest.mark.parametrize(
    ("sizes", "taught", "held"),
    [
        ([64] * 8, 7 * 64, 64),
        ([16] * 32, 28 * 16, 64),
        ([4] * 8, 24, 8),
        ([100, 100], 150, 50),
        ([8], 6, 2),
        ([1] * 4, 3, 1),
    ],
)
def test_how_many_samples_are_held_out(sizes, taught, held):
    rest, apart = held_apart([torch.zeros(n, 3) for n in sizes])
    assert (sum(map(len, rest)), sum(map(len, apart))) == (taught, held)


def test_a_source_that_runs_dry_is_said(dense, small):
    class Dry:
        """Batches that are there at the first three readings alone."""

        reads = 0

        def __iter__(self):
            self.reads += 1
            return iter(2 * DATA if self.reads <= 3 else [])

    before = values(small)
    with pytest.raises(SaliencyError, match="data has no batches"):
        halp_fx.heal(small, dense, Dry(), steps=10**6, progress=False)
    assert same(small, before)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([torch.zeros(2, 3, 6, 6)], "there are 1 batches of [2] samples"),
        ([], "there are 0 batches"),
        (None, "cannot be healed without data"),
        (IMAGES, "whose items are samples"),
        ([torch.full((16, 3, 6, 6), torch.nan)] * 8, "is nan in step 0"),
        ([torch.zeros(16, 7, 6, 6)] * 8, "7 channels"),
    ],
)
def test_bad_data_is_said_and_nothing_is_lost(dense, small, data, words):
    before = values(small)
    with pytest.raises((SaliencyError, RuntimeError)) as caught:
        halp_fx.heal(small, dense, data, steps=4, progress=False)
    assert words in str(caught.value)
    assert same(small, before)


def test_other_wrong_arguments(dense, small):
    with pytest.raises(SaliencyError, match="steps=0 must be a whole number"):
        halp_fx.heal(small, dense, DATA, steps=0)
    with pytest.raises(SaliencyError, match="networks cannot be compared by what they put out"):
        halp_fx.heal(small, nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), DATA, progress=False)


def test_by_a_loss_of_the_callers(dense, small):
    def loss(net, batch):
        return F.mse_loss(net(batch[0]), torch.zeros(len(batch[0]), 5))

    found = halp_fx.heal(small, dense, LABELLED, steps=60, loss=loss, progress=False)
    assert found.kind == "loss"
    assert found.taken


class Words(nn.Module):
    """Indices in, two outputs."""

    def __init__(self):
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(9, 16), nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, words):
        x = self.a(self.embed(words).mean(1)).relu()
        return self.b(x), {"sum": x.sum(1)}


def test_indices_and_several_outputs():
    torch.manual_seed(0)
    net = Words().eval()
    data = list(torch.randint(9, (160, 5), generator=torch.Generator().manual_seed(0)).split(16))
    small = halp_fx.prune(net, 0.4, data[0][:1], latency="macs", progress=False)
    found = halp_fx.heal(small, net, data, steps=60, progress=False)
    assert found.kind == "squared error"
    assert found.taken


def test_prune_heals_at_the_end(dense):
    plain = cut(dense, score_fn=score_fn)
    small = cut(dense, score_fn=score_fn, heal=60)
    assert small.halp.plan == plain.halp.plan
    assert small.halp.measured == plain.halp.measured
    judge = Reference.of(dense, FURTHER)
    assert judge.distance(small) < judge.distance(plain)
    (said,) = (note for note in small.halp.notes if note.startswith("healed in 60 steps"))
    assert said in str(small.halp)
    assert small.halp.scores[:-1] == plain.halp.scores
    assert small.halp.scores[-1][1] == pytest.approx(score_fn(small))
    assert small.halp.seconds["heal"] > 0
    by_hand = cut(dense)
    halp_fx.heal(by_hand, dense, DATA, steps=60, progress=False)
    assert same(small, values(by_hand))


@pytest.mark.parametrize("heal", [False, 5])
def test_compensation_sees_no_sample_that_healing_compares_on(dense, monkeypatch, heal):
    seen, inner = [], restoring.compensate

    def compensate(cut, whole, plan, data, **rest):
        seen.extend(data)
        return inner(cut, whole, plan, data, **rest)

    monkeypatch.setattr(restoring, "compensate", compensate)
    cut(dense, compensate=True, heal=heal)
    held = held_apart(DATA)[1]
    assert held
    assert len(seen) == len(DATA) - (len(held) if heal else 0)
    assert any(batch is other for batch in seen for other in held) is (heal is False)


def test_the_winner_of_several_ways_is_healed(dense):
    plain = cut(dense, effort="thorough", judge="untrained")
    small = cut(dense, effort="thorough", judge="untrained", heal=40.0)
    assert small.halp.contenders == plain.halp.contenders
    assert not same(small, values(plain))


def test_a_state_serves_calls_with_and_without(dense, tmp_path):
    plain = cut(dense, state=tmp_path)
    small = cut(dense, state=tmp_path, heal=20)
    assert same(small, values(cut(dense, heal=20)))
    assert same(cut(dense, state=tmp_path), values(plain))


def test_the_dense_network_needs_no_healing(dense):
    small = pruned(dense, 1.0, data=DATA, heal=True)
    assert same(small, values(dense))
    assert not any("healed" in note for note in small.halp.notes)


def test_what_ends_the_healing_hands_over_what_was_pruned(dense, monkeypatch):
    def ends(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(teaching.Teacher, "taught", ends)
    with pytest.raises(KeyboardInterrupt) as caught:
        cut(dense, heal=True)
    assert same(caught.value.reached.network, values(cut(dense)))


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"data": None, "heal": True}, SaliencyError, "heal=True trains the network on data"),
        ({"heal": True, "train_between": trained}, BudgetError, "leave one of them out"),
        ({"heal": "long"}, BudgetError, "heal='long' must be True, False, or a number of steps"),
        ({"heal": 0.5}, BudgetError, "heal=0.5"),
    ],
)
def test_what_cannot_be_healed(dense, given, kind, words):
    with pytest.raises(kind, match=words):
        cut(dense, **given)


def test_the_default_is_some_hundred_steps(dense, monkeypatch):
    monkeypatch.setattr(healing, "STEPS", 7)
    monkeypatch.setattr("halp_fx.pruning.session.STEPS", 7)
    assert any("7 steps" in note for note in cut(dense, heal=True).halp.notes)


def test_images_of_a_sample_are_moved_alike_and_nothing_is_made_up():
    x = torch.rand(5, 3, 16, 16)
    inputs = (x, {"half": x[..., ::2, ::2], "flat": torch.rand(5, 7), "mask": x > 0.5, "one": 3.0})
    images, other = teaching.moved_about(inputs, torch.Generator().manual_seed(0))
    assert other["flat"] is inputs[1]["flat"]
    assert other["mask"] is inputs[1]["mask"]
    assert other["one"] == 3.0
    found = set()
    for before, after in zip(x, images, strict=True):
        by = [(i, j) for i in range(-2, 3) for j in range(-2, 3) if torch.equal(before.roll((i, j), (1, 2)), after)]
        assert len(by) == 1
        found.update(by)
    assert len(found) > 1
    again = teaching.moved_about(inputs, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], images)
    twins = teaching.moved_about((x, x.clone()), torch.Generator().manual_seed(1))
    assert torch.equal(*twins)
    assert teaching.moved_about(x[:1], torch.Generator()).equal(x[:1])
