"""Two processes with their own shards of the data prune to one network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx import MacsCost

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 4


def network():
    torch.manual_seed(0)
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

    options = {"train_between": train} | options
    call = {"data": shard(rank), "loss_fn": F.cross_entropy, "latency": MacsCost(), "round_to": 1, "progress": False}
    return halp_fx.prune(network(), budget, X[:1], steps=3, **call, **options)


def work(rank, folder):
    torch.set_num_threads(1)
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
    coupling = halp_fx.channel_groups(network(), X[:1])
    result["kept"] = halp_fx.score(network(), coupling, shard(rank), F.cross_entropy).scores
    result["errors"] = []
    for bad in (1e-6, 0.5 + rank / 10):
        try:
            pruned(rank, seen, bad)
        except halp_fx.HalpError as error:
            result["errors"].append((type(error).__name__, str(error)))
    torch.save(result, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
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


@pytest.mark.parametrize("way", ["compensated", "untrained"])
def test_compensated_weights_reach_all_processes(results, way):
    """Each would fit them to its own shard."""
    first, second = (r[way] for r in results)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    plain = results[0]["parameters"]
    assert not torch.equal(first["3.weight"], plain[4])


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
