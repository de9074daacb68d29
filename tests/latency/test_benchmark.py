"""benchmark: what it says of networks, and that they are left as found."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import halp_fx
from halp_fx.latency.benchmarking import Benchmark, NetworkBenchmark
from halp_fx.latency.errors import LatencyError, TimingError
from halp_fx.latency.timing import Timing

QUICK = {"min_time_s": 0.0, "max_time_s": 0.02, "repeats": 3}


def make(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(), nn.Conv2d(width, 2, 1))


def test_networks_in_turn():
    found = halp_fx.benchmark({"wide": make(64), "narrow": make(2)}, torch.rand(4, 3, 24, 24), training=True, **QUICK)
    wide, narrow = found.networks
    assert [wide.name, narrow.name] == ["wide", "narrow"]
    assert wide.share == 1
    assert narrow.share < 1
    assert wide.throughput == pytest.approx(4 / wide.forward.median_ms * 1e3)
    assert wide.training.median_ms > wide.forward.median_ms
    assert found.batch == 4
    assert wide.parameters == sum(p.numel() for p in make(64).parameters())
    assert "narrow" in found.summary()
    assert "batch 4, eager, cpu, 1 thread" in str(found)
    assert not re.search(r"\de[+-]\d", str(found)), "samples a second are whole numbers"


@pytest.mark.parametrize(
    ("spread", "waited", "threads", "said"),
    [
        (0.36, 0.0, 2, r"note: .*not to be trusted: those of dense scatter by 36%.*with one thread"),
        (0.04, 0.62, 1, r"note: the machine was busy: other programs ran in 62% of the time"),
        (0.04, 0.05, 1, None),
    ],
)
def test_times_that_are_not_to_be_trusted_are_called_so(spread, waited, threads, said):
    """Several threads: how long other programs ran cannot be told, and what is left to see is the scatter."""
    rows = [
        NetworkBenchmark(name, Timing(ms, ms * part, 9), 1.0, 1e3 / ms, None, 1, None)
        for name, ms, part in (("dense", 31.3, spread), ("small", 2.9, 0.01))
    ]
    text = Benchmark(tuple(rows), 1, "eager", "cpu", threads, waited).summary()
    assert re.search(said, text) if said else "note" not in text


def test_a_network_is_left_as_found():
    model, x = make(), torch.rand(2, 3, 8, 8)
    model(x).sum().backward()
    model[0].eval()
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    halp_fx.benchmark(model, x, training=True, **QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_exported_network_has_no_modes_to_set():
    x = torch.rand(2, 3, 8, 8)
    exported = torch.export.export(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (x,)).module()
    assert halp_fx.benchmark(exported, x, training=True, **QUICK).networks[0].training is not None


def test_one_network_has_its_class_for_a_name():
    (only,) = halp_fx.benchmark(make(), torch.rand(1, 3, 8, 8), **QUICK).networks
    assert only.name == "Sequential"
    assert only.training is None


def test_what_cannot_be_timed():
    with pytest.raises(TimingError, match="no networks"):
        halp_fx.benchmark({}, torch.rand(1))
    with pytest.raises(LatencyError, match="runtime 'tpu' is not known"):
        halp_fx.benchmark(make(), torch.rand(1, 3, 8, 8), runtime="tpu", **QUICK)
    with pytest.raises(TimingError, match="no output with a gradient"):
        halp_fx.benchmark(nn.Flatten(), torch.rand(1, 3, 8, 8), training=True, **QUICK)
