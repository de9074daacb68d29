"""Branches in training, valued by what the network loses without them, as `prune` values them."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import torch
from comparing.networks import residual
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx.model.inputs import normalize_examples
from halp_fx.pruning.goals import make_goals
from halp_fx.pruning.request import Request
from halp_fx.pruning.session import Session

X = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CALL = {"latency": "macs", "steps": 4, "interval": 3}


def batches(count, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return [(torch.rand(16, 3, 32, 32, generator=draw), torch.arange(16) % 5) for _ in range(count)]


DATA = batches(4, seed=2)


def made(idle=()):
    """A network, trained a little, so that its branches do something, but for those of `idle` blocks."""
    torch.manual_seed(0)
    model = residual(5)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    train(model, optimizer, None, batches(3, seed=3))
    with torch.no_grad():
        for block in idle:
            for parameter in model[block].body[1][1].parameters():
                parameter.mul_(0.01)
    return model, optimizer


def train(model, optimizer, pruner, data):
    model.train()
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if pruner is not None:
            pruner.step()
        optimizer.step()


def dropping(pruner):
    return dict(pruner._lead.session.network.saliency.dropping)


def test_shares_are_those_of_prune_whatever_gradients_are_multiplied_by():
    model, _ = made()
    request = Request(
        goals=make_goals(0.3, "macs"), examples=normalize_examples(model, X), data=DATA, branches="auto",
        recalibrate=True, progress=False,
    )  # fmt: skip
    found = []
    for factor in (1.0, 7.0):
        other = copy.deepcopy(model)
        pruner = halp_fx.Pruner(other, 0.3, X, branches=True, data=DATA, **(CALL | {"interval": 2}))
        for x, y in batches(2):
            other.zero_grad()
            (factor * F.cross_entropy(other.train()(x), y)).backward()
            wanted = Session.start(copy.deepcopy(other), request) if pruner._calls == 1 else None
            pruner.step()
        wanted.score()
        assert dropping(pruner)
        assert dropping(pruner) == pytest.approx(dict(wanted.network.saliency.dropping))
        found.append(pruner.plan)
    assert found[0] == found[1]


def as_dicts(data):
    return [{"picture": x, "kind": y} for x, y in data]


def as_shares(data):
    """With targets that are no categories, so that none are drawn in their place."""
    return [(x, F.one_hot(y, 5).float()) for x, y in data]


def of_dicts(model, batch):
    """A detector's: the network in training mode, and several losses."""
    found = model.train()(batch["picture"])
    return {"one": F.cross_entropy(found, batch["kind"]), "two": 0.1 * found.square().mean()}


@pytest.mark.parametrize(
    "given", [{"data": as_dicts(DATA), "loss": of_dicts}, {"data": as_shares(DATA), "loss_fn": F.mse_loss}]
)
def test_a_loss_is_what_it_is_for_prune(given):
    """Its batches may be of any kind; the network that is being trained stays as it is."""
    model, _ = made()
    before = copy.deepcopy(model.state_dict())
    request = Request(
        goals=make_goals(0.3, "macs"), examples=normalize_examples(model, X), branches="auto", recalibrate=True,
        progress=False, **given,
    )  # fmt: skip
    wanted = Session.start(copy.deepcopy(model), request)
    wanted.score()
    pruner = halp_fx.Pruner(model, 0.3, X, **CALL, **given)
    network = replace(pruner._lead.session.network, model=model)
    found = pruner._without(network, pruner._trained.here, pruner._removable, None)
    assert sorted(found) == sorted(pruner._removable)
    assert found == pytest.approx(dict(wanted.network.saliency.dropping))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    plain = halp_fx.Pruner(model, 0.3, X, data=DATA, **CALL)
    network = replace(plain._lead.session.network, model=model)
    assert found != pytest.approx(plain._without(network, plain._trained.here, plain._removable, None))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"loss": of_dicts}, "loss without data: pass data"),
        ({"loss_fn": F.mse_loss}, "loss_fn without data: pass data"),
        ({"data": DATA, "loss": of_dicts, "loss_fn": F.mse_loss}, "both loss_fn .* and loss .* were passed"),
        ({"data": DATA, "loss": 0.5}, "loss is a float, not a function"),
        ({"data": DATA, "loss": nn.MSELoss}, "loss is the class MSELoss, not a function"),
    ],
)
def test_a_loss_that_is_none_is_refused_in_the_words_of_prune(given, says):
    model, _ = made()
    said = []
    for call in (lambda: halp_fx.Pruner(model, 0.3, X, **CALL, **given), lambda: prune_of(model, given)):
        with pytest.raises(halp_fx.SaliencyError, match=says) as refused:
            call()
        said.append(str(refused.value))
    assert said[0] == said[1]


