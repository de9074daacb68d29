"""Two processes with their own shards of the data prune to one network."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from processes import spawn
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx import MacsCost
from halp_fx.pruning import healing
from halp_fx.pruning.distributed import Team

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 4


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1), nn.Linear(16, 4),
    )  # fmt: skip


def shard(rank):
    return [(X[rank::2] * (1 + rank), Y[rank::2])]


def pruned(rank, seen, budget=0.4, **options):
    def train(model):
        """A step of gradients that are averaged: all processes must be here, with networks of one shape."""
        F.cross_entropy(model(X[rank::2]), Y[rank::2]).backward()
        for parameter in model.parameters():
            torch.distributed.all_reduce(parameter.grad)
            parameter.data -= 0.05 * parameter.grad
            parameter.grad = None
        seen.append(model[0].out_channels)

    options = {"train_between": train, "compensate": False} | options
    call = {"data": shard(rank), "loss_fn": F.cross_entropy, "latency": MacsCost(), "round_to": 1, "progress": False}
    return halp_fx.prune(network(), budget, X[:1], steps=3, **call, **options)


def work(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    seen, result = [], {}
    small = pruned(rank, seen)
    result["plan"], result["seen"] = small.halp.plan.to_json(), list(seen)
    result["parameters"] = [p.detach().clone() for n, p in small.named_parameters()]
    scores = iter([1.0, 1.0, 0.0])
    back = pruned(rank, result.setdefault("seen before the drop", []), score_fn=lambda _: next(scores), max_drop=0.5)
    result["back"] = [p.detach().clone() for p in back.parameters()]
    for way, train in (("compensated", {}), ("untrained", {"train_between": None})):
        small = pruned(rank, seen, compensate=True, **train)
        result[way] = {n: t.clone() for n, t in small.state_dict().items()}
    healing.Healing.taken = property(lambda self: True)  # So near, an untrained network comes no nearer.
    small = pruned(rank, seen, heal=20, train_between=None)
    result["healed"] = {n: t.clone() for n, t in small.state_dict().items()}
    result["healed"]["notes"] = str(small.halp.notes)
    for way, seed in (("one", 0), ("each", rank)):
        call = {"data": shard(rank), "latency": MacsCost(), "compensate": False, "progress": False}
        model = network(seed)
        small = halp_fx.prune(model, 0.4, X[:1], **call)
        result[f"drawn by {way}"] = {n: t.clone() for n, t in small.state_dict().items()}
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network(seed).parameters(), strict=True))
    coupling = halp_fx.channel_groups(network(), X[:1])
    result["kept"] = halp_fx.score(network(), coupling, shard(rank), F.cross_entropy).scores
    result["errors"] = []
    for bad in (1e-6, 0.5 + rank / 10):
        try:
            pruned(rank, seen, bad)
        except halp_fx.HalpError as error:
            result["errors"].append((type(error).__name__, str(error)))
    torch.save(result, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    spawn(work, str(folder))
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_shards_alone_would_lead_to_different_networks(results):
    """Else the next test would prove nothing."""
    first, second = (r["kept"] for r in results)
    assert any((first[g].argsort() != second[g].argsort()).any() for g in first)


def test_one_network_in_all_processes(results):
    first, second = results
    assert first["plan"] == second["plan"]
    assert first["seen"] == second["seen"]
    assert len(first["seen"]) == 2
    for a, b in zip(first["parameters"], second["parameters"], strict=True):
        assert torch.equal(a, b)


def test_all_processes_go_back_where_the_score_fell(results):
    first, second = results
    assert len(first["seen before the drop"]) == 2
    assert len(first["back"][0]) == first["seen before the drop"][0] > first["seen before the drop"][1]
    for a, b in zip(first["back"], second["back"], strict=True):
        assert torch.equal(a, b)


def test_the_weights_of_the_first_process_count(results):
    """Of a head, say, that each has drawn for itself."""
    first, second = results
    wanted = first["drawn by one"]
    for name, tensor in second["drawn by each"].items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("way", ["compensated", "untrained"])
def test_compensated_weights_reach_all_processes(results, way):
    """Each would fit them to its own shard."""
    first, second = (r[way] for r in results)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    plain = results[0]["parameters"]
    assert not torch.equal(first["3.weight"], plain[4])


def test_healed_weights_reach_all_processes(results):
    """Each would train them on its own shard."""
    first, second = (result["healed"] for result in results)
    assert "healed in 20 steps" in first.pop("notes")
    assert "healed in 20 steps" in second.pop("notes")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["3.weight"], results[0]["parameters"][4])


def test_errors_reach_all_processes(results):
    (infeasible, differing), (told, also) = (r["errors"] for r in results)
    assert infeasible[0] == "InfeasibleError"
    assert told[0] == "HalpError"
    assert infeasible[1] in told[1]
    assert differing == also
    assert differing[0] == "ModelError"
    assert "process 1 has" in differing[1]
    assert "budget=0.6" in differing[1]
    assert "budget=0.5" in differing[1]


def test_a_single_process_is_no_team(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        seen = []
        assert pruned(0, seen).halp.met
        assert len(seen) == 2
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture
def tape(monkeypatch):
    """What process 0 tells, to be played to another one: two processes, one after the other in this one."""

    class Told:
        rank, other, messages = 0, None, []

    def broadcast(box, src):
        assert src == 0
        if Told.rank == 0:
            Told.messages.append(copy.deepcopy(box[0]))
        else:
            box[0] = Told.messages.pop(0)

    def gather(everyone, value):
        everyone[:] = [value if Told.other is None else Told.other, value]

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr(Team, "here", classmethod(lambda cls: cls(Told.rank, 2)))
    return Told


def alone(seen, **options):
    """Pruned with a training that needs no other process."""

    def train(model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        seen.append(model[0].out_channels)

    return pruned(0, [], **{"train_between": train} | options)


@pytest.mark.parametrize("compensate", [False, True])
def test_what_is_told_leads_another_process_to_the_same_network(tape, compensate):
    first, second = [], []
    led = alone(first, compensate=compensate)
    tape.rank = 1
    followed = alone(second, compensate=compensate)
    assert not tape.messages, "every message was heard"
    assert len(first) == 2
    assert first == second
    assert followed.halp == led.halp
    for name, value in led.state_dict().items():
        assert torch.equal(value, followed.state_dict()[name]), name


def test_a_process_follows_the_first_back(tape):
    scores = iter([1.0, 1.0, 0.0])
    first, second = [], []
    led = alone(first, score_fn=lambda model: next(scores), max_drop=0.5)
    tape.rank = 1
    followed = alone(second, score_fn=lambda model: 1.0, max_drop=0.5)
    assert len(first) == len(second) == 2, "both trained what was then taken back"
    assert not led.halp.met
    assert led[0].out_channels == first[0]
    assert [tuple(p.shape) for p in followed.parameters()] == [tuple(p.shape) for p in led.parameters()]


def test_an_error_of_the_first_is_heard_by_another(tape):
    def fails(model):
        raise ValueError("the score is broken")

    with pytest.raises(ValueError, match="broken"):
        alone([], score_fn=fails)
    tape.rank = 1
    with pytest.raises(halp_fx.HalpError, match="failed in process 0 of the job: ValueError: the score is broken"):
        alone([])


def test_other_models_and_other_arguments_are_named(tape):
    shapes = [(name, tuple(t.shape)) for name, t in network().state_dict().items()]
    tape.rank = 1
    tape.other = ("Sequential", shapes, "budget=0.7")
    with pytest.raises(halp_fx.ModelError, match=r"process 1 has Sequential budget=0\.4.*process 0 has .*=0\.7"):
        alone([])
    tape.other = ("Sequential", shapes[:-1], "budget=0.7")
    with pytest.raises(halp_fx.ModelError, match=r"process 1 has \('7\.bias', \(4,\)\)"):
        alone([])


def test_what_is_for_one_process_is_refused_in_several(tape):
    with pytest.raises(halp_fx.ModelError, match="runs in one process, and this job has 2"):
        halp_fx.pareto(network(), [0.5], X[:1], latency="macs")
