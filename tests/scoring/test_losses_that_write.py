"""A loss that writes to the model's parameters: the caller's are as before, and it is told."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx import SaliencyError


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


X = torch.rand(1, 3, 8, 8)


def batches():
    draw = torch.Generator().manual_seed(0)
    return [(torch.rand(8, 3, 8, 8, generator=draw), torch.randint(4, (8,), generator=draw)) for _ in range(3)]


def by_model(write):
    def loss(model, batch):
        with torch.no_grad():
            write(model[3].weight)
        return F.cross_entropy(model(batch[0]), batch[1])

    return loss


WRITES = [lambda w: w.mul_(0.9), lambda w: w.data.clamp_(-0.01, 0.01)]
CALLS = [
    lambda model, loss: halp_fx.prune(model, "50%", X, data=batches(), loss=loss, latency="macs", progress=False),
    lambda model, loss: halp_fx.score(model, halp_fx.channel_groups(model, X), batches(), loss=loss),
    lambda model, loss: halp_fx.score(
        model, halp_fx.channel_groups(model, X), batches(), loss=loss, importance="taylor"
    ),
]


@contextmanager
def left_as_it_is(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    yield
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("call", CALLS)
def test_what_it_writes_is_put_back_and_named(call, write):
    model = network()
    with (
        left_as_it_is(model),
        pytest.raises(SaliencyError, match=r"loss writes to parameters of the model \(3\.weight\)"),
    ):
        call(model, by_model(write))


def test_a_function_of_outputs_that_knows_the_model():
    model = network()

    def loss_fn(output, target):
        with torch.no_grad():
            model[0].bias.add_(1)
        return F.cross_entropy(output, target)

    with (
        left_as_it_is(model),
        pytest.raises(SaliencyError, match=r"loss_fn writes to parameters of the model \(0\.bias\)"),
    ):
        halp_fx.prune(model, "50%", X, data=batches(), loss_fn=loss_fn, latency="macs", progress=False)


def test_compensation_as_well():
    model = network()
    plan = {"0": range(8)}
    small = halp_fx.rewrite(model, plan, X)
    with left_as_it_is(model), pytest.raises(SaliencyError, match="loss writes to parameters of the model"):
        halp_fx.compensate(small, model, batches(), plan, X, loss=by_model(WRITES[0]))


def test_an_error_of_the_loss_is_told_and_what_it_wrote_is_put_back():
    model = network()

    def loss(model, batch):
        with torch.no_grad():
            model[0].weight.zero_()
        raise ValueError("no such label")

    with left_as_it_is(model), pytest.raises(SaliencyError, match="no such label"):
        halp_fx.score(model, halp_fx.channel_groups(model, X), batches(), loss=loss)


def test_weights_that_are_nan_are_not_taken_for_written():
    model = network()
    with torch.no_grad():
        model[7].weight[0, 0] = float("nan")

    def loss(model, batch):
        return model[:5](batch[0]).square().mean()

    found = halp_fx.score(model, halp_fx.channel_groups(model, X), batches(), loss=loss, importance="taylor")
    assert set(found.scores) == {"0", "3"}
