"""The closing loop against a simulated machine: no clock decides whether a test passes."""

from __future__ import annotations

import math
import pickle
import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_prune import Small
from test_report import Clock, latency
from torch import nn

import halp_fx
from halp_fx.latency import CallableCost, MacsCost
from halp_fx.latency.calibration import Calibration
from halp_fx.latency.interleaving import NetworkTiming
from halp_fx.pruning.closing import sums_beside
from halp_fx.pruning.goals import make_goals
from halp_fx.pruning.networks import Candidate
from halp_fx.pruning.session import MAX_ROUNDS
from halp_fx.pruning.yardstick import Yardstick

INPUTS = torch.rand(2, 3, 8, 8)


class Machine:
    """Takes a time for a network that follows its number of parameters, raised by `overhead` of the dense network's.

    Attributes:
        law: share of the dense network's time -> the share that is measured; for compiled code, which layers do not add
            up to.
        scatter, waited: of the dense network's times.
        disturbed: factors on the dense network's time, one a measurement, while there are any; its share of the
            pruned one's time moves with it.
        pairs: how often a network was compared with the dense one.
        found, faults: the dense network's time while memory is handled as found, relative to 10 ms; page faults in it.
    """

    def __init__(self, monkeypatch, overhead):
        self.overhead = overhead
        self.law = lambda share: share
        self.disturbed = []
        self.pairs = 0
        self.faults = 0.0
        self.found = 1.0
        self.scatter, self.waited = 0.001, 0.0
        monkeypatch.setattr("halp_fx.latency.measured.interleaved", self)
        monkeypatch.setattr("halp_fx.pruning.goals.untouched", lambda: True)

    def __call__(self, models, inputs, keep_memory=True, **_):
        if not keep_memory:
            return (NetworkTiming(self.found * 10.0, 0.01, 9, faults=self.faults),)
        self.pairs += len(models) > 1
        counts = [sum(p.numel() for p in model.parameters()) for model in models]
        factor = self.disturbed.pop(0) if self.disturbed and len(models) > 1 else 1.0
        ms = [10.0 * self.law(self.overhead + (1 - self.overhead) * count / counts[0]) for count in counts]
        ms[0] *= factor
        return tuple(NetworkTiming(x, self.scatter * x, 9, share=x / ms[0], waited=self.waited) for x in ms)


def pruned(budget, **settings):
    settings = {"round_to": 1, "progress": False, **settings}
    return halp_fx.prune(Small().eval(), budget, INPUTS, latency=latency(Clock()), **settings)


def test_the_loop_closes_in_on_a_budget_that_layers_do_not_add_up_to(monkeypatch):
    Machine(monkeypatch, overhead=0.05)
    report = pruned(0.6, tolerance=0.03).halp
    assert abs(report.rounds[0].measured / report.budget - 1) > 0.03, "too easy: the first round already meets it"
    assert abs(report.measured / report.budget - 1) <= 0.03
    assert not any("budget" in note for note in report.notes)


COMPILED = {
    "root": math.sqrt,
    "square": lambda share: share**2,
    "steps": lambda share: math.ceil(share / 0.05) * 0.05,
    "jump": lambda share: share if share > 0.55 else share / 1.3,
}


