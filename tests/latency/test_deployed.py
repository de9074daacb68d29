"""Networks timed as files: that the file is the network, and is made once. No time is asserted."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import halp_fx
from halp_fx.errors import LatencyError
from halp_fx.latency import deployed
from halp_fx.latency.interleaving import interleaved
from halp_fx.latency.runtimes import network_call

BRIEF = {"min_time_s": 0.0, "max_time_s": 0.01, "repeats": 3}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x, scale):
        return self.head(self.conv(x).relu().mean((2, 3))) * scale


X = ((torch.rand(2, 3, 6, 6),), {"scale": torch.rand(2, 1)})


def test_onnxruntime_runs_the_network_and_exports_it_once(monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    exported = []
    export = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: exported.append(1) or export(*args, **kwargs))
    model = Net().eval()
    call = network_call(model, *X, "onnxruntime")
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(call()[0]), model(*X[0], **X[1]))
    (timing,) = interleaved([model], X, runtime="onnxruntime", **BRIEF)
    assert timing.share == 1.0
    assert exported == [1]
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Mixed(Net):
    """With an input that nothing reads, and others of one shape whose order counts."""

    def forward(self, x, unused, *, low, high):
        return super().forward(x, high - 2 * low)


def test_inputs_are_told_apart_by_their_names():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = Mixed().eval()
    for _ in range(2):  # The second time the file is there.
        x, low, high = torch.rand(2, 3, 6, 6), torch.rand(2, 1), torch.rand(2, 1)
        call = network_call(model, (x, torch.rand(5)), {"high": high, "low": low}, "onnxruntime")
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(call()[0]), model(x, None, low=low, high=high))


def test_other_inputs_and_a_network_that_shrank_are_timed_as_they_are(monkeypatch):
    """A file is made for one size of inputs and of the network; a `Pruner` cuts the network itself."""
    made = []
    monkeypatch.setattr(
        "halp_fx.latency.compiling.packaged", lambda program, path: made.append(path) or program.module()
    )
    model = Net().eval()

    def check(rows):
        args, kwargs = (torch.rand(rows, 3, 6, 6),), {"scale": torch.rand(rows, 1)}
        with torch.no_grad():
            torch.testing.assert_close(network_call(model, args, kwargs, "aoti")(), model(*args, **kwargs))
        return len(made)

    assert [check(2), check(2), check(3)] == [1, 1, 2]
    model.conv.weight, model.conv.bias = (nn.Parameter(p[:2].clone()) for p in (model.conv.weight, model.conv.bias))
    model.head.weight = nn.Parameter(model.head.weight[:, :2].clone())
    assert check(3) == 3


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(LatencyError, match=r"needs onnxruntime.*pip install .*onnxruntime"):
        network_call(Net().eval(), *X, "onnxruntime")


def test_a_package_compiled_ahead_is_called_with_the_inputs(monkeypatch):
    """The compiler takes a minute: what it is given stands in for what it makes."""
    made = []
    monkeypatch.setattr(
        "halp_fx.latency.compiling.packaged", lambda program, path: made.append(path) or program.module()
    )
    model = Net().eval()
    with torch.no_grad():
        torch.testing.assert_close(network_call(model, *X, "aoti")(), model(*X[0], **X[1]))
        network_call(model, *X, "aoti")
    assert [path.suffix for path in made] == [".pt2"]


@pytest.mark.slow  # AOTInductor calls the C++ compiler: some 30 s of CPU.
def test_the_real_package_is_the_pruned_network_and_loaded_from_its_file(monkeypatch):
    import torch._inductor as inductor

    loaded, load = [], inductor.aoti_load_package
    monkeypatch.setattr(inductor, "aoti_load_package", lambda path: loaded.append(Path(path)) or load(path))
    small = halp_fx.rewrite(Net().eval(), {"conv": (0, 2)}, (*X[0], X[1]))
    with torch.no_grad():
        wanted, call = small(*X[0], **X[1]), network_call(small, *X, "aoti")
        torch.testing.assert_close(call(), wanted)
        interleaved([small], X, runtime="aoti", **BRIEF)
        small.conv.weight.zero_()
        torch.testing.assert_close(call(), wanted)  # The package's own weights.
        assert not torch.allclose(small(*X[0], **X[1]), wanted)
    assert [path.suffix for path in loaded] == [".pt2"]


def test_the_real_frozen_code_has_weights_as_constants():
    small = halp_fx.rewrite(Net().eval(), {"conv": (0, 2)}, (*X[0], X[1]))
    with torch.no_grad():
        wanted = small(*X[0], **X[1])
        frozen, open_ = (network_call(small, *X, runtime) for runtime in ("inductor-frozen", "inductor"))
        for call in (frozen, open_):
            torch.testing.assert_close(call(), wanted)
        small.conv.weight.zero_()
        torch.testing.assert_close(frozen(), wanted)
        torch.testing.assert_close(open_(), small(*X[0], **X[1]))
        assert not torch.allclose(open_(), wanted)


def test_a_network_that_cannot_be_exported_is_named():
    class Data(nn.Module):
        def forward(self, x):
            return x[: int(x.sum())] if x.sum() > 0 else x

    with pytest.raises(LatencyError, match=r"this Data cannot be timed in runtime 'aoti'"):
        deployed.deployed_call(Data(), (torch.ones(3),), {}, "aoti")
