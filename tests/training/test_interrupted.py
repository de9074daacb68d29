"""A step of pruning that fails leaves everything as it was, and training goes on; what diverged is never cut."""

from __future__ import annotations

import copy

import pytest
import torch
from test_pruner import CALL, WAYS, batches, sgd, train
from test_rebind import X, network
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx import TrainingError, training


def pruned(way, count, **options):
    model = network().train()
    optimizer = sgd(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL | way | options)
    train(model, optimizer, pruner, batches(count))
    return model, optimizer, pruner


def tensors(model, optimizer):
    moments = {f"{i}.{key}": t for i, s in optimizer.state_dict()["state"].items() for key, t in s.items()}
    grads = {f"{name}.grad": p.grad for name, p in model.named_parameters()}
    return {name: t.clone() for name, t in {**model.state_dict(), **moments, **grads}.items()}


def fails(*_, **__):
    raise KeyboardInterrupt


shrinking, gathered, masks = training.shrinking, training.gathering.Gathered, training.masks
PLACES = {
    "shrink": [(shrinking, "shrink"), (shrinking, "channel_groups"), (shrinking, "hand_over")],
    "mask": [(masks, "removed_slots"), (masks, "index_of")],
    "soft": [(masks, "_read_slots"), (masks, "index_of")],
}
PLACES["shrink"] += [(gathered, "of"), (gathered, "follow")]


@pytest.mark.parametrize(
    ("way", "room", "name"),
    [(way, *place) for way, places in PLACES.items() for place in places],
    ids=[f"{way}, {name}" for way, places in PLACES.items() for _, name in places],
)
def test_a_step_that_was_interrupted_leaves_all_as_it_was(way, room, name, monkeypatch):
    """Somewhere between the decision and its end; the next decision is taken as if nothing had been."""
    model, optimizer, pruner = pruned(WAYS[way], 7)
    optimizer.zero_grad()
    F.cross_entropy(model(X), torch.arange(4)).backward()
    before, plan = tensors(model, optimizer), pruner.plan
    with monkeypatch.context() as patched:
        patched.setattr(room, name, fails)
        with pytest.raises(KeyboardInterrupt):
            pruner.step()
    after = tensors(model, optimizer)
    assert all(torch.equal(t, after[key]) or "grad" in key for key, t in before.items())
    assert [t.shape for t in after.values()] == [t.shape for t in before.values()]
    assert (pruner.plan, pruner.decisions) == (plan, 1)
    optimizer.step()
    train(model, optimizer, pruner, batches(12))
    assert pruner.done
    assert pruner.finish().halp.met


def test_a_wrapper_that_cannot_be_made_anew_stops_the_cut():
    model = network().train()
    optimizer, made = sgd(model), []

    def wrapper(module):
        made.append(nn.Sequential(module))
        if len(made) == 3:  # The second of two, in the first cut.
            raise ValueError("no more")
        return made[-1]

    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL)
    first, _ = pruner.wrap(wrapper), pruner.wrap(lambda module: wrapper(module) if len(made) > 1 else module)
    train(first, optimizer, pruner, batches(3))
    shapes = [p.shape for p in model.parameters()]
    with pytest.raises(ValueError, match="no more"):
        train(first, optimizer, pruner, batches(1))
    assert [p.shape for p in model.parameters()] == shapes
    assert first.wrapper is made[0]
    train(first, optimizer, pruner, batches(12))
    assert pruner.finish().halp.met


@pytest.mark.parametrize("way", ["mask", "soft"])
def test_a_state_of_after_finish_brings_the_cut_network_back(way):
    """Masks are cut by then, and the model's weights are those of the cut network."""
    model, optimizer, pruner = pruned(WAYS[way], 14)
    pruner.finish()
    states = [copy.deepcopy(part.state_dict()) for part in (pruner, model, optimizer)]
    other, again, resumed = pruned(WAYS[way], 0)
    for part, state in zip((resumed, other, again), states, strict=True):
        part.load_state_dict(state)
    assert resumed.plan == pruner.plan
    assert resumed.finish().halp.met
    for (net, own), data in zip(((model, optimizer), (other, again)), (batches(2), batches(2)), strict=True):
        for x, y in data:
            own.zero_grad()
            F.cross_entropy(net(x), y).backward()
            own.step()
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_a_loss_that_diverged_stays_said(way):
    """After the error, too: the batches of then are not forgotten, and older ones decide nothing."""
    model, optimizer, pruner = pruned(way, 4)
    plan = pruner.plan
    for number, (x, y) in enumerate(batches(12), 1):
        optimizer.zero_grad()
        (F.cross_entropy(model(x), y) * torch.nan).backward()  # Weights stay finite: the loop leaves the step out.
        if number % 4:
            pruner.step()
            continue
        with pytest.raises(TrainingError, match=f"no gradient was finite in the last {number} batches"):
            pruner.step()
    with pytest.raises(TrainingError, match="no gradient was finite in the last 12 batches"):
        pruner.finish()
    assert (pruner.plan, pruner.decisions, pruner.skipped) == (plan, 1, 0)
    train(model, optimizer, pruner, batches(8))
    assert pruner.skipped == 12
    assert pruner.finish().halp.met


@pytest.mark.parametrize("count", [6, 14])
@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_weights_that_diverged_are_said(way, count):
    """Also where some batches since the last step of pruning were finite, and after the last one."""
    model, optimizer, pruner = pruned(way, count)
    nn.init.constant_(model[8].bias, torch.nan)
    shapes = [p.shape for p in model.parameters()]
    with pytest.raises(TrainingError, match=r"8\.bias .* has 5 NaN or infinite values.*Training has diverged"):
        pruner.finish()
    if not pruner.done:
        with pytest.raises(TrainingError, match="Training has diverged"):
            train(model, optimizer, pruner, batches(2))
    assert [p.shape for p in model.parameters()] == shapes
    assert not hasattr(model, "halp")
