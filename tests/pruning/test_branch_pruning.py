"""`prune(..., branches=True)`: residual branches as options of the solver, in the report and in `explain`."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from oracle import relative_error
from torch.nn import functional as F

import halp_fx
from halp_fx import BudgetError, MacsCost, Plan
from halp_fx.coupling.branches import without
from halp_fx.coupling.residual import find_branches
from halp_fx.pruning import choosing, dropping
from halp_fx.pruning.networks import Network
from halp_fx.scoring.saliency import Saliency


def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None, num_classes=10).eval()


PICTURE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_prune_reaches_with_branches_what_it_cannot_without():
    model = resnet()
    call = {"latency": MacsCost(), "min_keep": 0.5, "progress": False}
    with pytest.raises(BudgetError):
        halp_fx.prune(model, {"macs": 0.25, "params": 0.25}, PICTURE, **call)
    small = halp_fx.prune(model, {"macs": 0.25, "params": 0.25}, PICTURE, branches=True, **call)
    report = small.halp
    assert report.dropped
    assert report.measured <= report.budget
    assert report.extra["params"][2] == sum(p.numel() for p in small.parameters()) <= report.extra["params"][1]
    assert report.measured == MacsCost().total(halp_fx.channel_groups(small, PICTURE))
    assert report.rounds[-1].gap <= 1e-3
    assert {name for name, state in report.branches.items() if state == "dropped"} == set(report.dropped)
    for name in report.dropped:
        assert name in report.summary()
        assert not [k for k in small.state_dict() if k.startswith(f"{name}.conv")]
    assert "neither summand" in report.summary()
    with torch.no_grad():
        assert relative_error(small(PICTURE), halp_fx.zero(model, report.plan, PICTURE)(PICTURE)) < 1e-3
    fresh = halp_fx.rewrite(resnet(), Plan.from_json(report.plan.to_json()), PICTURE)
    fresh.load_state_dict(small.state_dict())
    torch.testing.assert_close(fresh(PICTURE), small(PICTURE))
    again = halp_fx.prune(small, 0.8, PICTURE, branches=True, **call)
    assert again.halp.measured <= again.halp.budget
    assert again(PICTURE).shape == small(PICTURE).shape


def test_prune_in_steps_drops_the_branch_that_adds_nothing():
    model = resnet()
    with torch.no_grad():
        for name, parameter in model.layer1[1].named_parameters():
            if name.startswith("bn2"):
                parameter.zero_()
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(2, 3, 64, 64, generator=generator), torch.tensor([1, 2])) for _ in range(2)]
    seen = []
    small = halp_fx.prune(
        model,
        0.4,
        PICTURE,
        data=data,
        loss_fn=F.cross_entropy,
        latency=MacsCost(),
        branches=True,
        steps=3,
        train_between=seen.append,
        recalibrate=False,
        progress=False,
    )
    assert "layer1.1" in small.halp.dropped
    assert "layer1.1.conv1" in {g.name for g in small.halp.groups if g.kept == 0}
    assert len(seen) == 2
    assert small.halp.measured <= small.halp.budget
    with torch.no_grad():
        assert relative_error(small(PICTURE), halp_fx.zero(model, small.halp.plan, PICTURE)(PICTURE)) < 1e-3


class Idle(torch.nn.Module):
    """A branch that adds nothing, as zero-initialised layers leave it."""

    def __init__(self):
        super().__init__()
        self.a, self.out = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Linear(16, 4)
        self.b = torch.nn.Sequential(torch.nn.Conv2d(16, 12, 1), torch.nn.ReLU(), torch.nn.Conv2d(12, 16, 1))
        for tensor in self.b[2].parameters():
            torch.nn.init.zeros_(tensor)

    def forward(self, x):
        x = self.a(x).relu()
        return self.out((x + self.b(x)).mean((2, 3)))


def test_without_data_a_branch_that_adds_nothing_goes_first():
    model, x = Idle().eval(), PICTURE[..., :8, :8]
    small = halp_fx.prune(model, 0.6, x, latency=MacsCost(), branches=True, round_to=1, progress=False)
    assert small.halp.dropped == ("b",)
    assert small.halp.met
    assert small.a.out_channels == 16  # What it cost is enough.
    curve = halp_fx.pareto(model, [0.6, 0.4], x, latency=MacsCost(), branches=True, round_to=1, progress=False)
    assert [p.plan.dropped for p in curve.points] == [("b",), ("b",)]
    assert all(p.met for p in curve.points)


@pytest.mark.parametrize("options", [{"data": None}, {"branches": False}])
def test_branches_stay_where_their_loss_is_not_measured_or_by_request(options):
    small = halp_fx.prune(Idle().eval(), 0.6, SMALL, **{**MEASURED, **options})
    assert small.halp.dropped == ()
    assert small.halp.branches == {}


SMALL = PICTURE[..., :8, :8]

MEASURED = {
    "data": [(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4)],
    "latency": "macs", "round_to": 1, "recalibrate": False, "progress": False,
}  # fmt: skip


def test_with_data_a_branch_that_loses_nothing_goes_unless_a_width_in_it_is_asked_for():
    model, limits = Idle().eval(), {"b.0": (0.25, 1.0)}
    assert halp_fx.prune(model, 0.6, SMALL, **MEASURED).halp.dropped == ("b",)
    held = halp_fx.prune(model, 0.6, SMALL, limits=limits, **MEASURED).halp
    assert (held.dropped, held.branches) == ((), {"b": "limits: 'b.0' has a smallest width"})
    assert halp_fx.prune(model, 0.6, SMALL, limits=limits, branches=True, **MEASURED).halp.dropped == ("b",)


def test_a_branch_that_is_not_found_in_a_stream_of_one_channel_stays():
    model = Idle().eval()
    torch.nn.init.normal_(model.b[2].weight)
    call = {**MEASURED, "steps": 4, "min_keep": 1}
    report = halp_fx.prune(model, 0.04, SMALL, limits={"a": 1}, branches=True, **call).halp
    assert report.met
    assert len(report.plan["a"]) == 1
    assert report.branches["b"] in ("kept", "dropped")


def test_ignored_branches_stay():
    model = resnet()
    small = halp_fx.prune(
        model,
        0.42,
        PICTURE,
        latency=MacsCost(),
        min_keep=0.5,
        branches=True,
        ignore=["layer2.1.bn1", "layer4"],
        progress=False,
    )
    assert not {"layer2.1", "layer4.1"} & set(small.halp.dropped)
    assert "ignored" in small.halp.branches["layer2.1"]
    assert "ignored" in small.halp.branches["layer4.1"]


def test_explain_lists_branches():
    text = halp_fx.explain(resnet(), PICTURE)
    assert "branch that may be dropped" in text
    assert "layer4.1.conv1" in text
    assert "neither summand leads to the other" in text


def labelled(count, size=16):
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([1, 2] * (size // 2))
    return [(torch.randn(size, 3, 32, 32, generator=generator), labels) for _ in range(count)]


@pytest.mark.parametrize("size", [16, 8])
def test_a_branch_is_worth_what_the_network_measurably_loses_without_it(monkeypatch, size):
    """With the statistics of the batch that is compared; where it is small, with those of as many samples beside."""
    model, data, problems = resnet(), labelled(2, size), []
    with torch.no_grad():  # As of a trained network: it tells its images apart, and each branch adds to what is there.
        for block in (b for layer in (model.layer1, model.layer2, model.layer3, model.layer4) for b in layer):
            block.bn2.weight.fill_(0.3)
    halp_fx.recalibrate(model, data)
    build = choosing.build_problem
    monkeypatch.setattr(choosing, "build_problem", lambda *a, **k: problems.append(build(*a, **k)) or problems[-1])
    call = {"data": data, "latency": "macs", "branches": True, "progress": False}
    monkeypatch.setattr("halp_fx.pruning.dropping.SAMPLES", size)  # One batch each.
    halp_fx.prune(model, 0.6, PICTURE, steps=1, **call)
    problem = problems[0]
    assert len(problem.branches) >= 4
    widths = {name: int(group.widths[-1]) for name, group in problem.groups.items()}
    whole, _ = problem.evaluate(widths)

    def outputs(*dropped):
        other = halp_fx.rewrite(model, Plan({}, dropped), PICTURE)
        with torch.no_grad():
            own = other.train() if size == 16 else halp_fx.recalibrate(other, data[1:])
            return own(data[0][0]).double()

    with torch.no_grad():
        dense = outputs() if size == 16 else model(data[0][0]).double()
    told = _divergence(dense, dense.softmax(1).mean(0).log().expand_as(dense)).mean()
    parts, certain = [], 0
    for branch in problem.branches:
        lost = _half_variance(dense, outputs(branch.name)) - _half_variance(dense, outputs())
        error = lost.std() / len(lost) ** 0.5
        certain += bool(lost.mean() > error)
        gone = (_divergence(dense, outputs(branch.name)) - _divergence(dense, outputs())).mean() / told
        parts.append(float(gone))
        expected = (lost.mean().clamp_min(0) + error) / (1 - gone.clamp(0, 63 / 64))
        without, _ = problem.evaluate(widths, [branch.name])
        assert whole - without == pytest.approx(float(expected), rel=1e-4, abs=1e-7)
        # Narrowing what is in it loses what the groups' own values say.
        (group,) = branch.groups
        narrow = widths | {group: int(problem.groups[group].widths[0])}
        own = problem.groups[group].value
        assert whole - problem.evaluate(narrow)[0] == pytest.approx(own[-1] - own[0], rel=1e-9)
    assert certain
    assert any(0.05 < gone < 63 / 64 for gone in parts)


def _divergence(of, other):
    log_p = of.log_softmax(1)
    return (log_p.exp() * (log_p - other.log_softmax(1))).sum(1)


def _half_variance(of, other):
    """Of the change of the scores, under the classes of the first."""
    p, change = of.softmax(1), other - of
    return ((p * change.square()).sum(1) - (p * change).sum(1).square()) / 2


def test_what_is_lost_without_a_branch_is_measured_again_where_others_went(monkeypatch):
    """Shares of what all groups are worth; the largest that was ever seen counts."""
    told = iter([{"a": 1.0, "b": 4.0, "c": 2.0}, {"b": 3.0, "c": 6.0}])
    monkeypatch.setattr(dropping, "_losses_without", lambda *_: next(told))
    branches = [SimpleNamespace(name=name) for name in "abc"]
    model, request = resnet(), None
    found = dropping.shares_lost(Network(model, Plan()), request, None, branches, 10.0)
    assert found == {"a": 0.1, "b": 0.4, "c": 0.2}
    known = Saliency({}, "fisher", dropping=found)
    narrow, gone = Plan({"layer1.0.conv1": (0, 1)}), Plan({}, ("a",))
    assert dropping.shares_lost(Network(model, narrow, None, known, narrow), request, None, branches, 20.0) == found
    again = dropping.shares_lost(Network(model, gone, None, known, gone), request, None, branches[1:], 20.0)
    assert again == {"b": 0.4, "c": 0.3}


def test_values_of_branches_grow_with_those_of_groups():
    worth = {"one": np.array([1.0, 3.0]), "two": np.array([2.0]), "quiet": np.array([9.0]), "branch b": np.array([5.0])}
    saliency = Saliency(worth, "fisher", silent=("quiet",), dropping={"b": 0.5})
    assert saliency.without == {"b": 3.0}


@pytest.mark.parametrize("scatter", [0.0, 1e-9])
def test_branches_that_lose_nothing_go_only_as_far_as_the_budget_needs(monkeypatch, scatter):
    """What was measured of them is nothing: none may be gone that the budget has room for."""
    model = resnet()
    coupling = halp_fx.channel_groups(model, PICTURE)
    named = {b.name: b for b in find_branches(coupling).removable}
    monkeypatch.setattr("halp_fx.pruning.dropping._losses_without", lambda *a: dict.fromkeys(named, scatter))
    call = {"data": labelled(1), "latency": "macs", "branches": True, "progress": False}
    curve = halp_fx.pareto(model, [0.95, 0.6], PICTURE, **call)
    small = halp_fx.prune(model, 0.6, PICTURE, steps=1, **call).halp
    for plan, budget in [*((point.plan, point.budget) for point in curve.points), (small.plan, small.budget)]:
        assert plan.dropped
        for name in plan.dropped:
            rest = without(coupling, [named[other] for other in plan.dropped if other != name])
            assert MacsCost().total(rest, coupling.widths(plan)) > budget


def test_a_branch_that_does_not_fit_back_in_is_said_to_leave_a_budget_unspent(monkeypatch):
    """Whole it is worth nothing, narrow it is worth less, and nothing else is as large."""
    monkeypatch.setattr("halp_fx.pruning.dropping._losses_without", lambda *a: {"b": 0.0})
    data = [(torch.randn(8, 3, 8, 8), torch.randint(4, (8,)))]
    model = Idle().eval()
    torch.nn.init.normal_(model.b[2].weight)
    settings = {"data": data, "latency": "macs", "branches": True, "recalibrate": False, "progress": False}
    report = halp_fx.prune(model, 0.9, PICTURE[..., :8, :8], **settings).halp
    assert report.dropped == ("b",)
    (said,) = (note for note in report.notes if "undercut" in note)
    assert "the dropped branches (b) would have to be so narrow that more is lost" in said


def test_where_outputs_do_not_compare_branches_are_worth_what_they_add(monkeypatch):
    seen = []
    inner = halp_fx.pruning.dropping._losses_without
    monkeypatch.setattr("halp_fx.pruning.dropping._losses_without", lambda *a: seen.append(inner(*a)) or seen[-1])
    call = {"data": labelled(1), "steps": 1, "latency": "macs", "branches": True, "progress": False}
    halp_fx.prune(resnet(), 0.6, PICTURE, **call)
    assert len(seen[0]) >= 4
    monkeypatch.setattr("halp_fx.scoring.divergence.tensors_in", lambda output: [])
    assert halp_fx.prune(resnet(), 0.6, PICTURE, **call).halp.met
    assert seen[1] == {}
