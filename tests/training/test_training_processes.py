"""Two processes with their own shards of every batch prune one network."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import spawn
from test_pruner import CALL, batches, sgd
from test_rebind import X
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import halp_fx
from halp_fx import TrainingError
from halp_fx.pruning import meeting


def network():
    """Without batch norms, whose statistics would be of a shard."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(12, 5)).double()


def run(rank=0, size=1, wrapped=False, together=True, count=14):
    """Batches of 4 in all; `together`: gradients of two micro-batches add up, and are averaged by the wrapper with the
    second."""
    model = network()
    optimizer = sgd(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL)
    trained = pruner.wrap(DistributedDataParallel) if wrapped else model
    for x, y in batches(count):
        optimizer.zero_grad()
        own = list(zip(x[rank::size].chunk(2), y[rank::size].chunk(2), strict=True))
        for number, (xs, ys) in enumerate(own):
            alone = wrapped and not (together and number + 1 == len(own))
            with trained.no_sync() if alone else nullcontext():
                (F.cross_entropy(trained(xs), ys) / len(own)).backward()
        pruner.step()
        if not together:
            optimizer.zero_grad()
        optimizer.step()
    return pruner, pruner.finish() if count == 14 else model


OPTIONS = ("find_unused_parameters", "static_graph", "gradient_as_bucket_view")


def run_once(rank, size, option=None):
    """One backward a step, in a wrapper with an option; the plan and the weights. (A static graph is recorded in the
    first backward: micro-batches without an exchange are none of it.)"""
    model = network()
    optimizer = sgd(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL)
    trained = model if option is None else pruner.wrap(partial(DistributedDataParallel, **{option: True}))
    for x, y in batches(14):
        optimizer.zero_grad()
        F.cross_entropy(trained(x[rank::size]), y[rank::size]).backward()
        pruner.step()
        optimizer.step()
    return pruner.plan.to_json(), copy.deepcopy(pruner.finish().state_dict())


def work(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    pruner, small = run(rank, 2, wrapped=True)
    result = {"plan": pruner.plan.to_json(), "report": small.halp.measured, "state": copy.deepcopy(small.state_dict())}
    result["at the end"] = pruner.state_dict()
    result["half way"] = run(rank, 2, wrapped=True, count=6)[0].state_dict()
    result["resumed"] = resumed(f"{folder}/alone.pt")
    for option in OPTIONS:
        result[option] = run_once(rank, 2, option)
    result["apart"] = run(rank, 2, wrapped=True, together=False)[0].plan.to_json()
    try:
        halp_fx.Pruner(network(), 0.4 + rank / 10, X[:1], **CALL)
    except halp_fx.HalpError as error:
        result["differing"] = f"{type(error).__name__}: {error}"
    model = network().train()
    try:
        halp_fx.Pruner(model, 0.001, X[:1], **CALL)
    except halp_fx.HalpError as error:
        result["out of reach"] = f"{type(error).__name__}: {error}"
    result |= shard(small, rank)
    torch.save(result, f"{folder}/{rank}.pt")
    # The second process is gone before the first decides.
    meeting.PATIENCE = 0.5
    last = halp_fx.Pruner(model, 0.5, X[:1], **CALL | {"interval": 1, "steps": 1})
    F.cross_entropy(model(X), torch.arange(4)).backward()
    if rank == 0:
        try:
            last.step()
        except halp_fx.HalpError as error:
            result["alone"] = f"{type(error).__name__}: {error}"
        torch.save(result, f"{folder}/{rank}.pt")


def resumed(path, **states):
    """What comes of states of another number of processes: the error, or the plan."""
    found = {}
    for name, state in (states or torch.load(path)).items():
        model = network()
        pruner = halp_fx.Pruner(model, 0.4, X[:1], **CALL)
        try:
            pruner.load_state_dict(state)
            found[name] = pruner.plan.to_json()
        except TrainingError as error:
            assert model[0].out_channels == 8
            found[name] = str(error)
    return found


def shard(small, rank):
    """What was pruned is sharded, and trained on for two steps with halves of each batch; and refused from then on."""
    fully_shard(small, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (2,)))
    train_on(small, rank, 2)
    result = {"trained on": {name: p.full_tensor() for name, p in small.named_parameters()}}
    calls = {
        "Pruner": lambda: halp_fx.Pruner(small, 0.4, X[:1], **CALL),
        "prune": lambda: halp_fx.prune(small, 0.4, X[:1], latency="macs"),
        "rewrite": lambda: halp_fx.rewrite(small, halp_fx.Plan(), X[:1]),
        "score": lambda: halp_fx.score(small, halp_fx.channel_groups(network(), X[:1])),
        "heal": lambda: halp_fx.heal(network(), small, list(batches(1)), steps=1),
        "heal itself": lambda: halp_fx.heal(small, network(), list(batches(1)), steps=1),
        "compensate": lambda: halp_fx.compensate(small, network(), list(batches(1)), halp_fx.Plan(), X[:1]),
    }
    for name, call in calls.items():
        with pytest.raises(halp_fx.ModelError, match=r"sharded \(fully_shard, FSDP; .* is a DTensor\): prune before"):
            call()
        result[f"{name} refused"] = True
    return result