@pytest.mark.parametrize("law", COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize("budget", [0.8, 0.7, 0.6, 0.4])
def test_the_loop_closes_in_where_the_network_is_no_sum_of_its_layers(monkeypatch, law, budget):
    Machine(monkeypatch, overhead=0.0).law = law
    report = pruned(budget).halp
    assert abs(report.measured / report.budget - 1) <= 0.02
    shares = ", ".join(f"{r.measured / 10:.1%}" for r in report.rounds)
    assert f"{len(report.rounds)} networks were measured on the way to the budget: {shares} of" in report.summary()


def test_where_the_calibration_asks_for_a_known_network_the_loop_looks_beside_it(monkeypatch):
    Machine(monkeypatch, overhead=0.05)
    report = pruned(0.6).halp
    monkeypatch.setattr("halp_fx.pruning.session.sums_beside", lambda *_: ())
    before = pruned(0.6).halp
    assert before.measured / before.budget < 0.98, "too easy: the calibration alone meets it"
    known = [r.measured for r in before.rounds]
    assert [r.measured for r in report.rounds[: len(known)]] == pytest.approx(known)
    assert abs(report.measured / report.budget - 1) <= 0.02


def test_what_the_calibration_alone_meets_stays(monkeypatch):
    """Eager networks, as a rule: the plan is that of its line through what was measured."""
    monkeypatch.setattr("halp_fx.pruning.session.sums_beside", None)
    Machine(monkeypatch, overhead=0.05)
    for budget in (0.8, 0.7, 0.5):
        report = pruned(budget).halp
        assert abs(report.measured / report.budget - 1) <= 0.02


def test_a_budget_between_two_steps_ends_with_the_closest_network_below(monkeypatch):
    Machine(monkeypatch, overhead=0.0).law = lambda share: min(math.ceil(share / 0.13) * 0.13, 1.0)
    report = pruned(0.6).halp
    assert report.measured == pytest.approx(5.2)
    assert 2 < len(report.rounds) <= MAX_ROUNDS
    (said,) = (note for note in report.notes if "undercut by 13.3%" in note)
    assert "the next wider network takes 65.0% of dense, where 60.0% are allowed" in said


def test_a_budget_that_scattered_times_do_not_come_close_to_is_not_blamed_on_widths(monkeypatch):
    machine = Machine(monkeypatch, overhead=0.0)
    machine.law = lambda share: min(math.ceil(share / 0.13) * 0.13, 1.0)
    machine.scatter = 0.4
    report = pruned(0.6).halp
    (said,) = (note for note in report.notes if "undercut" in note)
    assert not report.trusted
    assert "times that are not to be trusted led no closer" in said
    assert "round_to" not in said


def candidate(total, measured):
    return Candidate(None, total, measured, measured, None)


@given(st.floats(0.1, 1.0), st.lists(st.tuples(st.floats(1.0, 10.0), st.floats(0.1, 1.0)), min_size=1), st.data())
def test_sums_beside_a_network_lead_towards_the_budget_and_not_past_another(fraction, measured, data):
    candidates = [candidate(*row) for row in measured]
    known = data.draw(st.sampled_from(candidates))
    asked = known.total * data.draw(st.floats(1.0, 1.05))
    sums = list(sums_beside(asked, known, candidates, fraction))
    too_small = known.measured < fraction
    assert sums == sorted(sums, reverse=not too_small)
    for total in sums:
        assert (total >= asked) if too_small else (total <= asked)
        for other in candidates:
            if (other.measured > fraction) == (known.measured > fraction):
                continue
            assert not (asked < other.total <= total)
            assert not (total <= other.total < asked)


def test_a_budget_that_proves_out_of_reach_is_refused_with_the_smallest_network(monkeypatch):
    machine = Machine(monkeypatch, overhead=0.6)
    with pytest.raises(halp_fx.InfeasibleError, match=r"takes 6\.\d+ ms, measured") as caught:
        pruned(0.5, min_keep=0.25)
    assert machine.pairs > 1, "too easy: the layers call it out of reach"
    small = caught.value.network
    assert [len(rows) for rows in caught.value.plan.kept.values()] == [8, 8]
    assert small(INPUTS).shape == Small()(INPUTS).shape
    count = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in Small().parameters())
    assert caught.value.minimum == pytest.approx(10 * (0.6 + 0.4 * count))


def test_a_budget_out_of_reach_from_the_start_is_refused_by_measurement(monkeypatch):
    Machine(monkeypatch, overhead=0.5)
    with pytest.raises(
        halp_fx.InfeasibleError, match=r"allow takes 5\.\d+ ms, measured \(5\d\.\d% of dense\)"
    ) as caught:
        pruned(0.05, min_keep=0.25)
    assert 5.0 < caught.value.minimum < 6.0
    assert caught.value.groups


def test_a_gpu_that_waits_for_its_cpu_is_named(monkeypatch):
    Machine(monkeypatch, overhead=0.5)
    monkeypatch.setattr(halp_fx.MeasuredLatency, "launched", property(lambda self: True))
    layers = sum(latency(Clock()).by_layer(halp_fx.channel_groups(Small().eval(), INPUTS)).values())
    said = rf"in {1 - layers / 10:.0%} of the dense network's time the GPU waits for the CPU"
    assert any(said in note for note in pruned(0.8).halp.notes)
    with pytest.raises(halp_fx.InfeasibleError, match=said.replace("in", "In", 1)):
        pruned(0.05, min_keep=0.25)


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


def same(small, model):
    with torch.no_grad():
        return torch.equal(small(INPUTS), model(INPUTS))


