"""`halp_fx.compile`: a backend that counts stands in for the compiler; no time is asserted."""

from __future__ import annotations

import copy

import pytest
import torch
from counting import Counting
from oracle import Net, randomized
from torch import nn

import halp_fx
from halp_fx.compiling import deploying
from halp_fx.latency import compiling

X = torch.randn(1, 3, 16, 16)


@pytest.fixture
def backend(monkeypatch):
    counting = Counting()
    monkeypatch.setattr(compiling, "BACKEND", counting)
    return counting


@pytest.fixture
def clock(monkeypatch):
    """Counts instead of measuring; the runtimes that networks would have been timed in."""
    asked = []
    monkeypatch.setattr(deploying, "MeasuredLatency", lambda runtime: asked.append(runtime) or halp_fx.MacsCost())
    return asked


def network(function=lambda m, x: m.head(m.conv(x).relu().mean((2, 3)))):
    layers = {"conv": nn.Conv2d(3, 16, 3), "head": nn.Linear(16, 5)}
    return randomized(Net(function, **layers)).float()


def test_the_network_is_compiled_in_place_and_warm(backend, clock):
    model = network()
    small = halp_fx.compile(model, 0.6, X, mode="max-autotune", progress=False)
    assert type(small) is type(model)
    assert list(small.state_dict()) == list(model.state_dict())
    assert small.conv.out_channels < 16
    assert clock == ["inductor:max-autotune"]
    assert not small.training
    assert model.training
    assert backend.options["max_autotune"]
    before = (backend.graphs, backend.calls)
    with torch.no_grad():
        small(X)
    assert (backend.graphs, backend.calls) == (before[0], before[1] + 1)
    compilation = small.halp.compilation
    assert (compilation.runtime, compilation.graphs) == ("inductor:max-autotune", 1)
    assert "compiled by inductor:max-autotune: 1 graph in" in str(small.halp)
    assert copy.deepcopy(small)(X).shape == (1, 5)


def test_frozen_code_is_asked_for_and_timed_as_such(backend, clock):
    small = halp_fx.compile(network(), 0.6, X, freeze=True, progress=False)
    assert clock == ["inductor-frozen"]
    assert backend.options == {"freezing": True}
    assert small.halp.compilation.runtime == "inductor-frozen"


def broken(m, x):
    x = m.conv(x)
    torch._dynamo.graph_break()
    return m.head(x.relu().mean((2, 3)))


def test_a_forward_that_breaks_is_refused_before_anything_is_measured(backend, clock):
    with pytest.raises(halp_fx.LatencyError, match=r"breaks into several graphs.*fullgraph=False"):
        halp_fx.compile(network(broken), 0.9, X, progress=False)
    assert (backend.calls, clock) == (0, [])
    small = halp_fx.compile(network(broken), 0.6, X, fullgraph=False, progress=False)
    assert small.halp.compilation.graphs == 2


def test_a_compiler_that_is_missing_is_named(monkeypatch):
    def fail(graph, example):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiling, "BACKEND", fail)
    with pytest.raises(halp_fx.LatencyError, match=r"needs a C\+\+ compiler.*No working C\+\+ compiler found"):
        halp_fx.compile(network(), 0.9, X, progress=False)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"mode": "fastest"}, halp_fx.LatencyError, "no mode 'fastest'"),
        ({"latency": "macs"}, halp_fx.BudgetError, "takes no latency="),
    ],
    ids=["mode", "latency"],
)
def test_bad_arguments(options, error, match, backend):
    with pytest.raises(error, match=match):
        halp_fx.compile(network(), 0.9, X, progress=False, **options)
    assert backend.graphs == 0


def test_runtimes_are_named():
    with pytest.raises(halp_fx.LatencyError, match=r"'inductor:max-autotune'"):
        halp_fx.MeasuredLatency("inductr")
    with pytest.raises(halp_fx.LatencyError, match="not known"):
        halp_fx.MeasuredLatency("eager:max-autotune")
    with pytest.raises(
        halp_fx.LatencyError, match=r"'tensorrt' is not known.*halp_fx\.export .* halp_fx\.CallableCost"
    ):
        halp_fx.MeasuredLatency("tensorrt")


def test_networks_are_timed_compiled(backend):
    """The real clock, at the shortest: the dense network meets the budget as it is, and is timed twice."""
    small = halp_fx.compile(network(), 1.0, X, progress=False)
    assert small.halp.unit == "ms"
    assert small.conv.out_channels == 16
    assert backend.calls > 15
