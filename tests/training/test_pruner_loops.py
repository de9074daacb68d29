"""Pruning inside loops as people write them: mixed precision, hidden steps, micro-batches, checkpoints, averages."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from test_pruner import CALL, WAYS, adam, batches, sgd, train
from test_rebind import X, network
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler, swa_utils
from torch.utils.checkpoint import checkpoint

import halp_fx


def scaled_run(wide):
    """Training with a loss scaler, of which the third batch overflows."""
    model = network().float().train()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10 if wide else 1.0, growth_interval=100)
    pruner = halp_fx.Pruner(model, 0.4, X[:1].float(), optimizer=optimizer, **CALL)
    rows = []
    for number, (x, y) in enumerate(batches(4)):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.float()), y) * (float("inf") if number == 2 else 1.0)
        scaler.scale(loss).backward()
        if number == 3:
            rows = pruner._gathered.stacked()
        if wide and number % 2:
            scaler.unscale_(optimizer)
            pruner.step()
        else:
            pruner.step(scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
    return model, pruner, rows


def test_scaled_gradients_are_unscaled_and_skipped_steps_are_skipped():
    _, plain, rows = scaled_run(False)
    _, scaled, same = scaled_run(True)
    torch.testing.assert_close(same[:2], rows[:2], rtol=1e-4, atol=1e-7)
    assert not torch.isfinite(same[2]).all()
    assert scaled.skipped == plain.skipped == 1
    assert scaled.plan == plain.plan
    assert scaled.plan


def cast_run(way, made, called, stop=99):
    """Training whose forwards are cast; the pruner is made and called under autocast, or is not."""

    def under(on):
        return torch.autocast("cpu", torch.bfloat16) if on else nullcontext()

    def start():
        model = network().float().train()
        optimizer = sgd(model)
        with under(made):
            return model, optimizer, halp_fx.Pruner(model, 0.4, X[:1].float(), optimizer=optimizer, **CALL | way)

    model, optimizer, pruner = start()
    for number, (x, y) in enumerate(batches(13)):
        if number == stop:
            states = [copy.deepcopy(part.state_dict()) for part in (pruner, model, optimizer)]
            model, optimizer, pruner = start()
            for part, state in zip((pruner, model, optimizer), states, strict=True):
                part.load_state_dict(state)
        optimizer.zero_grad()
        with under(True):
            loss = F.cross_entropy(model(x.float()), y)
        loss.backward()
        with under(called):
            pruner.step()
        optimizer.step()
    return pruner.finish()


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_what_is_cast_is_decided_where_the_pruner_was_made(way):
    """Loops cast their forwards alone, and call `step` outside."""
    for made in (True, False):
        alike, other, resumed = (
            cast_run(way, made, called, stop) for called, stop in ((made, 99), (not made, 99), (False, 6))
        )
        assert alike.halp.met
        for small in (other, resumed):
            assert all(torch.equal(v, small.state_dict()[n]) for n, v in alike.state_dict().items())
            assert replace(small.halp, seconds={}) == replace(alike.halp, seconds={})


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_a_trainer_that_hides_the_step_prunes_alike(way):
    found = []
    for hidden in (False, True):
        model = network().train()
        optimizer = adam(model)
        pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL | way)
        handle = pruner.attach() if hidden else None
        for x, y in batches(14):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if not hidden:
                pruner.step()
            optimizer.step()
        if handle is not None:
            handle.remove()
        found.append((pruner.plan, pruner.finish().state_dict()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(t, found[1][1][n]) for n, t in found[0][1].items())


def test_micro_batches_add_up():
    """One step a step of the optimizer: the mean of micro-batches is the batch."""
    plans = []
    for parts in (1, 2):
        model = network().eval()  # Batch statistics would be others.
        optimizer = sgd(model)
        pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL)
        for x, y in batches(12):
            optimizer.zero_grad()
            for xs, ys in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (F.cross_entropy(model(xs), ys) / parts).backward()
            pruner.step()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        plans.append(pruner.plan)
    assert plans[0] == plans[1]


class Recomputed(nn.Module):
    def __init__(self, inner, recompute):
        super().__init__()
        self.inner, self.recompute = inner, recompute

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False) if self.recompute else self.inner(x)


def test_activation_checkpoints_change_nothing():
    plans = []
    for recompute in (False, True):
        model = Recomputed(network(), recompute).train()
        optimizer = sgd(model)
        pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL)
        train(model, optimizer, pruner, batches(12))
        plans.append(pruner.plan)
    assert plans[0] == plans[1]
    assert plans[0]


def test_averages_follow():
    model = network().train()
    optimizer = sgd(model)
    ema = torch.optim.swa_utils.AveragedModel(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, averages=[ema], **CALL)
    for batch in batches(13):
        train(model, optimizer, pruner, [batch])
        ema.update_parameters(model)
    assert [p.shape for p in ema.module.parameters()] == [p.shape for p in model.parameters()]
    assert model[3].conv1.out_channels == ema.module[3].conv1.out_channels < 8


def whole_loop(way):
    """What a loop may have, all at once."""
    model = network().float().train()
    matrices, others = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": 1e-3}, {"params": others, "lr": 0.02}]
    optimizer = torch.optim.SGD(groups, 0.05, momentum=0.9, nesterov=True)
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)
    warmup, rest = lr_scheduler.LinearLR(optimizer, 0.1, 1, 5), lr_scheduler.CosineAnnealingLR(optimizer, 25)
    schedule = lr_scheduler.SequentialLR(optimizer, [warmup, rest], [5])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
    pruner = halp_fx.Pruner(model, 0.4, X[:1].float(), optimizer=optimizer, averages=[average], **CALL, **way)
    # In the order in which they are loaded.
    return {"p": pruner, "m": model, "o": optimizer, "a": average, "s": schedule, "g": scaler}


def go_on(parts, data):
    for number, (x, y) in data:
        parts["o"].zero_grad()
        for xs, ys in zip(x.float().chunk(2), y.chunk(2), strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(parts["m"](xs), ys) / 2
            parts["g"].scale(loss * (float("inf") if number == 5 else 1.0)).backward()
        parts["g"].unscale_(parts["o"])
        parts["p"].step()
        nn.utils.clip_grad_norm_(parts["m"].parameters(), 0.5)
        parts["g"].step(parts["o"])
        parts["g"].update()
        parts["s"].step()
        parts["a"].update_parameters(parts["m"])


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_a_loop_with_all_of_it_goes_on_to_equal_bits(way, tmp_path):
    """Averages, warm-up and schedule, clipping, micro-batches, and a scaler that leaves out a step."""
    data = list(enumerate(batches(15)))
    one = whole_loop(way)
    go_on(one, data[:9])
    torch.save({name: part.state_dict() for name, part in one.items()}, tmp_path / "half.pt")
    go_on(one, data[9:])
    other, held = whole_loop(way), torch.load(tmp_path / "half.pt")
    for name, part in other.items():
        part.load_state_dict(held[name])
    go_on(other, data[9:])
    for parts in (one, other):
        assert parts["p"].finish().halp.met
        assert parts["p"].skipped == 1
    for name in ("m", "a"):
        pairs = zip(one[name].state_dict().values(), other[name].state_dict().values(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)