@pytest.mark.parametrize("budget", ["1000ms", "10ms", "10.1 ms", 1.0, {"latency": "1s", "params": "100%"}], ids=str)
def test_a_budget_that_the_dense_network_meets_is_said_at_once(monkeypatch, budget):
    machine, clock, model = Machine(monkeypatch, overhead=0.1), Clock(), Small().eval()
    trained = []
    settings = {"steps": 3, "train_between": trained.append, "progress": False}
    small = halp_fx.prune(model, budget, INPUTS, latency=latency(clock), **settings)
    report = small.halp
    assert clock.calls == machine.pairs == 0
    assert not trained
    assert small is not model
    assert same(small, model)
    assert report.met
    assert report.dense == report.measured == 10.0
    assert report.notes[-1] == "the dense network meets the budget as it is: nothing was removed"
    assert [group.kept for group in report.groups] == [group.size for group in report.groups]
    assert "not scored" in report.summary()


@pytest.mark.parametrize("budget", ["1G", {"macs": "100%", "params": "1G"}], ids=str)
def test_a_counted_budget_that_the_dense_network_meets_is_said_at_once(budget):
    model = Small().train()
    small = halp_fx.prune(model, budget, INPUTS, latency="macs", progress=False)
    assert "meets the budget as it is" in small.halp.notes[-1]
    assert small.training
    assert same(small.eval(), model.eval())


def test_one_budget_that_is_met_does_not_meet_the_others():
    report = halp_fx.prune(Small(), {"macs": "1G", "params": "50%"}, INPUTS, latency="macs", progress=False).halp
    dense, budget, reached = report.extra["params"]
    assert 0.9 * budget < reached <= budget == 0.5 * dense


@pytest.mark.parametrize("tolerance", [0.02, 0.6])
def test_what_is_slower_than_the_dense_network_meets_no_budget(monkeypatch, tolerance):
    """A machine on which narrower layers take longer."""
    machine = Machine(monkeypatch, overhead=0.0)
    monkeypatch.setattr(machine, "overhead", 1.4)
    with pytest.raises(halp_fx.InfeasibleError, match=r"measured \(1\d\d\.\d% of dense\)"):
        pruned(0.05, min_keep=0.25)
    small = pruned(0.7, tolerance=tolerance)
    assert small.halp.measured > small.halp.dense
    assert not small.halp.met
    assert "of what the dense one takes" in small.halp.notes[-1]


def test_a_budget_that_widths_leave_unspent_says_why(monkeypatch):
    Machine(monkeypatch, overhead=0.0)
    report = pruned(0.6, round_to=16, tolerance=0.01).halp
    assert report.met
    assert "undercut by" in report.notes[-1]
    assert "round_to" in report.notes[-1]


@pytest.mark.parametrize(("steps", "round_to"), [(1, 16), (3, 16), (1, 1)])
def test_a_counted_budget_that_is_left_unspent_says_what_would_spend_it(steps, round_to):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 3)).eval()
    data = [(torch.randn(8, 3, 8, 8), torch.randn(8, 4, 2, 2)) for _ in range(4)]
    settings = {"data": data, "loss_fn": nn.functional.mse_loss, "latency": "macs", "progress": False}
    report = halp_fx.prune(model, 0.4, data[0][0], steps=steps, round_to=round_to, tolerance=1e-3, **settings).halp
    (said,) = (note for note in report.notes if "undercut by" in note)
    assert ("an earlier step took" in said) == (steps > 1)
    assert ("round_to=1 makes them finer" in said) == (round_to > 1)


def test_a_budget_that_another_leaves_unspent_says_which(monkeypatch):
    Machine(monkeypatch, overhead=0.0)
    report = pruned({"latency": 0.8, "params": 0.2}).halp
    assert report.met
    assert report.measured < 0.7 * report.dense
    (said,) = (note for note in report.notes if "undercut by" in note)
    assert re.search(r"the budget of params, of which (9\d\.\d|100\.0)% are used, has no room", said)
    assert "round_to" not in said


def test_a_published_method_leaves_what_it_leaves():
    report = halp_fx.prune(Small(), 0.6, INPUTS, latency="macs", solver="uniform", round_to=16, progress=False).halp
    assert "solver='uniform' answers as published" in report.notes[-1]


class Unlike(MacsCost):
    """A cost of which the tables miss a part: a fifth that does not shrink."""

    def total(self, coupling, widths=None):
        return 0.8 * super().total(coupling, widths) + 0.2 * super().total(coupling)


