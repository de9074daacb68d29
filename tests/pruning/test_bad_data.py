"""Data, callbacks and figures that prune and pareto cannot use: each works or is named, and the model is as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import halp_fx
from halp_fx import BudgetError, HalpError, ModelError, SaliencyError

X, Y = torch.rand(8, 3, 8, 8), torch.randint(4, (8,))
ONE = [(X[:1], Y[:1])]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 12, 3, padding=1),
        nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    ).eval()  # fmt: skip


def called(function, model, **settings):
    budget = 0.5 if function == "prune" else [0.6, 0.5]
    settings = {"latency": "macs", "round_to": 1, "progress": False} | settings
    return getattr(halp_fx, function)(model, budget, X[:1], **settings)


@pytest.mark.parametrize("function", ["prune", "pareto"])
@pytest.mark.parametrize(
    "settings",
    [
        {"data": ONE}, {"data": [X[:1]], "compensate": True}, {"data": ONE, "importance": "batches"},
        {"data": ONE, "importance": "taylor", "loss_fn": nn.CrossEntropyLoss()}, {"data": [(X, None)]},
        {"data": [(X, Y), (X[:, :, :7], Y)], "compensate": True}, {"limits": {"0": np.int64(12), "3": np.float32(0.5)}},
    ],
    ids=["image", "compensated", "batches", "taylor", "no label", "sizes", "numpy"],
)  # fmt: skip
def test_little_is_enough(function, settings):
    found = called(function, network(), **settings)
    assert found.halp.met if function == "prune" else all(p.met for p in found.points)


class Empty:
    def __len__(self):
        return 0

    def __iter__(self):
        return iter(())


@pytest.mark.parametrize("function", ["prune", "pareto"])
@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"data": []}, SaliencyError, "^data has no batches: pass"),
        ({"data": Empty(), "compensate": True}, SaliencyError, "^data has no batches: pass"),
        ({"data": [(X[:0], Y[:0])]}, SaliencyError, "batch 0 of data has no samples"),
        ({"data": [(X, Y), (X[:0], Y[:0])]}, SaliencyError, "batch 1 of data has no samples"),
        ({"data": 5}, SaliencyError, "data is a int: pass batches"),
        ({"data": X.double().split(4)}, SaliencyError, "loss of batch 0 of data failed"),
        ({"data": [(X * torch.nan, Y)]}, SaliencyError, "all 1 batches had a loss or gradients that are not finite"),
        ({"score_fn": 3}, HalpError, "3 was passed for a function"),
        ({"tolerance": "2%"}, BudgetError, "tolerance='2%' must be"),
        ({"min_keep": "10%"}, BudgetError, "min_keep='10%' must be"),
        ({"limits": {0: 0.5}}, ModelError, "limits holds 0"),
        ({"limits": {"no*": 0.5}}, ModelError, "limits: the pattern 'no"),
        ({"ignore": ["no*"]}, ModelError, "ignore: the pattern 'no"),
        ({"ignore": ["0"], "limits": {"0": 8}}, ModelError, "ignored by the caller"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else ", ".join(value),
)
def test_what_cannot_be_used_is_named(function, settings, error, match):
    model = network()
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(error, match=match):
        called(function, model, **settings)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not model.training
    assert torch.equal(torch.get_rng_state(), drawn)


def test_what_only_prune_takes():
    for settings, match in (
        ({"train_between": 3}, "3 was passed for a function"),
        ({"score_fn": lambda m: 1.0, "max_drop": "1%"}, "max_drop='1%' must be"),
        ({"data": ONE, "effort": "thorough"}, "pass 4 batches or more"),
    ):
        with pytest.raises(HalpError, match=match):
            called("prune", network(), **settings)


def test_who_raised_is_said():
    for settings in ({"importance": lambda group: 1 / 0}, {"score_fn": lambda m: 1 / 0}):
        with pytest.raises(ZeroDivisionError) as caught:
            called("prune", network(), **settings)
        assert caught.value.__notes__[0].startswith(f"raised by {next(iter(settings))}")