def train_on(model, rank=0, size=1):
    optimizer = sgd(model)
    for x, y in batches(2, seed=5):
        optimizer.zero_grad()
        F.cross_entropy(model(x[rank::size]), y[rank::size]).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    alone = {"half way": run(count=6)[0].state_dict(), "at the end": run()[0].state_dict()}
    torch.save(alone, f"{folder}/alone.pt")
    spawn(work, str(folder))
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1)]


def test_two_processes_and_one_prune_alike(results):
    alone, _ = run()
    assert results[0]["plan"] == results[1]["plan"] == alone.plan.to_json()
    assert results[0]["report"] == results[1]["report"]
    assert all(torch.equal(t, results[1]["state"][n]) for n, t in results[0]["state"].items())


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_the_wrapper_change_nothing(option, results):
    """Each is of the wrapper that is made anew after every cut."""
    plan, weights = run_once(0, 1)
    for result in results:
        assert result[option][0] == plan
        for name, tensor in weights.items():
            torch.testing.assert_close(result[option][1][name], tensor, rtol=1e-9, atol=1e-12)


def test_another_number_of_processes_may_not_go_on_before_pruning_is_over(results):
    message = "was written by {} processes, and there are {}: resume with as many, or finish pruning first"
    plan = run()[0].plan.to_json()
    for result in results:
        assert message.format(1, 2) in result["resumed"]["half way"]
        assert result["resumed"]["at the end"] == plan
    found = resumed("", **{name: results[0][name] for name in ("half way", "at the end")})
    assert message.format(2, 1) in found["half way"]
    assert found["at the end"] == plan


def test_what_was_pruned_is_sharded_and_trained_on(results):
    _, small = run()
    small.load_state_dict(results[0]["state"])
    train_on(small)
    for result in results:
        for name, parameter in small.named_parameters():
            torch.testing.assert_close(result["trained on"][name], parameter.detach(), rtol=1e-9, atol=1e-12)


def test_what_each_process_saw_counts_where_gradients_are_not_averaged(results):
    assert results[0]["apart"] == results[1]["apart"]


def test_errors_reach_all(results):
    for result in results:
        assert "ModelError: the processes of this job prune different networks" in result["differing"]
        assert "cannot be reached" in result["out of reach"]
        assert sum(name.endswith(" refused") for name in result) == 7


def test_a_process_that_is_gone_is_said(results):
    assert "TrainingError: process 0 of 2 waited in a step of pruning for another" in results[0]["alone"]


