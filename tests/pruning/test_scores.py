"""The caller's own score in the loop: reported after every step, and a limit to what a step may cost."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from test_distributed import X, Y, network

import halp_fx
from halp_fx import BudgetError, MacsCost, Plan, SaliencyError

CALL = {"latency": MacsCost(), "round_to": 1, "progress": False, "data": [(X, Y)]}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("data", [CALL["data"], None])
def test_the_report_has_the_score_of_every_step(data):
    seen = []

    def score_fn(model):
        seen.append(parameters(model))
        return float(len(seen))

    steps = 3 if data is not None else 1
    small = halp_fx.prune(network(), 0.4, X[:1], steps=steps, score_fn=score_fn, **{**CALL, "data": data})
    costs, scores = zip(*small.halp.scores, strict=True)
    assert scores == tuple(range(1, steps + 2))
    assert seen[0] == parameters(network())
    assert seen[-1] == parameters(small)
    assert costs[0] == small.halp.dense
    assert costs[-1] == small.halp.measured
    assert sorted(costs, reverse=True) == list(costs)
    assert "score" in small.halp.summary()


@pytest.mark.parametrize("bad_step", [1, 2, 3, 4])
def test_where_the_score_falls_the_network_of_the_step_before_comes_back(bad_step):
    made = []

    def score_fn(model):
        made.append(model)
        return 0.5 if len(made) > bad_step else 0.9

    small = halp_fx.prune(network(), 0.3, X[:1], steps=4, score_fn=score_fn, max_drop=0.1, **CALL)
    assert len(made) == bad_step + 1
    assert small.halp.met is False
    assert small.halp.notes[-1].startswith("stopped before the budget")
    assert "0.4 below" in small.halp.notes[-1]
    before = made[bad_step - 1]
    assert parameters(small) == parameters(before)
    # What is said of it is true of it.
    assert small.halp.measured == MacsCost().total(halp_fx.channel_groups(small, X[:1]))
    twin = halp_fx.rewrite(network(), small.halp.plan, X[:1])
    assert [p.shape for p in twin.parameters()] == [p.shape for p in small.parameters()]
    if bad_step == 1:
        assert small.halp.plan == Plan()
        assert small is not before


def test_a_drop_that_is_allowed_is_none():
    values = iter([0.9, 0.85, 0.8, 0.8])
    small = halp_fx.prune(network(), 0.4, X[:1], steps=3, score_fn=lambda m: next(values), max_drop=0.1 + 1e-9, **CALL)
    assert small.halp.met


def test_the_network_of_the_caller_is_left_alone():
    model = network().train()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    halp_fx.prune(model, 0.4, X[:1], steps=2, score_fn=lambda m: m.eval()(X).sum().item(), **CALL)
    assert all(m.training for m in model.modules())
    assert all((model.state_dict()[name] == t).all() for name, t in state.items())


def zeroed(model):
    for parameter in model.parameters():
        parameter.data.zero_()


@pytest.mark.parametrize("change", [lambda m: m.half(), zeroed, lambda m: m.requires_grad_(False)], ids=str)
def test_what_a_score_does_to_a_network_is_done_to_a_copy(change):
    def score_fn(net):
        change(net)
        return 1.0

    model = network()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    small = halp_fx.prune(model, 0.4, X[:1], steps=2, score_fn=score_fn, **CALL)
    for net in (model, small):
        assert all(p.dtype is torch.float32 and p.requires_grad for p in net.parameters())
    assert all(torch.equal(model.state_dict()[name], t) for name, t in state.items())
    plain = halp_fx.prune(model, 0.4, X[:1], steps=2, score_fn=lambda m: 1.0, **CALL)
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize(
    "score",
    [True, np.float32(0.5), torch.tensor(0.5), torch.tensor([0.5])],
    ids=str,
)
def test_scores_of_other_kinds(score):
    small = halp_fx.prune(network(), 0.4, X[:1], score_fn=lambda m: score, max_drop=0.0, **CALL)
    assert small.halp.met
    assert all(type(s) is float and s == float(score) for _, s in small.halp.scores)


@pytest.mark.parametrize(
    ("score", "said"),
    [(None, "None"), ("good", "'good'"), ({"accuracy": 1.0}, "{'accuracy': 1.0}"), (1j, "1j"),
     (float("inf"), "inf"), (torch.zeros(3), r"a Tensor of shape \(3,\)"),
     (torch.tensor(float("nan")), r"tensor\(nan\)")],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("call", ["prune", "pareto"])
def test_what_is_no_score_is_named(score, said, call):
    model = network()
    before = copy.deepcopy(model.state_dict())
    budget = 0.4 if call == "prune" else [0.4]
    with pytest.raises(SaliencyError, match=f"score_fn returned {said} .* must return a finite number"):
        getattr(halp_fx, call)(model, budget, X[:1], score_fn=lambda m: score, **CALL)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_score_that_fails_at_the_end_costs_only_that_where_the_search_is_kept(tmp_path):
    calls = []

    def score(network):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("the disk is full")
        return 1.0

    call = {"score_fn": score, "steps": 2, "state": tmp_path, **CALL}
    with pytest.raises(OSError, match="disk"):
        halp_fx.prune(network(), 0.4, X[:1], **call)
    small = halp_fx.prune(network(), 0.4, X[:1], **call)
    assert small.halp.met
    assert [s for _, s in small.halp.scores] == [1.0, 1.0, 1.0]
    assert len(calls) == 4


def test_scores_that_are_none():
    with pytest.raises(SaliencyError, match=r"score_fn returned nan .* 100.0% of the dense cost"):
        halp_fx.prune(network(), 0.4, X[:1], score_fn=lambda m: float("nan"), **CALL)
    with pytest.raises(ZeroDivisionError) as caught:
        halp_fx.prune(network(), 0.4, X[:1], score_fn=lambda m: 1 / 0, **CALL)
    assert "raised by score_fn" in caught.value.__notes__[0]
    with pytest.raises(BudgetError, match="pass score_fn"):
        halp_fx.prune(network(), 0.4, X[:1], max_drop=0.1, **CALL)
    with pytest.raises(BudgetError, match="max_drop=-1"):
        halp_fx.prune(network(), 0.4, X[:1], score_fn=lambda m: 1.0, max_drop=-1, **CALL)
