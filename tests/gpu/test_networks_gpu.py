"""Every stage on a GPU: the same plans and values as on the CPU in float64, and each way in and out."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from oracle import assert_equals_twin, half_plan, randomized, relative_error
from torch import nn
from torch.nn import functional as F
from torchvision import models

import halp_fx
from halp_fx.compiling.backend import BACKEND
from halp_fx.latency import MeasuredLatency
from halp_fx.latency.timing import time_call


class Small(nn.Module):
    """A residual network with a depthwise layer, small enough for a second a test."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(32, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(64, 64, 3, 1, 1, groups=64, bias=False), nn.BatchNorm2d(64))
        self.outer = nn.Sequential(nn.Conv2d(64, 32, 1, bias=False), nn.BatchNorm2d(32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.outer(F.relu(self.depthwise(self.inner(x))))
        return self.head(F.relu(x).mean((2, 3)))


def small(device, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return Small().to(device, dtype).eval()


def batches(device, dtype=torch.float32, count=4, size=8, side=16):
    draw = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(size, 3, side, side, generator=draw, dtype=torch.float64).to(device, dtype)
        yield x, torch.randint(0, 10, (size,), generator=draw).to(device)


NETWORKS = {
    "resnet18": lambda: models.resnet18(num_classes=10),
    "mobilenet_v2": lambda: models.mobilenet_v2(num_classes=10),
    "densenet121": lambda: models.densenet121(num_classes=10),
    "googlenet": lambda: models.googlenet(num_classes=10, init_weights=False),
    "vit": lambda: models.VisionTransformer(64, 16, 2, 4, 64, 128, num_classes=10),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_rewrites_equal_their_twins(name, device):
    model = randomized(NETWORKS[name]()).to(device).eval()
    x = torch.randn(2, 3, 64, 64, device=device, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    pruned = assert_equals_twin(model, half_plan(coupling), x, coupling)
    assert {t.device.type for t in pruned.state_dict().values()} == {torch.device(device).type}


@pytest.mark.parametrize("importance", ["fisher", "taylor", "magnitude"])
def test_values_equal_those_of_the_cpu(importance, device):
    found = []
    for place in (device, "cpu"):
        model = small(place, torch.float64)
        x, _ = next(batches(place, torch.float64))
        data = None if importance == "magnitude" else list(batches(place, torch.float64))
        coupling = halp_fx.channel_groups(model, x)
        loss = None if data is None else F.cross_entropy
        scores = halp_fx.score(model, coupling, data, loss, importance=importance)
        found.append({g.name: np.asarray(scores.scores[g.name]) for g in coupling.prunable})
    # The kernel sums in float32, and labels that are drawn from the model are drawn on its device.
    here, there = found
    for name, values in there.items():
        if importance == "fisher":
            assert np.isfinite(here[name]).all()
        else:
            np.testing.assert_allclose(here[name], values, rtol=1e-4, atol=1e-6 * abs(values).max())


@pytest.mark.parametrize("runtime", ["eager", "cudagraph"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_budget_in_milliseconds(runtime, dtype, device, tmp_path):
    if device == "cpu" and (runtime == "cudagraph" or dtype == torch.float16):
        pytest.skip("not on a CPU")
    model = small(device, dtype).to(memory_format=torch.channels_last)
    # Launched one by one, the layers must be large enough to count beside their launches.
    batch = 64 if runtime == "cudagraph" or device == "cpu" else 4096
    x = torch.randn(batch, 3, 64, 64, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    before = copy.deepcopy(model.state_dict())
    latency = MeasuredLatency(runtime=runtime, table=tmp_path)
    pruned = halp_fx.prune(model, 0.7, x, latency=latency, progress=False)
    report = pruned.halp
    assert report.measured < report.dense
    assert torch.isfinite(pruned(x)).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = halp_fx.rewrite(model, report.plan, x)
    assert relative_error(pruned(x).float(), again(x).float()) < 1e-3
    assert latency.measured.entries


def test_a_network_of_launches_alone_is_named(device, tmp_path):
    if device == "cpu":
        pytest.skip("a CPU launches nothing")
    model = small(device)
    x = torch.randn(1, 3, 16, 16, device=device)
    latency = MeasuredLatency(table=tmp_path)
    with pytest.raises(halp_fx.InfeasibleError, match="the GPU waits for the CPU that launches its operators"):
        halp_fx.prune(model, 0.3, x, latency=latency, progress=False)


def test_clock_sees_the_work(device):
    side = 4096 if device == "cuda" else 256
    x = torch.randn(side, side, device=device)
    one, many = (time_call(lambda n=n: [x @ x for _ in range(n)], torch.device(device)).median_ms for n in (1, 8))
    assert 4 < many / one < 12


def test_batch_norms_and_compensation_equal_those_of_the_cpu(device):
    outputs = []
    for place in (device, "cpu"):
        model = small(place, torch.float64)
        data = [x for x, _ in batches(place, torch.float64, count=6)]
        halp_fx.recalibrate(model, data)
        coupling = halp_fx.channel_groups(model, data[0])
        plan = half_plan(coupling)
        pruned = halp_fx.rewrite(model, plan, data[0], coupling=coupling)
        assert halp_fx.compensate(pruned, model, data, plan, data[0]).layers
        outputs.append(pruned(data[1]).cpu())
    assert relative_error(*outputs) < 1e-8


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "sgd, fused": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, fused=True),
    "adamw, foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "adam, capturable": lambda p: torch.optim.Adam(p, 0.01, capturable=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_with_mixed_precision_shrinks_the_network(optimizer, device):
    if device == "cpu" and "capturable" in optimizer:
        pytest.skip("not on a CPU")
    model = small(device).train()
    made = OPTIMIZERS[optimizer](model.parameters())
    scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
    x, _ = next(batches(device))
    pruner = halp_fx.Pruner(model, 0.5, x, optimizer=made, latency="macs", round_to=1, steps=2, interval=3)
    before = sum(p.numel() for p in model.parameters())
    for x, y in batches(device, count=12):
        made.zero_grad()
        with torch.autocast(device, torch.float16 if device == "cuda" else torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(made)
        pruner.step()
        scaler.step(made)
        scaler.update()
    assert pruner.done
    assert sum(p.numel() for p in model.parameters()) < before
    assert all(torch.isfinite(p).all() for p in model.parameters())
    small_network = pruner.finish()
    assert torch.isfinite(small_network.eval()(x)).all()


def test_saved_and_loaded(device, tmp_path):
    model = small(device)
    x, _ = next(batches(device))
    pruned = halp_fx.prune(model, 0.5, x, latency="macs", progress=False)
    halp_fx.save(pruned, tmp_path / "small.safetensors")
    loaded = halp_fx.load(tmp_path / "small.safetensors", small(device, seed=3), x)
    assert torch.equal(loaded(x), pruned(x))
    assert next(loaded.parameters()).device.type == torch.device(device).type


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_compiled_by_the_backend(inner, device):
    model = small(device)
    x, _ = next(batches(device))
    pruned = halp_fx.prune(model, 0.5, x, latency="macs", progress=False)
    compiled = torch.compile(model, backend=BACKEND, options={"plan": pruned.halp.plan, "inner": inner})
    with torch.no_grad():
        assert relative_error(compiled(x), pruned(x)) < 1e-4
