"""Data, callbacks and figures that prune and pareto cannot use: each works or is named, and the model is as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import halp_fx
from halp_fx import BudgetError, HalpError, ModelError, SaliencyError, TraceError

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
        ({"data": 5}, SaliencyError, "data is an int: pass batches"),
        ({"data": "photos"}, SaliencyError, "data is a str: pass batches"),
        ({"data": {"images": X}}, SaliencyError, "data is a dict with the keys 'images': pass batches"),
        (
            {"data": X},
            SaliencyError,
            r"data is a tensor of shape \(8, 3, 8, 8\), whose items .*: pass batches, .* \[data\]",
        ),
        (
            {"data": X.numpy()},
            SaliencyError,
            r"data is an array of shape \(8, 3, 8, 8\), whose items .*torch.from_numpy",
        ),
        ({"data": (X, Y)}, SaliencyError, "one batch of inputs and targets.*: pass a list of such pairs"),
        ({"data": [X.numpy()]}, SaliencyError, "(?s)received an invalid .*It holds arrays of numpy: torch.from_numpy"),
        ({"data": [(X.half(), Y)]}, SaliencyError, "It is of float16, and the network of float32"),
        ({"data": [((X * 255).byte(), Y)]}, SaliencyError, "It is of uint8, and the network of float32"),
        ({"data": [X[0]]}, SaliencyError, "one sample of a data set"),
        ({"data": X.double().split(4)}, SaliencyError, "loss of batch 0 of data failed"),
        ({"data": [(X * torch.nan, Y)]}, SaliencyError, "all 1 batches had a loss or gradients that are not finite"),
        ({"score_fn": 3}, HalpError, "score_fn=3 cannot be called"),
        ({"tolerance": "2%"}, BudgetError, "tolerance='2%' must be"),
        ({"min_keep": "10%"}, BudgetError, "min_keep='10%' must be"),
        ({"limits": {0: 0.5}}, ModelError, "limits holds 0"),
        ({"limits": {"no*": 0.5}}, ModelError, "limits: the pattern 'no"),
        ({"ignore": ["no*"]}, ModelError, "ignore: the pattern 'no"),
        ({"ignore": ["0"], "limits": {"0": 8}}, ModelError, "ignored by the caller"),
    ],
    ids=lambda value: (
        value.__name__ if isinstance(value, type) else ", ".join(value) if isinstance(value, dict) else ""
    ),
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
        ({"train_between": 3}, "train_between=3 cannot be called"),
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


class Endless(IterableDataset):
    """Samples from a stream: nobody knows how many."""

    def __iter__(self):
        return zip(X.repeat(8, 1, 1, 1), Y.repeat(8), strict=True)


@pytest.mark.parametrize("state", [None, "kept"])
def test_a_loader_of_unknown_length(state, tmp_path):
    settings = {} if state is None else {"state": tmp_path / state}
    assert called("prune", network(), data=DataLoader(Endless(), 16), **settings).halp.met


@pytest.mark.parametrize(
    ("example", "match"),
    [
        ((1, 3, 8, 8), r"example inputs 1, 3, 8, 8.*\n.*a tensor of that shape: torch.rand\(1, 3, 8, 8\)"),
        (X[:1].numpy(), r"example inputs an array of shape \(1, 3, 8, 8\).*\n.*tensors, not arrays of numpy"),
        (
            X[0],
            r"example inputs \(3, 8, 8\).*\nPass example_inputs with which model\(\*example_inputs\) runs, the batch",
        ),
        (X[:1].bfloat16(), r"example inputs \(1, 3, 8, 8\).*\n.*runs, of the model's dtype: x.to\(torch.float32\), or"),
        ((X[:1] * 9).byte(), r"of the model's dtype: x.to\(torch.float32\), or"),
    ],
)
def test_example_inputs_that_are_none(example, match):
    with pytest.raises(TraceError, match=match) as caught:
        halp_fx.prune(network(), 0.5, example, latency="macs", progress=False)
    assert len(str(caught.value).splitlines()) == 2


def test_arguments_in_another_order():
    with pytest.raises(BudgetError) as caught:
        halp_fx.prune(network(), X, "60%")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("models", "match"),
    [
        ([network(), network()], "models is a list: pass a network, or networks by name"),
        ({"dense": "resnet18"}, "'dense' is a str: pass a network, or networks by name"),
        (
            {"dense": network(), "gray": nn.Conv2d(1, 4, 3)},
            r"the forward of 'gray' fails on the example inputs: RuntimeError: .* to have 1 channels",
        ),
    ],
)
def test_networks_that_cannot_be_timed(models, match):
    with pytest.raises(halp_fx.LatencyError, match=match):
        halp_fx.benchmark(models, X, min_time_s=0, max_time_s=0)


def test_threads_that_are_none():
    with pytest.raises(halp_fx.LatencyError, match="threads=0 must be a whole number from 1 to 4,096"):
        halp_fx.latency.MeasuredLatency(threads=0)


def test_stages_alone_refuse_data_that_is_no_batches():
    model = network()
    coupling = halp_fx.channel_groups(model, X[:1])
    plan = halp_fx.Plan({"0": range(8)})
    small = halp_fx.rewrite(model, plan, X[:1])
    stages = (
        lambda data: halp_fx.recalibrate(model, data),
        lambda data: halp_fx.score(model, coupling, data),
        lambda data: halp_fx.compensate(small, model, data, plan, X[:1]),
    )
    for stage in stages:
        with pytest.raises(SaliencyError, match="data is a tensor of shape"):
            stage(X)
    with pytest.raises(SaliencyError, match="batch norms cannot be re-estimated without data"):
        halp_fx.recalibrate(model, None)


@pytest.mark.parametrize("plan", ["plan.json", [1, 2], None])
def test_a_plan_that_is_none(plan):
    with pytest.raises(halp_fx.PlanError, match=r"is no mapping from groups .*Plan.from_json"):
        halp_fx.rewrite(network(), plan, X[:1])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Identity, "got type: call it, and pass what it makes"),
        (network, "got function: call it, and pass what it makes"),
        ("resnet18", "got str: only halp-fx on a command line takes names; pass the model"),
        (None, "got NoneType$"),
    ],
    ids=["class", "factory", "name", "nothing"],
)
def test_what_is_no_model_says_what_to_pass(model, words):
    with pytest.raises(ModelError, match=words):
        halp_fx.prune(model, 0.5, progress=False)
