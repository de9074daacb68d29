"""The closing loop against a simulated machine: no clock decides whether a test passes."""

from __future__ import annotations

import pytest
import torch
from test_prune import Small
from test_report import Clock, latency

import halp_fx
from halp_fx.latency import NetworkTiming

INPUTS = torch.rand(2, 3, 8, 8)


class Machine:
    """Takes a time for a network that follows its number of parameters, raised by `overhead` of the dense network's.

    Attributes:
        disturbed: factors on the dense network's time, one a measurement, while there are any; its share of the
            pruned one's time moves with it.
        pairs: how often a network was compared with the dense one.
        found, faults: the dense network's time while memory is handled as found, relative to 10 ms; page faults in it.
    """

    def __init__(self, monkeypatch, overhead):
        self.overhead = overhead
        self.disturbed = []
        self.pairs = 0
        self.faults = 0.0
        self.found = 1.0
        monkeypatch.setattr("halp_fx.goals.interleaved", self)
        monkeypatch.setattr("halp_fx.goals.untouched", lambda: True)

    def __call__(self, models, inputs, keep_memory=True, **_):
        if not keep_memory:
            return (NetworkTiming(self.found * 10.0, 0.01, 9, faults=self.faults),)
        self.pairs += len(models) > 1
        counts = [sum(p.numel() for p in model.parameters()) for model in models]
        factor = self.disturbed.pop(0) if self.disturbed and len(models) > 1 else 1.0
        ms = [10.0 * (self.overhead + (1 - self.overhead) * count / counts[0]) for count in counts]
        ms[0] *= factor
        return tuple(NetworkTiming(x, 0.01, 9, share=x / ms[0]) for x in ms)


def pruned(budget, **settings):
    settings = {"round_to": 1, "progress": False, **settings}
    return halp_fx.prune(Small().eval(), budget, INPUTS, latency=latency(Clock()), **settings)


def test_the_loop_closes_in_on_a_budget_that_layers_do_not_add_up_to(monkeypatch):
    Machine(monkeypatch, overhead=0.05)
    report = pruned(0.6, tolerance=0.03).halp
    assert abs(report.rounds[0].measured / report.budget - 1) > 0.03, "too easy: the first round already meets it"
    assert abs(report.measured / report.budget - 1) <= 0.03
    assert not any("budget" in note for note in report.notes)


def test_a_budget_that_proves_out_of_reach_gives_the_smallest_network(monkeypatch):
    Machine(monkeypatch, overhead=0.6)
    small = pruned(0.5, min_keep=0.25)
    report = small.halp
    assert [group.kept for group in report.groups] == [max(group.size // 4, 1) for group in report.groups]
    assert report.measured > report.budget
    assert report.smallest
    assert report.rounds[-1].smallest
    assert not report.rounds[0].smallest
    assert "missed by" in report.notes[-1]
    assert report.notes[-1].endswith("the smallest that min_keep and round_to allow")
    assert small(INPUTS).shape == Small()(INPUTS).shape


@pytest.mark.parametrize(
    ("disturbed", "factor"),
    [([1.5, 1.2, 1.3], 1.3), ([1.5], 1.0)],
    ids=["median of three", "a quiet try counts alone"],
)
def test_disturbed_tries(monkeypatch, disturbed, factor):
    machine = Machine(monkeypatch, overhead=0.0)
    quiet = pruned(0.6, tolerance=1.0).halp
    machine.disturbed = disturbed
    found = pruned(0.6, tolerance=1.0).halp
    assert found.rounds[0].measured == pytest.approx(quiet.rounds[0].measured / factor)


def test_a_budget_out_of_reach_from_the_start_is_refused_by_measurement(monkeypatch):
    Machine(monkeypatch, overhead=0.5)
    with pytest.raises(
        halp_fx.InfeasibleError, match=r"allow takes 5\.\d+ ms, measured \(5\d\.\d% of dense\)"
    ) as caught:
        pruned(0.05, min_keep=0.25)
    assert 5.0 < caught.value.minimum < 6.0
    assert caught.value.groups


@pytest.mark.parametrize("solver", ["auto", "uniform", "halp"])
def test_out_of_reach_is_said_alike_by_all_methods(monkeypatch, solver):
    Machine(monkeypatch, overhead=0.5)
    with pytest.raises(halp_fx.InfeasibleError, match="the smallest that min_keep and round_to allow takes"):
        pruned(0.05, min_keep=0.25, solver=solver)


def test_a_budget_that_only_the_layers_call_out_of_reach_is_met(monkeypatch):
    machine = Machine(monkeypatch, overhead=0.0)
    report = pruned(0.36, min_keep=0.25, tolerance=0.05).halp
    assert machine.pairs == len(report.rounds) + 1, "too easy: the layers do not call it out of reach"
    assert abs(report.measured / report.budget - 1) <= 0.05


def test_nothing_is_trained_for_a_budget_out_of_reach(monkeypatch):
    Machine(monkeypatch, overhead=0.5)
    trained = []
    with pytest.raises(halp_fx.InfeasibleError, match="measured"):
        pruned(0.05, min_keep=0.25, steps=3, train_between=trained.append)
    assert not trained


@pytest.mark.parametrize(("found", "faults", "said"), [(1.3, 2000.0, True), (1.3, 0.0, False), (1.05, 2000.0, False)])
def test_page_faults_outside_of_the_timing_are_reported(monkeypatch, found, faults, said):
    machine = Machine(monkeypatch, overhead=0.0)
    machine.found, machine.faults = found, faults
    notes = pruned(0.6).halp.notes
    assert any("13 ms instead of 10 ms, with 2,000 page faults" in note for note in notes) == said
