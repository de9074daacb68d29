"""A machine that other programs disturb, simulated: what is measured again, what is trusted, and what is said."""

from __future__ import annotations

import logging

import pytest
from test_closing import INPUTS, Machine, pruned, same
from test_prune import Small
from test_report import Clock, latency

import halp_fx
from halp_fx.latency.interleaving import NetworkTiming


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


@pytest.mark.parametrize(("found", "faults", "said"), [(1.3, 2000.0, True), (1.3, 0.0, False), (1.05, 2000.0, False)])
def test_page_faults_outside_of_the_timing_are_reported(monkeypatch, found, faults, said):
    machine = Machine(monkeypatch, overhead=0.0)
    machine.found, machine.faults = found, faults
    notes = pruned(0.6).halp.notes
    assert any("13 ms instead of 10 ms, with 2,000 page faults" in note for note in notes) == said


def test_a_network_first_timed_while_disturbed_turns_out_to_meet_the_budget(monkeypatch):
    machine, model = Machine(monkeypatch, overhead=0.1), Small().eval()
    first = []

    def disturbed_once(models, inputs, **settings):
        if first or len(models) > 1:
            return machine(models, inputs, **settings)
        first.append(1)
        return (NetworkTiming(20.0, 0.02, 9),)

    monkeypatch.setattr("halp_fx.latency.measured.interleaved", disturbed_once)
    monkeypatch.setattr("halp_fx.pruning.goals.untouched", lambda: False)
    small = halp_fx.prune(model, "15ms", INPUTS, latency=latency(Clock()), progress=False)
    assert same(small, model)
    assert "meets the budget as it is" in small.halp.notes[-1]


@pytest.mark.parametrize(("scatter", "waited", "trusted"), [(0.02, 0.0, True), (0.3, 0.0, False), (0.02, 0.4, True)])
def test_a_busy_machine_is_said(monkeypatch, scatter, waited, trusted, caplog):
    machine = Machine(monkeypatch, overhead=0.05)
    machine.scatter, machine.waited = scatter, waited
    with caplog.at_level(logging.WARNING, logger="halp_fx"):
        report = pruned(0.6, tolerance=0.1).halp
    assert report.trusted == trusted == (not report.busy)
    assert report.scatter == pytest.approx(scatter)
    said = [note for note in report.notes if "the machine was busy" in note]
    assert len(said) == (scatter > 0.1 or waited > 0.1)
    assert all("close other programs" in note for note in said)
    if not trusted:
        assert "not to be trusted" in said[0]
        assert "scattering by up to 30%" in report.busy
        assert any("not to be trusted" in record.message for record in caplog.records)
        assert machine.pairs == 3 * len(report.rounds), "disturbed measurements are repeated"
    if waited:
        assert "40% of the time" in said[0]


def test_a_dense_network_that_never_comes_to_rest_is_said(monkeypatch):
    machine = Machine(monkeypatch, overhead=0.0)
    machine.disturbed = [1.5, 1.2, 1.3]
    report = pruned(0.6, tolerance=1.0).halp
    assert report.busy.startswith("in 3 tries the dense network took 12 to 15 ms (at best 10)")
    machine.disturbed = [1.5]
    assert pruned(0.6, tolerance=1.0).halp.trusted


def test_a_refusal_on_a_busy_machine_says_so(monkeypatch):
    Machine(monkeypatch, overhead=0.5).scatter = 0.3
    with pytest.raises(halp_fx.InfeasibleError, match="But the machine was busy, so the times are not to be trusted"):
        pruned(0.05, min_keep=0.25)


def test_only_the_measurement_that_counts_says_whether_it_was_disturbed(monkeypatch):
    machine = Machine(monkeypatch, overhead=0.05)
    machine.disturbed = [1.5, 1.2, 1.3]
    report = pruned(0.6, tolerance=0.05).halp
    assert len(report.rounds) > 1, "too easy: the disturbed measurement met the budget"
    assert report.trusted
