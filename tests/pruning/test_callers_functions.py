"""What the caller's own functions do to the network that they are given stays theirs."""

from __future__ import annotations

import pytest
import torch
from test_bad_models import unchanged
from test_distributed import X, Y, network
from torch.nn.functional import cross_entropy

import halp_fx
from halp_fx import MacsCost

CALL = {"latency": MacsCost(), "round_to": 1, "progress": False, "data": [(X, Y)]}


def use(model):
    """All that code may do that asks what a network is worth."""
    model.train()
    cross_entropy(model(X), Y).backward()
    first = next(m for m in model.modules() if hasattr(m, "weight"))
    first.register_forward_hook(lambda module, args, result: None)
    with torch.no_grad():
        first.weight.mul_(0.5)
    return float(first.weight.square().sum())


def by_gradients(group, model):
    use(model)
    return torch.linspace(1, 2, group.size)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("how", [{"score_fn": use}, {"score_fn": use, "max_drop": 9.0}, {"importance": by_gradients}])
def test_neither_the_model_nor_the_result_is_changed(how, steps):
    model = network()
    with unchanged(model):
        small = halp_fx.prune(model, 0.6, X[:1], steps=steps, recalibrate=False, **how, **CALL)
    scores = {"importance": lambda group: torch.linspace(1, 2, group.size)} if "importance" in how else {}
    alone = halp_fx.prune(model, 0.6, X[:1], steps=steps, recalibrate=False, **scores, **CALL)
    assert small.halp.plan == alone.halp.plan
    for name, tensor in alone.state_dict().items():
        assert torch.equal(small.state_dict()[name], tensor), name


def test_importance_sees_gradients_that_are_there():
    model = network()
    cross_entropy(model(X), Y).backward()
    coupling = halp_fx.channel_groups(model, X[:1])
    seen = []

    def by_gradient(group, model):
        seen.extend(p.grad is not None for p in model.parameters())
        return torch.ones(group.size)

    halp_fx.score(model, coupling, importance=by_gradient)
    assert seen
    assert all(seen)
