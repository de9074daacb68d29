"""pareto: every point as `prune` would have it, in the order of the budgets, from one scoring."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_closing import Machine
from test_prune import Small
from test_report import Clock, latency
from test_solver_property import random_problem
from torch import nn

import halp_fx
from halp_fx import BudgetError, InfeasibleError, MacsCost, ModelError
from halp_fx.latency import CallableCost
from halp_fx.latency.pricing import PriceList
from halp_fx.pruning.evenness import _common_share

X = torch.rand(2, 3, 8, 8)
BUDGETS = [0.5, "80%", 0.3, 0.65, 1.0]


def curve_of(budgets=BUDGETS, model=None, **settings):
    settings = {"latency": MacsCost(), "round_to": 1, "progress": False} | settings
    return halp_fx.pareto(model or Small().eval(), budgets, X, **settings)


def data(count=4):
    draw = torch.Generator().manual_seed(0)
    return [torch.rand(8, 3, 8, 8, generator=draw) for _ in range(count)]


@pytest.mark.parametrize("given", [{}, {"data": data()}], ids=["no data", "data"])
def test_every_point_meets_its_budget_and_the_curve_falls(given):
    curve = curve_of(**given)
    assert [p.asked for p in curve.points] == ["1.0", "80%", "0.65", "0.5", "0.3"]
    assert all(p.met for p in curve.points)
    assert not curve.refused
    shares = [p.share for p in curve.points]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == 5
    assert all(p.parameters < curve.points[0].parameters for p in curve.points[1:])
    for point in curve.points:
        counted = MacsCost().total(halp_fx.channel_groups(curve.network(point), X))
        assert point.measured == pytest.approx(counted, rel=1e-12)


def test_without_data_points_are_those_of_prune():
    torch.manual_seed(0)
    model = Small().eval()
    curve = curve_of(model=model)
    for point, budget in zip(curve.points[1:], (0.8, 0.65, 0.5, 0.3), strict=True):
        alone = halp_fx.prune(model, budget, X, latency=MacsCost(), round_to=1, progress=False, solver="lagrangian")
        assert point.plan == alone.halp.plan
        assert (point.predicted, point.measured) == (alone.halp.predicted, alone.halp.measured)
        made = curve.network(point)
        assert all(torch.equal(a, b) for a, b in zip(made.parameters(), alone.parameters(), strict=True))
        assert made.halp.parameters == alone.halp.parameters
        assert made.halp.parameters[1] == sum(p.numel() for p in made.parameters())


def test_one_scoring_without_data_and_one_way_with_it(monkeypatch):
    calls = []
    real = halp_fx.pruning.standing.score
    monkeypatch.setattr("halp_fx.pruning.standing.score", lambda *a, **k: calls.append(1) or real(*a, **k))
    curve_of()
    assert len(calls) == 1
    calls.clear()
    curve_of(data=data())
    many = len(calls)
    calls.clear()
    halp_fx.prune(Small().eval(), 0.3, X, data=data(), latency=MacsCost(), round_to=1, progress=False)
    assert many <= len(calls) + len(BUDGETS) - 1  # At most one step more where a budget lies between two of them.


def test_with_data_each_network_is_part_of_the_one_before():
    points = curve_of(data=data()).points
    for wide, narrow in pairwise(points[1:]):
        for group, kept in narrow.plan.items():
            assert set(kept) <= set(wide.plan.get(group, kept))


def test_a_chosen_network_is_re_estimated_compensated_and_as_the_original():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16),
                          nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))  # fmt: skip
    model.train()
    before = copy.deepcopy(model.state_dict())
    batches = [torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(1)) for _ in range(4)]
    plain, better = (curve_of([0.6, 0.4], model, data=batches, compensate=c) for c in (False, True))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    small = better.network(0.5)
    assert (small.halp.plan, small.halp.measured) == (better.points[1].plan, better.points[1].measured)
    assert small.training
    with torch.no_grad():
        model.eval()
        off = [
            float((n.eval()(batches[0]) - model(batches[0])).square().mean())
            for n in (better.network(0.4), plain.network(0.4))
        ]
    assert off[0] < off[1]
    again = halp_fx.recalibrate(plain.network(0.4), batches)
    assert torch.equal(plain.network(0.4)[1].running_mean, again[1].running_mean)


def test_only_networks_that_somebody_looks_at_are_compensated():
    """Ten budgets of ResNet-18 took eleven times what one did: wide layers are large systems."""
    batches = [torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))]
    passed, looked_at = (
        curve_of([0.6, 0.4], Small().eval(), data=batches, compensate=True, score_fn=f)
        for f in (None, lambda network: 1.0)
    )
    assert "compensate" not in passed.seconds
    assert looked_at.seconds["compensate"] > 0
    few = [note for note in passed.network(0.4).halp.notes if "16 samples" in note]
    assert few, passed.network(0.4).halp.notes


def test_a_network_is_made_as_its_curve_was_where_that_is_over():
    """The curve was computed under autocast; its networks are asked for later."""
    model = Small().eval()
    with torch.autocast("cpu", torch.bfloat16):
        curve = curve_of([0.5], model, data=data())
        within = curve.network(0.5)
    outside = curve.network(0.5)
    assert all(torch.equal(v, outside.state_dict()[n]) for n, v in within.state_dict().items())


def test_times_are_measured_and_learnt_from(monkeypatch):
    """Layers do not add up to the network: what one budget shows serves the next."""
    machine = Machine(monkeypatch, overhead=0.2)
    curve = halp_fx.pareto(
        Small().eval(), [0.9, 0.8, 0.7, 0.6], X, latency=latency(Clock()), round_to=1, progress=False, tolerance=0.05
    )
    assert all(p.met for p in curve.points)
    assert curve.unit == "ms"
    pairs, machine.pairs = machine.pairs, 0
    for budget in (0.9, 0.8, 0.7, 0.6):
        halp_fx.prune(Small().eval(), budget, X, latency=latency(Clock()), round_to=1, progress=False, tolerance=0.05)
    assert pairs < machine.pairs
    assert curve.network(0.8).halp.layers


def test_a_larger_network_that_takes_less_is_taken(monkeypatch):
    """A cost that falls by a step: the point of the smaller budget may not take more."""
    cost = CallableCost(lambda layer, n_in, n_out: n_in * (n_out or 1) + (9 if n_out % 2 else 0))
    points = curve_of([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], latency=cost).points
    costs = [p.measured for p in points]
    assert costs == sorted(costs, reverse=True)
    assert all(p.met for p in points)


def test_what_cannot_be_reached_is_named_and_the_rest_is_there():
    curve = curve_of([0.5, 0.001, 0.0001])
    assert [p.asked for p in curve.points] == ["0.5"]
    assert set(curve.refused) == {"0.001", "0.0001"}
    assert "cannot be reached" in curve.refused["0.001"]
    assert curve.refused["0.0001"] == "it is below 0.001, which cannot be reached"
    assert str(curve).count("cannot be reached") == 2  # Each is said once, and in few words.
    assert "0.001: a budget of" in str(curve)
    with pytest.raises(InfeasibleError):
        curve_of([0.001])


def test_scores_of_the_caller():
    seen = []

    def score(model):
        seen.append(sum(p.numel() for p in model.parameters()))
        return float(seen[-1])

    curve = curve_of(score_fn=score)
    assert curve.dense_score == seen[0]
    assert [p.score for p in curve.points] == [curve.dense_score, *seen[1:]]
    assert "score" in str(curve)
    assert "score" in curve.rows()[0]


def test_asking_for_a_point():
    curve = curve_of()
    assert curve.at(0.5).asked == "0.5"
    assert curve.at("70%").asked == "0.65"
    assert curve.at(f"{curve.dense:.0f}").asked == "1.0"
    with pytest.raises(BudgetError, match="below every point"):
        curve.at(0.1)
    with pytest.raises(BudgetError, match="malformed"):
        curve.network("much")


def test_as_a_table_json_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    curve = curve_of()
    text = str(curve)
    assert all(p.asked in text for p in curve.points)
    stored = json.loads(curve.to_json())
    assert [row["asked"] for row in stored["points"]] == [p.asked for p in curve.points]
    plan = halp_fx.Plan.from_json(json.dumps(stored["points"][-1]["plan"]))
    assert plan == curve.points[-1].plan
    assert curve.plot(tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("budgets", "match"),
    [
        ([], "must be a list"),
        (0.5, "must be a list"),
        ("50%", "must be a list"),
        ([{"macs": 0.5}], "several resources"),
        ([0.5, 0.5], "twice"),
        ([0.5, 1.5], "not between 0 and 1"),
        ([0.5, "3 ms"], "not a unit"),
    ],
)
def test_bad_budgets(budgets, match):
    with pytest.raises(BudgetError, match=match):
        curve_of(budgets)


def test_in_a_job_of_several_processes(monkeypatch):
    monkeypatch.setattr("halp_fx.pruning.distributed.Team.here", lambda: halp_fx.pruning.distributed.Team(1, 4))
    with pytest.raises(ModelError, match="this job has 4"):
        curve_of()


def test_the_common_share_is_the_largest_that_fits():
    """The widths of even narrowness: priced all at once, against one by one."""
    for seed in range(6):
        problem = random_problem("budgets", seed, 3, whole=True)
        groups = problem.groups

        def fits(share, groups=groups, problem=problem):
            widths = {n: int(g.widths[np.abs(g.widths - share * g.widths[-1]).argmin()]) for n, g in groups.items()}
            return problem.fits(problem.evaluate(widths)[1])

        found = _common_share(groups, PriceList.of(problem), problem.budgets)
        assert found == 0 or fits(found)
        assert not any(fits(share) for share in np.linspace(found + 1 / 256, 1, 40)) or found > 1 - 1 / 256


def test_points_are_held_against_the_dense_network_that_was_timed_beside_them():
    """On a busy machine its time differs from one budget to the next."""
    curve = curve_of(["80%", "50%"])
    slow = replace(curve.points[0], budget=8.8, predicted=8.8, measured=8.8, dense=11.0, busy="other programs ran")
    fast = replace(curve.points[1], budget=5.0, predicted=5.0, measured=5.0, dense=10.0)
    curve = replace(curve, unit="ms", dense=10.0, points=(slow, fast), _resource="latency")
    assert curve.at("80%") is slow
    assert curve.at("79%") is fast
    with pytest.raises(BudgetError, match=r"4.00 ms .* takes 5.00 ms \(50.0% of dense\)"):
        curve.at(0.4)
    assert "80%: times that are not to be trusted: other programs ran" in str(curve)
    assert "50%: times" not in str(curve)
    assert [row["trusted"] for row in curve.rows()] == [False, True]