def test_a_counted_cost_that_is_not_the_sum_of_its_tables_is_closed_in_on():
    report = halp_fx.prune(Small(), 0.5, INPUTS, latency=Unlike(), round_to=1, progress=False).halp
    assert len(report.rounds) > 1
    assert report.rounds[0].measured > report.budget
    assert 0.95 * report.budget < report.measured <= report.budget
    assert report.met


def test_a_counted_budget_that_is_missed_is_refused_and_not_an_index_error():
    with pytest.raises(halp_fx.InfeasibleError, match=r"takes .* \(2\d\.\d% of dense\)") as caught:
        halp_fx.prune(Small(), 0.1, INPUTS, latency=Unlike(), round_to=1, progress=False)
    assert caught.value.network(INPUTS).shape == (2, 5)


@pytest.mark.parametrize("step", [3, 7, 11])
def test_a_staircase_is_met_exactly(step):
    cost = CallableCost(lambda layer, n, m: float(math.ceil(n / step) * math.ceil(max(m, 1) / step)), "tiles", "tiles")
    report = halp_fx.prune(Small(), 0.5, INPUTS, latency=cost, round_to=1, progress=False).halp
    assert report.measured <= report.budget
    assert report.met
    assert report.measured > 0.85 * report.budget or "undercut" in report.notes[-1]


@dataclass(frozen=True)
class Refused:
    """A budget out of reach, and what the message says."""

    budget: object
    latency: object
    words: str
    settings: dict


REFUSALS = [
    Refused(1e-3, "macs", r"the smallest that min_keep and round_to allow takes [\d.]+ [kM] MACs \(", {}),
    Refused("1k", "params", r"What may help: a lower min_keep \(now 0\.5\)", {"min_keep": 0.5}),
    Refused(1e-6, "macs", r"Even with one channel in each group it would take", {}),
    Refused(1e-3, "memory", r"takes [\d.]+ kB \(", {}),
    Refused({"macs": 0.5, "params": 1e-3}, "macs", r"params within the budget.*min_keep", {}),
    Refused({"macs": 1e-3, "params": 0.5}, "macs", r"takes .* MACs \(", {}),
    Refused(1e-3, MacsCost(), r"What may help: a larger budget\. Even", {}),
    Refused(1e-3, "macs", r"fewer entries in ignore \(1 groups", {"ignore": ["a"]}),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda c: f"{c.budget} {c.latency}"[:40])
def test_what_cannot_be_met_is_refused_with_what_may_help(case):
    with pytest.raises(halp_fx.InfeasibleError, match=case.words) as caught:
        halp_fx.prune(Small(), case.budget, INPUTS, latency=case.latency, progress=False, **case.settings)
    assert caught.value.minimum > 0
    assert "What may help" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.minimum, again.plan) == (str(caught.value), caught.value.minimum, caught.value.plan)


def test_branches_are_advised_where_there_are_some():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32, 5)

        def forward(self, x):
            x = self.a(x).relu()
            return self.fc((x + self.b(x)).mean((2, 3)))

    with pytest.raises(halp_fx.InfeasibleError, match="What may help: branches=True, which"):
        halp_fx.prune(Residual(), 1e-3, INPUTS, latency="macs", progress=False)


def test_a_time_out_of_reach_among_several_budgets_is_refused_by_measurement(monkeypatch):
    Machine(monkeypatch, overhead=0.5)
    with pytest.raises(halp_fx.InfeasibleError, match=r"measured \(5\d\.\d% of dense\).*runtime='inductor'") as caught:
        pruned({"latency": 0.05, "params": 0.9}, min_keep=0.25)
    assert 5.0 < caught.value.minimum < 6.0
    assert caught.value.network is not None


def test_what_layers_leave_out_of_the_network_s_time_partly_stays(monkeypatch):
    """The calibration takes a third of it to stay: the same unit for both, whatever the unit."""
    coupling = halp_fx.channel_groups(Small().eval(), INPUTS)
    for unit in (10.0, 0.01):
        yardstick = Yardstick(make_goals(0.5), coupling, Small(), ((INPUTS,), {}), dense=unit, scale=unit)
        yardstick.learn(0.7 * unit, 1.0)
        assert yardstick.predict(0.35 * unit) == pytest.approx(0.55)
        plain = Calibration().with_point(0.7 * unit, unit)
        assert plain.predict(0.35 * unit) == pytest.approx(0.55 * unit)