def prune_of(model, given):
    return halp_fx.prune(model, 0.3, X, latency="macs", progress=False, **given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"data": as_dicts(DATA)}, "pass loss=lambda model, batch"),
        ({"data": as_dicts(DATA), "loss": lambda model, batch: model(batch[0])}, "the loss of batch 0 of data failed"),
        ({"data": as_dicts(DATA), "loss": lambda model, batch: model(batch["picture"])}, "must be a scalar tensor"),
    ],
)
def test_a_loss_that_does_not_fit_is_an_error_with_nothing_changed(given, says):
    model, optimizer = made()
    shapes = [p.shape for p in model.parameters()]
    pruner = halp_fx.Pruner(model, 0.3, X, optimizer=optimizer, **CALL, **given)
    with pytest.raises(halp_fx.TrainingError, match="cannot tell what is lost without a branch") as refused:
        train(model, optimizer, pruner, batches(3))
    assert re.search(says, str(refused.value))
    assert shapes == [p.shape for p in model.parameters()]
    assert not pruner.plan


def test_what_is_measured_leaves_the_network_in_training_as_it_is():
    model, _ = made()
    before, modes, random = (
        copy.deepcopy(model.state_dict()),
        [m.training for m in model.modules()],
        torch.random.get_rng_state(),
    )
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    pruner = halp_fx.Pruner(model, 0.3, X, branches=True, data=DATA, **CALL)
    session = pruner._lead.session
    found = pruner._without(replace(session.network, model=model), pruner._trained.here, pruner._removable, None)
    assert sorted(found) == sorted(pruner._removable)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(random, torch.random.get_rng_state())
    for grad, parameter in zip(grads, model.parameters(), strict=True):
        assert grad is None or torch.equal(grad, parameter.grad)


def test_data_is_looked_at_first_and_after_branches_went_alone():
    model, optimizer = made(idle=(2, 4))
    looked = []

    class Watched(list):
        def __iter__(self):
            looked.append(pruner.decisions)
            return super().__iter__()

    pruner = None
    pruner = halp_fx.Pruner(model, 0.1, X, optimizer=optimizer, branches=True, data=Watched(DATA), **CALL)
    gone = []
    for x, y in batches(12):
        train(model, optimizer, pruner, [(x, y)])
        gone.append(pruner.plan.dropped)
    wanted = {0} | {i + 1 for i in range(3) if gone[3 * i + 2] != (gone[3 * i - 1] if i else ())}
    assert set(looked) == wanted
    assert pruner.plan.dropped
    assert pruner.finish().halp.met


def test_a_resumed_run_is_the_run_that_went_on():
    model, optimizer = made(idle=(2, 4))
    dense = copy.deepcopy(model)
    given = {"data": DATA} | CALL
    pruner = halp_fx.Pruner(model, 0.1, X, optimizer=optimizer, **given)
    data = batches(12)
    train(model, optimizer, pruner, data[:8])
    state = copy.deepcopy((pruner.state_dict(), model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, pruner, data[8:])

    again = torch.optim.SGD(dense.parameters(), 0.05, momentum=0.9)
    resumed = halp_fx.Pruner(dense, 0.1, X, optimizer=again, **given)
    for one, own in zip((resumed, dense, again), state, strict=True):
        one.load_state_dict(own)
    train(dense, again, resumed, data[8:])
    assert resumed.plan == pruner.plan
    assert resumed.plan.dropped
    assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"branches": False}, "leave branches=False out, or data"),
        ({"importance": "magnitude"}, "importance='fisher', not of 'magnitude'"),
        ({"solver": "halp"}, "not of 'taylor'"),
    ],
)
def test_data_that_nothing_is_made_of_is_refused(given, says):
    model, optimizer = made()
    with pytest.raises(halp_fx.TrainingError, match=says):
        halp_fx.Pruner(model, 0.3, X, optimizer=optimizer, data=DATA, **CALL, **({"branches": True} | given))


def test_data_that_does_not_fit_is_an_error_with_nothing_changed():
    model, optimizer = made()
    shapes = [p.shape for p in model.parameters()]
    wrong = [(torch.rand(16, 4, 32, 32), torch.zeros(16))]
    pruner = halp_fx.Pruner(model, 0.3, X, optimizer=optimizer, branches=True, data=wrong, **CALL)
    with pytest.raises(halp_fx.TrainingError, match="cannot tell what is lost without a branch"):
        train(model, optimizer, pruner, batches(3))
    assert shapes == [p.shape for p in model.parameters()]
    assert not pruner.plan


def test_what_is_risked_without_data_is_said(caplog):
    model, optimizer = made()
    for given, said in (({"branches": True}, True), ({"data": DATA}, False), ({}, False)):
        caplog.clear()
        pruner = halp_fx.Pruner(model, 0.3, X, optimizer=optimizer, **CALL, **given)
        assert ("Pass data=batches" in caplog.text) == said
        assert bool(pruner._removable) == bool(given)
