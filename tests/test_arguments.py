"""What callers pass by mistake is said in an error of ours that names the argument and what to pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import halp_fx
from halp_fx.arguments import MOST_STEPS, a_kind, check_called, whole

X = torch.rand(2, 3, 8, 8)
DATA = [(torch.rand(4, 3, 8, 8), torch.arange(4) % 2)] * 2
EMPTY = [(X[:0], torch.zeros(0, dtype=torch.long))]


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


@pytest.fixture(scope="module")
def small():
    return halp_fx.prune(net(), 0.5, X, latency="macs", progress=False)


def prune(**options):
    return halp_fx.prune(net(), 0.5, X, **{"latency": "macs", "progress": False, **options})


def pruner(**options):
    return halp_fx.Pruner(net(), 0.5, X, **{"latency": "macs", **options})


def costing(function):
    return prune(latency=halp_fx.CallableCost(function))


LOGITS, FEATURES = torch.rand(2, 4), torch.rand(2, 8, 3, 3)

MISTAKES = [
    (lambda: prune(branches="no"), "branches='no' must be True or False, or None"),
    (lambda: prune(data=DATA, recalibrate="no"), "recalibrate='no' must be True or False, or None"),
    (lambda: prune(data=DATA, compensate=[]), "compensate=.. must be True or False"),
    (lambda: prune(steps=10**9), f"steps=1000000000 must be a whole number from 1 to {MOST_STEPS:,}"),
    (lambda: prune(ignore=None), "ignore=None: pass names"),
    (lambda: prune(ignore=3), "ignore=3: pass names"),
    (lambda: prune(importance=lambda g: "a"), r"importance\('0'\) returned 'a', no scores"),
    (lambda: prune(importance=lambda g: None), r"importance\('0'\) returned nothing: it must return 16 scores"),
    (lambda: prune(importance=lambda: 1), "importance is called with a group, and <lambda> cannot be: too many"),
    (lambda: prune(importance=lambda a, b, c: 1), "called with a group and the model, .*missing a required argument"),
    (lambda: prune(importance=nn.Linear(2, 2)), "importance is a Linear, a network: pass a function"),
    (lambda: prune(importance=np.ones((16, 16))), "importance=array.*use 'auto'"),
    (lambda: prune(train_between=lambda: 1), "train_between is called with the network, and <lambda> cannot be"),
    (lambda: prune(train_between=3), "train_between=3 cannot be called: pass a function of the network"),
    (lambda: prune(data=DATA, score_fn=nn.Linear), "score_fn is called with the network, and Linear cannot be"),
    (
        lambda: prune(data=DATA, loss=lambda m, b: {"a": None}),
        "scalar tensor, .*not a dict with the keys 'a'",
    ),
    (lambda: prune(data=DATA, loss_fn=lambda o, t: o.sum().item()), "not a float: leave out item"),
    (
        lambda: prune(data=DATA, loss=lambda m, b: [{"boxes": torch.rand(2, 4)}]),
        r"detections; .* in train mode: model.train\(\)\(\*batch\)",
    ),
    (lambda: prune(data=DATA, loss_fn=lambda o, t: o.sum(1)), r"of shape \(4,\): take the mean of it"),
    (lambda: prune(data=DATA, loss=nn.functional.cross_entropy), "A loss is called with the model and the batch"),
    (lambda: costing(lambda a, b, c: "a"), "the cost function returned 'a' for 0/convolution.*of at least 0"),
    (lambda: costing(lambda a, b, c: None), "the cost function returned None"),
    (lambda: costing(lambda a, b, c: -1.0), "the cost function returned -1.0"),
    (lambda: costing(lambda a: 1.0), "function is called with a layer and its n_in and its n_out"),
    (lambda: costing(3), "function=3 cannot be called"),
    (lambda: halp_fx.RooflineCost("fast", 1.0), "flops_per_s='fast'"),
    (lambda: halp_fx.MeasuredLatency(runtime=3), "runtime 3 is not known"),
    (lambda: halp_fx.MeasuredLatency(threads="2"), "threads='2' must be a whole number"),
    (lambda: halp_fx.MeasuredLatency(threads=1.5), "threads=1.5 must be a whole number"),
    (lambda: halp_fx.MeasuredLatency(device="gpu"), "device='gpu' is no device"),
    (lambda: halp_fx.MeasuredLatency(table=3), "3 is no path"),
    (lambda: halp_fx.benchmark(net(), X, threads=0), "threads=0 must be a whole number"),
    (lambda: halp_fx.benchmark(net(), X, threads=10**9), "threads=1000000000 must be a whole number from 1 to 4,096"),
    (lambda: halp_fx.benchmark(net(), X, runtime=None), "runtime None is not known"),
    (lambda: halp_fx.benchmark(net(), X, min_time_s="1"), "min_time_s='1' must be a number of seconds"),
    (lambda: halp_fx.couple(net()), "couple takes what halp_fx.trace.* returns, not a Sequential"),
    (lambda: halp_fx.couple(None), "not None"),
    (lambda: halp_fx.couple(halp_fx.trace(net(), X), ignore=3), "ignore is an int: pass a list"),
    (lambda: halp_fx.couple(halp_fx.trace(net(), X), ignore=[nn.ReLU()]), "must be names of modules"),
    (lambda: halp_fx.couple(halp_fx.trace(net(), X), further=[net()]), "not a Sequential"),
    (lambda: halp_fx.couple(halp_fx.trace(net(), X), decisions="x"), "decisions is a str"),
    (lambda: halp_fx.couple(halp_fx.trace(net(), X), frozen={"0": "why"}), "must be a mapping from axes"),
    (lambda: halp_fx.find_branches(net()), "coupling is a Sequential: pass what halp_fx.channel_groups"),
    (lambda: halp_fx.channel_groups(net(), X, like=net()), "like is a Sequential"),
    (lambda: halp_fx.rewrite(net(), {}, X, coupling=X), "coupling is a Tensor"),
    (lambda: halp_fx.rewrite(net(), {}, X, check="no"), "check='no' must be True or False"),
    (lambda: halp_fx.rewrite(net(), {"0": torch.ones(16) > 0}, X), "this is a mask: pass the indices"),
    (lambda: halp_fx.zero(net(), {}, X, coupling=halp_fx.trace(net(), X)), "coupling is a Traced"),
    (lambda: halp_fx.score(None, None), "expected an nn.Module, got NoneType"),
    (lambda: halp_fx.score(net(), None), "coupling is None"),
    (lambda: halp_fx.score(net(), halp_fx.channel_groups(net(), X), DATA, batches=0), "batches=0 must be"),
    (lambda: halp_fx.recalibrate("resnet18", DATA), "expected an nn.Module, got str"),
    (lambda: halp_fx.recalibrate(net(), DATA, batches="all"), "batches='all' must be"),
    (lambda: halp_fx.explain(net(), X, between="03"), "between='03' must be two names"),
    (lambda: halp_fx.explain(net(), X, between=("0", "3", "7")), "must be two names"),
    (lambda: halp_fx.distill(net(), LOGITS), "student is a Sequential: pass a tensor"),
    (lambda: halp_fx.distill(LOGITS, LOGITS, "4"), "temperature='4' must be a positive number"),
    (lambda: halp_fx.distill_features(FEATURES, None), "teacher is None: pass a tensor"),
    (lambda: halp_fx.distill_features(FEATURES, FEATURES, [9]), "names channels that .* not have: it has 8"),
    (lambda: halp_fx.distill_features(FEATURES, FEATURES, [0.5]), "must be the channels that stay"),
    (lambda: halp_fx.distill_features(FEATURES, FEATURES, 3), "must be the channels that stay"),
    (lambda: halp_fx.SparsityPenalty(net(), 0.5, X, steps=3, most="1", latency="macs"), "most='1' must be"),
    (lambda: halp_fx.SparsityPenalty(net(), 0.5, X, steps=1.5, latency="macs"), "steps=1.5 must be"),
    (lambda: pruner(steps=10**9), "steps=1000000000 must be a whole number from 1"),
    (lambda: pruner(interval=0), "interval=0 must be"),
    (lambda: pruner(importance=np.ones(16)), "importance=array"),
    (lambda: pruner(averages=3), "averages is an int: pass a list"),
    (lambda: pruner(averages=torch.optim.swa_utils.AveragedModel(net())), "averages is an AveragedModel: pass a list"),
    (lambda: pruner(schedule=lambda share: None), "schedule must return shares of the way"),
    (lambda: pruner(schedule=lambda: 1.0), "schedule is called with a share of the steps"),
    (lambda: pruner(regrow="no"), "regrow='no' must be True or False"),
    (lambda: halp_fx.PruneChannels(0.5, X, latencies="macs"), "has no option 'latencies': did you mean 'latency'"),
    (lambda: halp_fx.PruneChannels(halp_fx.Plan({}), X, latency="macs"), "option 'latency' is for a budget"),
    (lambda: halp_fx.WidthValues.of_scores("abc"), "scores='abc' are no numbers"),
    (lambda: halp_fx.WidthValues.of_scores(np.array([1.0, np.nan])), "must be a row of finite numbers"),
    (lambda: prune(state="a\0b"), "no name of a file holds a null character"),
    (lambda: halp_fx.prune(net().state_dict(), 0.5, X), "these are weights; make the model"),
]


@pytest.mark.parametrize(("call", "match"), MISTAKES)
def test_a_mistake_is_said(call, match):
    with pytest.raises(halp_fx.HalpError, match=match):
        call()


def test_compensation_says_what_is_missing(small):
    with pytest.raises(halp_fx.SaliencyError, match="cannot be compensated without data"):
        halp_fx.compensate(small, net(), None, example_inputs=X)
    with pytest.raises(halp_fx.SaliencyError, match="batch 0 of data has no samples"):
        halp_fx.compensate(small, net(), EMPTY, example_inputs=X)
    with pytest.raises(halp_fx.SaliencyError, match="samples=-1 must be"):
        halp_fx.compensate(small, net(), DATA, example_inputs=X, samples=-1)


def test_a_file_alone_is_no_network(small, tmp_path):
    halp_fx.save(small, tmp_path / "small.safetensors")
    with pytest.raises(halp_fx.CheckpointError, match=r"and no code: pass the dense network, or a function"):
        halp_fx.load(tmp_path / "small.safetensors")
    with pytest.raises(halp_fx.CheckpointError, match="there is no file"):
        halp_fx.load(tmp_path / "other.safetensors")


def test_an_export_says_what_is_wrong(small, tmp_path):
    with pytest.raises(halp_fx.ModelError, match="got str: only halp-fx"):
        halp_fx.export(small, tmp_path / "a.pt2", X, dense="resnet18")
    with pytest.raises(halp_fx.ExportError, match="tolerance='a' must be"):
        halp_fx.export(small, tmp_path / "a.pt2", X, tolerance="a")


def test_a_rule_is_for_an_operator():
    with pytest.raises(ValueError, match=r"register_rule takes operators .*, not <class"):
        halp_fx.register_rule(nn.ReLU)


def test_a_report_is_as_wide_as_a_number_says(small):
    with pytest.raises(halp_fx.HalpError, match="width='80' must be"):
        small.halp.summary(width="80")


@pytest.mark.parametrize("steps", [np.int64(2), 2.0])
def test_numbers_of_other_types_are_taken(steps):
    assert pruner(steps=steps, interval=steps).state_dict()
    assert halp_fx.SparsityPenalty(net(), np.float32(0.5), X, steps=steps, latency="macs").strength == 0
    assert prune(steps=steps, branches=np.bool_(True), data=DATA).halp.met


def test_functions_without_a_signature_are_taken():
    check_called("function", max, halp_fx.HalpError, ("a", "b"))
    assert prune(importance=lambda group, *, model: np.ones(group.size) + np.arange(group.size)).halp.met


def test_kinds_are_told_in_words():
    assert [a_kind(v) for v in (None, 3, X, nn.ReLU)] == ["None", "an int", "a Tensor", "the class ReLU"]
    assert whole("n", 3.0, halp_fx.HalpError) == 3
