"""Steps are parts of one way: none takes what stays at its end, as that is seen when it is taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import halp_fx
from halp_fx.errors import InfeasibleError
from halp_fx.latency.costs import LayerCost, MacsCost
from halp_fx.pruning import choosing
from halp_fx.pruning.choosing import Question

PICTURE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.a, self.m = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.b, self.n = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        nn.init.constant_(self.n.weight, scale)

    def forward(self, x):
        return x + self.n(self.b(torch.relu(self.m(self.a(x)))))


def network():
    torch.manual_seed(0)
    blocks = [Block(16, 0.3 + 0.1 * i) for i in range(4)]
    stem = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()


class Launched(LayerCost):
    """Each layer has its overhead, which widths do not change."""

    resource, unit = "macs", "MACs"

    def at(self, layer, n_in, n_out):
        found = MacsCost().at(layer, n_in, n_out)
        return found + 3e5 * bool(found)


def pruned(budget, steps, samples=64, model=None, **call):
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(samples, 3, 16, 16, generator=generator) for _ in range(4)]
    call = {"data": data, "latency": Launched(), "steps": steps, "progress": False, **call}
    return halp_fx.prune(model or network(), budget, PICTURE, **call)


@pytest.mark.parametrize("budget", [0.4, 0.5])
def test_small_steps_do_not_narrow_what_is_wide_when_branches_have_gone(budget):
    """A small step saves less than a branch costs: alone it would narrow layers, and the branches go later all the
    same, or other ones, or none though that loses less."""
    at_once, slowly = pruned(budget, 1).halp, pruned(budget, 8).halp
    assert len(slowly.dropped) == len(at_once.dropped)
    assert slowly.measured == pytest.approx(at_once.measured, rel=0.01)


def test_no_step_takes_what_stays_at_the_end_as_it_is_seen_then(monkeypatch):
    seen = []
    choose = Question.choose

    def watched(question, floor):
        found = choose(question, floor)
        seen.append((question, found.solution))
        return found

    monkeypatch.setattr(Question, "choose", watched)
    pruned(0.4, 8)
    steps = [(question, solution) for question, solution in seen if question.way < 1]
    assert len(steps) >= 6
    gone = 0
    for question, solution in steps:
        end = choose(Question(question.request, question.yardstick, question.network, 1.0), 0.0).solution
        assert set(solution.dropped) <= set(end.dropped)
        gone += len(solution.dropped)
        for name, width in end.widths.items():
            assert name in {g for b in solution.dropped for g in _groups(question, b)} or solution.widths[name] >= width
    assert gone


@pytest.mark.parametrize("solver", ["greedy", "uniform"])
def test_baselines_answer_steps_as_published(solver):
    """They find nothing in what the way of another method leaves them, and a budget that can be met was refused."""
    assert pruned(0.5, 3, solver=solver).halp.measured <= 0.5 * pruned(1.0, 1).halp.measured


def test_a_step_of_which_the_rest_of_the_way_leaves_nothing_takes_all_there_is(monkeypatch):
    """The solver finds no way within several budgets each time there is one."""
    part = []
    real_part, real_solve = choosing._part_of, choosing.solve

    def watched(end, problem):
        part.append(real_part(end, problem))
        return part[-1]

    def solve(problem, *args, **kwargs):
        if any(problem is p for p in part):
            raise InfeasibleError("nothing was found", 0.0)
        return real_solve(problem, *args, **kwargs)

    monkeypatch.setattr(choosing, "_part_of", watched)
    monkeypatch.setattr(choosing, "solve", solve)
    assert pruned(0.5, 2).halp.measured <= 0.5 * pruned(1.0, 1).halp.measured
    assert part


class OneSize(nn.Module):
    """Batches of a single size, and the example."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        if len(x) not in (1, 2, 128):
            raise RuntimeError(f"{len(x)} samples")
        return self.net(x)


def test_branches_are_valued_on_whole_batches_where_pieces_do_not_run(caplog):
    with caplog.at_level("INFO", "halp_fx"):
        report = pruned(0.5, 2, 128, OneSize()).halp
    assert "branches are not valued through the statistics of batches: 64 samples" in caplog.text
    assert "branches are valued by the channels that they add" not in caplog.text
    assert report.dropped


def _groups(question, branch):
    return next(b.groups for b in question.problem(0.0).branches if b.name == branch)
