"""pareto(..., state=): an interrupted curve is the one that it would have been, bit by bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_closing import Machine
from test_report import Clock, latency
from test_state import BATCHES, IMAGES, interrupting, model, score_fn, shuffled, taken_up
from torch import nn

import halp_fx
from halp_fx import StateError

BUDGETS = [0.7, 1.0, 0.4, 0.2]
"""One that is met as it is, and one that cannot be reached."""

WAYS = {
    "no data": {},
    "data": {"data": BATCHES, "importance": "batches"},
    "judged, compensated": {"data": BATCHES, "score_fn": score_fn, "compensate": True, "branches": True},
    "shuffled": {"data": shuffled()},
    "scored without data": {"score_fn": score_fn, "importance": "magnitude"},
}


def curve_of(budgets=BUDGETS, network=None, **settings):
    settings = {"latency": "macs", "round_to": 4, "min_keep": 0.3, "progress": False} | settings
    torch.manual_seed(7)
    return halp_fx.pareto(network or model(), budgets, IMAGES[:1], **settings), torch.get_rng_state()


def the_same(a, b):
    (one, random), (other, moved) = a, b
    assert one.points == other.points
    assert (one.refused, one.dense, one.dense_score) == (other.refused, other.dense, other.dense_score)
    assert torch.equal(random, moved)
    torch.manual_seed(0)
    made = one.network(0.4)
    torch.manual_seed(0)
    again = other.network(0.4)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in made.state_dict().items())
    assert replace(made.halp, seconds={}) == replace(again.halp, seconds={})


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_curve_ends_where_it_would_have(way, tmp_path, monkeypatch):
    whole = curve_of(**WAYS[way])
    assert [p.asked for p in whole[0].points] == ["1.0", "0.7", "0.4"]
    assert list(whole[0].refused) == ["0.2"]
    with monkeypatch.context() as patch:
        passed = interrupting(patch, 0)
        the_same(whole, curve_of(state=tmp_path / "whole", **WAYS[way]))
        count = passed[0] - 1  # The last one makes the network that is compared.
    for at in range(1 + len(way) % 3, count + 1, 3 if way == "no data" else 6):  # Every place is one of some way.
        the_same(whole, taken_up(curve_of, at, tmp_path / str(at), monkeypatch, **WAYS[way]))


def test_what_was_passed_is_not_done_again(tmp_path, monkeypatch):
    long = curve_of([0.8, 0.6, 0.4], data=BATCHES)
    curve_of([0.8, 0.6], data=BATCHES, state=tmp_path / "kept")
    with monkeypatch.context() as patch:
        passed = interrupting(patch, 0)
        curve_of([0.6, 0.8], data=BATCHES, state=tmp_path / "kept")
        again = passed[0]
        curve_of([0.8, 0.6, 0.4], data=BATCHES, state=tmp_path / "kept")
    assert again <= 3  # Networks are cut again, and nothing is scored or kept.
    the_same(long, curve_of([0.8, 0.6, 0.4], data=BATCHES, state=tmp_path / "kept"))
    assert curve_of([0.8], data=BATCHES, state=tmp_path / "kept")[0].points == long[0].points[:1]


def test_times_are_kept(tmp_path, monkeypatch):
    call = {"budgets": [0.9, 0.7], "tolerance": 0.05}
    machine = Machine(monkeypatch, overhead=0.2)
    curve = curve_of(latency=latency(Clock()), state=tmp_path / "kept", **call)[0]
    machine.pairs = 0
    again = curve_of(latency=latency(Clock()), state=tmp_path / "kept", **call)[0]
    assert machine.pairs == 0
    assert again.points == curve.points


class Other(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.Flatten())


@pytest.mark.parametrize(
    ("call", "there"),
    [
        ({"network": Other()}, "is of a Net, and this model is a Other"),
        ({"data": BATCHES[:1]}, "was made with other data"),
        ({"data": None}, "was made with other data"),
        ({"round_to": 2}, "round_to = 4, and this call has round_to = 2"),
        ({"latency": "params"}, "latency = MacsCost"),
        ({"score_fn": score_fn}, "score_fn"),
        ({"budgets": [0.9, 0.5]}, "has passed"),
        ({"budgets": [0.6, 0.5]}, "has passed"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else None,
)
def test_a_foreign_state_is_refused_and_left_alone(call, there, tmp_path):
    folder = tmp_path / "kept"
    curve_of([0.8, 0.5], data=BATCHES, state=folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(StateError, match=there):
        curve_of(**{"budgets": [0.8, 0.5], "data": BATCHES, "state": folder} | call)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_prune_and_pareto_do_not_share_a_folder(tmp_path):
    curve_of([0.8, 0.5], data=BATCHES, state=tmp_path)
    with pytest.raises(StateError, match="call = pareto, and this call has call = prune"):
        halp_fx.prune(
            model(), 0.5, IMAGES[:1], data=BATCHES, latency="macs", round_to=4, min_keep=0.3, solver="lagrangian",
            state=tmp_path, progress=False,
        )  # fmt: skip


def test_a_report_of_a_point_ends_at_that_point():
    """Later steps and scores are not of its network, and targets are of the budget that they were on the way to."""
    curve, _ = curve_of([0.6, 0.35], data=BATCHES, score_fn=score_fn)
    first, last = (curve.network(p).halp for p in curve.points)
    assert len(first.steps) < len(last.steps)
    assert len(first.scores) == 2
    assert len(last.scores) == 3
    assert all(0.6 <= s.aim <= 1 for s in first.steps)
    targets = [s.aim for s in last.steps]
    assert targets == sorted(targets, reverse=True)
    assert all(0.35 < t < 1 for t in targets)
    assert curve_of([1.0, 0.5])[0].network(1.0).halp.notes[-1].startswith("the dense network meets the budget")
