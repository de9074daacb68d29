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
    """

    def __init__(self, monkeypatch, overhead):
        self.overhead = overhead
        self.disturbed = []
        self.faults = 0.0
        self.found = 1.0
        monkeypatch.setattr("halp_fx.goals.interleaved", self)
        monkeypatch.setattr("halp_fx.goals.can_keep", lambda: True)

    def __call__(self, models, inputs, keep_memory=True, **_):
        if not keep_memory:
            return (NetworkTiming(self.found * 10.0, 0.01, 9, faults=self.faults),)
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
    assert report.rounds[-1].smallest
    assert not report.rounds[0].smallest
    assert "missed by" in report.notes[-1]
    assert report.notes[-1].endswith("the smallest that min_keep and round_to allow")
    assert small(INPUTS).shape == Small()(INPUTS).shape


def test_disturbed_tries_count_by_their_median(monkeypatch):
    machine = Machine(monkeypatch, overhead=0.0)
    quiet = pruned(0.6).halp
    machine.disturbed = [1.5, 1.2, 1.2]
    disturbed = pruned(0.6, tolerance=1.0).halp
    assert disturbed.rounds[0].measured == pytest.approx(quiet.rounds[0].measured / 1.2)


def test_a_budget_out_of_reach_from_the_start_is_refused_by_measurement(monkeypatch):
    Machine(monkeypatch, overhead=0.5)
    with pytest.raises(
        halp_fx.InfeasibleError, match=r"allow takes 5\.\d+ ms, measured \(5\d\.\d% of dense\)"
    ) as caught:
        pruned(0.05, min_keep=0.25)
    assert 5.0 < caught.value.minimum < 6.0
    assert caught.value.groups


def test_a_budget_that_only_the_layers_call_out_of_reach_is_met(monkeypatch):
    Machine(monkeypatch, overhead=0.0)
    least = pruned(0.36, min_keep=0.25)
    assert least.halp.rounds[0].smallest
    assert abs(least.halp.measured / least.halp.budget - 1) <= 0.05


@pytest.mark.parametrize(("found", "faults", "said"), [(1.3, 2000.0, True), (1.3, 0.0, False), (1.05, 2000.0, False)])
def test_page_faults_outside_of_the_timing_are_reported(monkeypatch, found, faults, said):
    machine = Machine(monkeypatch, overhead=0.0)
    machine.found, machine.faults = found, faults
    notes = pruned(0.6).halp.notes
    assert any("13 ms instead of 10 ms, with 2000 page faults" in note for note in notes) == said
