"""Copies that are trained for a little while to do what the dense network does: they come closer, and nothing else is
changed."""

from __future__ import annotations

import copy

import pytest
import torch
from test_contest import DATA
from test_state import IMAGES, model, trained
from torch.nn import functional as F

import halp_fx
from halp_fx import Plan
from halp_fx.pruning import rehearsing, teaching
from halp_fx.pruning.rehearsing import Rehearsal
from halp_fx.pruning.teaching import ROOM, Teacher, mixed
from halp_fx.scoring.divergence import Reference


@pytest.fixture(scope="module")
def dense():
    """Trained a little, so that outputs differ."""
    net = model()
    torch.manual_seed(0)
    for _ in range(10):
        trained(net)
    return net.eval()


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(rehearsing, "STEPS", 12)


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("loss", [None, lambda m, batch: F.cross_entropy(m(batch[0]), batch[1])])
def test_a_rehearsal_brings_a_network_closer(dense, monkeypatch, norms, loss):
    monkeypatch.setattr(rehearsing, "STEPS", 60)
    net = copy.deepcopy(dense)
    if not norms:
        net.norm = torch.nn.Identity()
    for parameter in net.parameters():
        parameter.requires_grad_(False)  # As a caller may have it who only runs networks.
    small = halp_fx.prune(net, 0.3, IMAGES[:1], latency="macs", progress=False)
    kept = {n: t.clone() for n, t in small.state_dict().items()}
    trained = Rehearsal.of(net, DATA, loss).rehearsed(small)
    judge = Reference.of(net, DATA, loss)
    # Labels of noise are learnt slowly.
    assert judge.distance(trained) < (0.8 if loss is None else 1.0) * judge.distance(small)
    assert all(torch.equal(t, kept[n]) for n, t in small.state_dict().items())
    assert not any(p.requires_grad for p in (*net.parameters(), *small.parameters()))
    assert all(m.running_mean.isfinite().all() for m in trained.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_the_dense_network_is_asked_once_what_all_are_taught(dense, monkeypatch):
    asked = []
    inner = teaching.called
    monkeypatch.setattr(teaching, "called", lambda m, inputs: asked.append(m) or inner(m, inputs))
    small = halp_fx.rewrite(dense, Plan(), IMAGES[:1])
    for room, repeats in ((ROOM, 1), (0, 2)):
        asked.clear()
        rehearsal = Rehearsal(Teacher(dense, room=room), DATA)
        first, second = rehearsal.rehearsed(small), rehearsal.rehearsed(small)
        assert sum(m is dense for m in asked) == 12 * repeats
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_mixtures_are_of_neighbours():
    x, y = torch.rand(4, 3, 8, 8), torch.rand(4, 5)
    a, other = mixed((x, {"y": y, "flag": True}), 0.25)
    torch.testing.assert_close(a, 0.25 * x + 0.75 * x.roll(1, 0))
    torch.testing.assert_close(other["y"], 0.25 * y + 0.75 * y.roll(1, 0))
    assert other["flag"] is True
    tokens = torch.arange(4)
    for whole in (x[:1], (x, tokens), {"x": x, "other": y[:3]}):
        assert mixed(whole, 0.25) is whole


def test_copies_are_compared_by_a_bounded_distance(dense):
    """Class scores by the squared Hellinger distance; other outputs as networks as they stand are."""
    other = copy.deepcopy(dense)
    with torch.no_grad():
        other.out.weight.mul_(-50)
    reference = Reference.of(dense, DATA)
    with torch.no_grad():
        rows = [[net(x).double().softmax(1) for net in (dense, other)] for x, _ in DATA]
        want = torch.cat([(p.sqrt() - q.sqrt()).square().sum(1) / 2 for p, q in rows])
    assert reference.bounded(other) == pytest.approx(float(want.mean()), rel=1e-6)
    assert reference.bounded(other) <= 1 < reference.distance(other)
    assert reference.bounded(dense) == pytest.approx(0, abs=1e-6)

    plain, further = (torch.nn.Sequential(net, torch.nn.Unflatten(1, (-1, 1))) for net in (dense, other))
    reference = Reference.of(plain, DATA)
    assert reference.bounded(further) == reference.distance(further)
    with torch.no_grad():
        other.out.weight.fill_(torch.nan)
    assert Reference.of(dense, DATA).bounded(other) == float("inf")
