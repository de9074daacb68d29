"""What is exported computes what the network does: run here by onnxruntime and PyTorch themselves."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from oracle import Net
from test_prune import Small
from test_saving import detector
from torch import nn

import halp_fx
from halp_fx import Export, ExportError, Plan, Report
from halp_fx.exporting.examples import Batches, deviation
from halp_fx.exporting.files import onnx_entries
from halp_fx.exporting.ways import ways
from halp_fx.latency.interleaving import NetworkTiming
from halp_fx.rewriting.descent import origin_of

X = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DYNAMO, TORCHSCRIPT = "torch.onnx, dynamo", "torch.onnx, TorchScript"


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    return Small().train()


@pytest.fixture(scope="module")
def small(dense):
    return halp_fx.prune(dense, 0.5, X, latency="macs", progress=False)


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    halp_fx.export(small, path, X)
    return path


def run(path: Path, **inputs: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(str(path))
    return [torch.from_numpy(a) for a in session.run(None, {k: v.numpy() for k, v in inputs.items()})]


def eager(model: nn.Module, *inputs) -> torch.Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(*inputs)


def test_an_onnx_file_takes_any_batch_and_knows_its_plan(small, tmp_path):
    path = tmp_path / "new" / "net.onnx"
    before = copy.deepcopy(small.state_dict())
    made = halp_fx.export(small, path, X)
    assert made == Export(path, DYNAMO, True, (1, 2), made.deviation, path.stat().st_size)
    assert made.deviation < 1e-5
    for size in (1, 5):
        x = torch.rand(size, 3, 8, 8)
        (found,) = run(path, x=x)
        torch.testing.assert_close(found, eager(small, x), rtol=1e-4, atol=1e-5)
    entries = onnx_entries(path)
    assert Report.from_json(entries["halp_fx.report"]) == small.halp
    assert [Plan.from_json(json.dumps(p)) for p in json.loads(entries["halp_fx.plans"])] == [*origin_of(small).plans]
    assert [o.name for o in onnx.load(path).graph.output] == ["output"]
    assert all(m.training for m in small.modules())
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())
    assert [p.name for p in path.parent.iterdir()] == ["net.onnx"]


def test_weights_that_no_onnx_file_can_hold_are_in_a_second_one(small, tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    monkeypatch.setattr("halp_fx.exporting.exporter.PROTOBUF", 1000)
    for _ in range(2):  # The second takes the place of both files of the first.
        made = halp_fx.export(small, path, X)
        first, second = sorted(tmp_path.iterdir())
        assert (first, second.suffix) == (path, ".data")
        assert made.size == first.stat().st_size + second.stat().st_size
        assert second.stat().st_size > sum(p.numel() for p in small.parameters()) * 3
    (found,) = run(path, x=X)
    torch.testing.assert_close(found, eager(small, X), rtol=1e-4, atol=1e-5)
    assert Report.from_json(onnx_entries(path)["halp_fx.report"]) == small.halp
    monkeypatch.setattr("halp_fx.exporting.exporter.deviation", lambda *_: math.inf)
    monkeypatch.setattr("halp_fx.exporting.exporter.ways", lambda suffix: ways(suffix)[:1])
    with pytest.raises(ExportError, match="other shapes"):
        halp_fx.export(small, path, X)
    assert sorted(tmp_path.iterdir()) == [first, second], "the old files are as they were"
    monkeypatch.undo()
    halp_fx.export(small, path, X)
    assert [*tmp_path.iterdir()] == [path]


def test_the_opset_that_was_asked_for(small, tmp_path):
    made = halp_fx.export(small, tmp_path / "net.onnx", X, opset=17)
    assert [s.version for s in onnx.load(made.path).opset_import if not s.domain] == [17]
    with pytest.raises(ExportError, match=r"opset=17 is of \.onnx files"):
        halp_fx.export(small, tmp_path / "net.pt2", X, opset=17)


@pytest.mark.xfail(
    tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15),
    reason="PyTorch 2.15 prints the graph from C++ alone",
)
def test_exporters_that_fail_print_nothing(tmp_path, capfd):
    """Not from C++ either: the older one would write its graph into what a command line says."""
    print("here", flush=True)
    with pytest.raises(ExportError, match="TorchScript, one batch size"):
        halp_fx.export(nn.Conv2d(3, 2, 1), tmp_path / "net.onnx", X, opset=99)
    torch._C._jit_onnx_log("the log is as it was")
    assert capfd.readouterr() == ("here\nthe log is as it was\n", "")


def test_a_pt2_file(small, tmp_path):
    path = tmp_path / "net.pt2"
    made = halp_fx.export(small, str(path), X)
    assert made == Export(path, "torch.export", True, (1, 2), made.deviation, path.stat().st_size)
    x = torch.rand(4, 3, 8, 8)
    beside = {"halp_fx.json": ""}
    torch.testing.assert_close(torch.export.load(path, extra_files=beside).module()(x), eager(small, x))
    assert Report.from_json(json.loads(beside["halp_fx.json"])["halp_fx.report"]) == small.halp


def test_a_network_without_modes(small, tmp_path):
    exported = torch.export.export(copy.deepcopy(small).eval(), (X,)).module()
    assert halp_fx.export(exported, tmp_path / "again.pt2", X).deviation == 0


@pytest.fixture
def timed(monkeypatch):
    """The networks that are timed, without a clock."""
    seen = []

    def interleaved(networks, inputs):
        args, kwargs = inputs
        seen.append([network(*args, **kwargs) for network in networks])
        return NetworkTiming(4.0, 0.1, 9), NetworkTiming(3.0, 0.1, 9, share=0.7)

    monkeypatch.setattr("halp_fx.exporting.exporter.interleaved", interleaved)
    monkeypatch.setattr("halp_fx.exporting.quantizing.interleaved", interleaved)
    return seen


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2"])
def test_the_file_is_timed_beside_the_dense_networks(name, dense, small, timed, tmp_path):
    made = halp_fx.export(small, tmp_path / name, X, dense=dense)
    assert (made.file_ms, made.reference_ms, made.share) == (3.0, 4.0, 0.7)
    assert "70.0% of the time of the dense network's file, timed in turn (medians 3 and 4 ms)" in str(made)
    for found, model in zip(timed[0], (dense, small), strict=True):
        found = found[0] if isinstance(found, tuple) else found
        torch.testing.assert_close(found, eager(model, X), rtol=1e-4, atol=1e-5)
    assert all(m.training for m in dense.modules())


def test_a_dense_network_that_cannot_be_timed_is_a_note(small, tmp_path):
    made = halp_fx.export(small, tmp_path / "net.pt2", X, dense=nn.Linear(3, 3))
    assert made.share is None
    assert "dense network could not be timed: " in made.notes[-1]


def branching(m, x):
    y = m.a(x)
    return m.b(y.relu() if float(y.abs().sum()) > 0 else y)


def picking(m, x):
    return m.b(m.a(x).relu())[..., int(x[0, 0, 0].argmax())]


def of_two(m, x):
    return m.b(m.a(x).relu().reshape(2, 8, 8, 8))


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1)}


def test_the_older_exporter_where_the_newer_one_fails(tmp_path):
    net = Net(branching, **layers())
    made = halp_fx.export(net, tmp_path / "net.onnx", X)
    assert (made.exporter, made.dynamic) == (TORCHSCRIPT, True)
    assert len(made.notes) == 1
    assert made.notes[0].startswith(f"{DYNAMO}, any batch size: ")
    x = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(run(tmp_path / "net.onnx", x=x)[0], eager(net, x), rtol=1e-4, atol=1e-5)
    assert onnx_entries(tmp_path / "net.onnx").keys() == {"halp_fx.version"}
    with pytest.raises(ExportError, match=r"(?s)no exporter .*torch\.export, one batch size: .*Export a part of it"):
        halp_fx.export(net, tmp_path / "net.pt2", X)


def test_a_file_that_computes_something_else_is_refused(tmp_path):
    """A number that follows from values is a constant in what was traced: only other inputs show it."""
    path = tmp_path / "net.onnx"
    path.write_bytes(b"as it was")
    with pytest.raises(ExportError, match=r"TorchScript, one batch size: its outputs are [\d.e-]+ apart"):
        halp_fx.export(Net(picking, **layers()), path, X)
    assert path.read_bytes() == b"as it was"
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_a_network_of_one_batch_size(tmp_path):
    net = Net(of_two, **layers())
    x = torch.rand(2, 3, 8, 8)
    made = halp_fx.export(net, tmp_path / "net.onnx", x)
    assert (made.exporter, made.dynamic, made.batches) == (DYNAMO, False, (2,))
    assert made.notes[0].startswith("the network itself takes no other batch size: ")
    torch.testing.assert_close(run(tmp_path / "net.onnx", x=x)[0], eager(net, x), rtol=1e-4, atol=1e-5)


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x, pair, *, scale, unused=None, flag=True):
        y = self.a(x * scale + pair["left"] + pair["right"]).relu() if flag else x
        return {"logits": self.b(y), "rows": [y, y.argmax(1)]}


def test_several_inputs_and_outputs_have_names(tmp_path):
    net = Several().eval()
    x, left, right, scale = torch.rand(4, 2, 4).unbind(0)[:1] + torch.rand(3, 2, 4).unbind(0)
    inputs = (x, {"left": left, "right": right}, {"scale": scale, "unused": torch.rand(2), "flag": True})
    path = tmp_path / "net.onnx"
    made = halp_fx.export(net, path, inputs)
    assert (made.dynamic, made.batches) == (True, (2, 3))
    graph = onnx.load(path).graph
    assert {i.name for i in graph.input} - {"unused"} == {"x", "pair_0", "pair_1", "scale"}
    assert [o.name for o in graph.output] == ["logits", "rows_0", "rows_1"]


def test_a_detector(tmp_path):
    torch.manual_seed(0)
    net = detector().eval()
    for p in net.rpn.parameters():
        p.data.mul_(3)
    images = [torch.rand(3, 64, 64)]
    made = halp_fx.export(net.backbone, tmp_path / "backbone.onnx", images[0][None])
    assert (made.exporter, made.dynamic) == (DYNAMO, True)


def test_what_cannot_be_exported_is_said_before_anything_runs(small, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match=r"must end in \.onnx or \.pt2"):
        halp_fx.export(small, tmp_path / "net.tflite", X)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r'needs onnxscript .*: python -m pip install "onnx>=[\d.]+" "onnxscript>='):
        halp_fx.export(small, tmp_path / "net.onnx", X)
    assert not list(tmp_path.iterdir())


def test_inputs_that_the_network_does_not_take_are_named(small, tmp_path):
    with pytest.raises(
        ExportError, match=r"forward of this Small fails on the example inputs \(\(1, 4, 8, 8\)\): Runtime"
    ):
        halp_fx.export(small, tmp_path / "net.onnx", torch.rand(1, 4, 8, 8))
    assert not list(tmp_path.iterdir())


def test_how_far_results_are_apart():
    inputs = ((), {})
    one = torch.tensor([1.0, -4.0])
    assert deviation(lambda: {"a": [one]}, [(inputs, [one])]) == 0
    assert deviation(lambda: one + torch.tensor([0.0, 0.5]), [(inputs, [one])]) == pytest.approx(0.125)
    assert deviation(lambda: one.half(), [(inputs, [one])]) == 0
    for other in (one[:1], torch.tensor([1.0, math.nan]), torch.tensor([math.inf, 1.0]), (one, one), ()):
        assert deviation(lambda other=other: other, [(inputs, [one])]) == math.inf
    whole = torch.tensor([3, 4])
    assert deviation(lambda: whole, [(inputs, [whole.int()])]) == 0
    assert deviation(lambda: whole + 1, [(inputs, [whole])]) == math.inf
    assert deviation(lambda: one[:0], [(inputs, [one[:0]])]) == 0
    # The worst of several.
    assert deviation(lambda: (one, one + 4), [(inputs, [one, one])]) == pytest.approx(1.0)


def test_larger_batches_hold_other_rows():
    x, mask, rest = torch.rand(2, 3, 4), torch.tensor([1, 2]), torch.rand(5)
    batches = Batches.of(((x,), {"mask": mask, "rest": rest, "flag": True}))
    (wide,), more = batches.at(5)
    assert (wide.shape, more["mask"].shape, more["flag"]) == ((5, 3, 4), (5,), True)
    assert torch.equal(wide[:2], x)
    assert more["rest"] is rest
    assert not torch.equal(wide[2:4], x)
    (again,), _ = batches.again()
    assert again.shape == x.shape
    assert not torch.equal(again, x)
    assert torch.equal(again.sort().values, x.sort().values)
    assert Batches.of((([x],), {})).size == 0
    assert Batches.of(((3,), {})).size == 0


def test_quantised(small, exported, timed, tmp_path):
    path = tmp_path / "net.int8.onnx"
    data = [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])) for _ in range(4)]
    made = halp_fx.quantize(exported, path, data)
    assert (made.exporter, made.dynamic, made.batches) == ("onnxruntime, static int8", True, (4,))
    assert 0 < made.deviation < 0.1
    assert made.share == 0.7
    nodes = {n.op_type for n in onnx.load(path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= nodes
    assert any(w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 4 for w in onnx.load(path).graph.initializer)
    x = torch.rand(3, 3, 8, 8)
    (found,) = run(path, x=x)
    assert (found - eager(small, x)).abs().max() < 0.1 * eager(small, x).abs().max()
    assert Report.from_json(onnx_entries(path)["halp_fx.report"]) == small.halp
    assert halp_fx.quantize(exported, path, [{"x": x}]).batches == (3,)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("q.onnx", [], "no batches"),
        ("q.onnx", [torch.rand(1, 4, 8, 8)], "the file takes float32 of shape"),
        ("q.pt2", [X], r"end in \.onnx"),
    ],
)
def test_what_cannot_be_quantised(name, data, words, exported, tmp_path):
    with pytest.raises(ExportError, match=words):
        halp_fx.quantize(exported, tmp_path / name, data)
    with pytest.raises(ExportError, match="nowhere" if "file takes" in words else words):
        halp_fx.quantize(tmp_path / "nowhere.onnx", tmp_path / name, data)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_calibrated_with(exported, tmp_path):
    broken = X.clone()
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(ExportError, match=r"batches 1, 3 of data \(counted from 0\) hold NaN"):
        halp_fx.quantize(exported, tmp_path / "q.onnx", [X, broken, X, broken])
    with pytest.raises(halp_fx.SaliencyError, match=r"here \[data\]"):
        halp_fx.quantize(exported, tmp_path / "q.onnx", X)
    with pytest.raises(ExportError, match=r"nowhere\.onnx could not be quantised: there is no file"):
        halp_fx.quantize(tmp_path / "nowhere.onnx", tmp_path / "q.onnx", [X])
    assert not list(tmp_path.iterdir())
