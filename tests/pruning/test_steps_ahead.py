"""Steps are parts of one way: none takes what stays at its end, as that is seen when it is taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import halp_fx
from halp_fx.latency.costs import LayerCost, MacsCost
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


def pruned(budget, steps):
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(64, 3, 16, 16, generator=generator) for _ in range(4)]
    call = {"data": data, "latency": Launched(), "steps": steps, "progress": False}
    return halp_fx.prune(network(), budget, PICTURE, **call)


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


def _groups(question, branch):
    return next(b.groups for b in question.problem(0.0).branches if b.name == branch)