def test_what_wraps_a_model_is_made_anew():
    model, made = network(), []
    pruner = halp_fx.Pruner(model, 0.4, X[:1], **CALL | {"interval": 1, "steps": 2})

    def wrapper(module):
        made.append([tuple(p.shape) for p in module.parameters()])
        return nn.Sequential(module)

    trained = pruner.wrap(wrapper)
    assert list(trained.state_dict()) == [f"module.{name}" for name in model.state_dict()]
    assert len(list(trained.parameters())) == len(list(model.parameters()))
    for x, y in batches(2):
        model.zero_grad()
        F.cross_entropy(trained(x), y).backward()
        pruner.step()
    assert len(made) == 3
    assert made[0] != made[1] != made[2]
    trained.eval()
    assert not model.training
    torch.testing.assert_close(trained(X), model(X))
    assert copy.deepcopy(trained.module)(X).shape == (4, 5)


def test_a_wrapper_that_would_keep_the_shapes_is_refused(job):
    model, other = network(), network()
    whole, kept = DistributedDataParallel(nn.Sequential(model)), DistributedDataParallel(other)
    F.cross_entropy(whole(X), torch.arange(4)).backward()
    F.cross_entropy(kept(X), torch.arange(4)).backward()
    at_once = CALL | {"interval": 1}
    pruner = halp_fx.Pruner(model, 0.4, X[:1], **at_once)
    with pytest.raises(TrainingError, match=r"in a DistributedDataParallel.*pruner\.wrap"):
        pruner.step()
    assert model[0].out_channels == 8
    assert halp_fx.Pruner(other, 0.4, X[:1], optimizer=sgd(other), mode="mask", **at_once).step()
    del whole  # It is in a cycle.
    F.cross_entropy(model(X), torch.arange(4)).backward()
    assert pruner.step()
    trained = pruner.wrap(DistributedDataParallel)
    with trained.join():  # Of the wrapper of now, which a cut leaves behind.
        F.cross_entropy(trained(X), torch.arange(4)).backward()
        pruner.step()
        F.cross_entropy(trained(X), torch.arange(4)).backward()
        with pytest.raises(TrainingError, match=r"something holds \(`with trained\.join\(\):`.*mode='mask'"):
            pruner.step()


@pytest.mark.parametrize("call", [halp_fx.Pruner, halp_fx.prune])
def test_a_wrapper_inside_of_a_model_is_refused(call, job):
    """Its forward waits for the other processes, and the first traces and times alone: they hung."""
    model = nn.Sequential(DistributedDataParallel(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 4, 3))
    with pytest.raises(halp_fx.ModelError, match=r"^0 in the model is wrapped by Dist.*put 0\.module in its place"):
        call(model, 0.5, X[:1], latency="macs")


def test_a_wrapped_model_is_not_scored_as_one_without_weights(job):
    model = network()
    with pytest.raises(halp_fx.ModelError, match=r"wrapped by DistributedDataParallel: pass model\.module"):
        halp_fx.score(DistributedDataParallel(model), halp_fx.channel_groups(model, X[:1]))


def test_processes_that_disagree_are_told():
    from halp_fx.pruning.distributed import Team
    from halp_fx.training.leading import Lead

    class Odd(Team):
        def gather(self, value):
            return [value, "another"]

    with pytest.raises(TrainingError, match="process 1 has another network than process 0"):
        Lead(Odd(0, 2), None).agree(network(), halp_fx.Plan())


def test_an_error_of_the_first_process_is_its_own():
    """Not taken for a process that is gone."""
    from halp_fx.pruning.distributed import Team
    from halp_fx.training.leading import Lead

    class Told(Team):
        def tell(self, *message):
            assert message == ("error", "RuntimeError: out of something")

    def fails(session):
        raise RuntimeError("out of something")

    with pytest.raises(RuntimeError, match=r"^out of something$"):
        Lead(Told(0, 2), object()).ask(fails)
    with pytest.raises(RuntimeError, match=r"^out of something$"):
        Lead.start(Told(0, 2), lambda: fails(None))
