"""Tables of another device: requested here, measured there, and pruned by here, where nothing is timed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from oracle import Net
from test_latency_measured import FakeTimer
from torch import nn

import halp_fx
from halp_fx.errors import LatencyError
from halp_fx.latency import (
    CorruptTableError,
    Fingerprint,
    LatencyTable,
    MeasuredLatency,
    TableLatency,
    TableRequest,
    TableVersionError,
    fingerprint,
    measure_request,
    read_request,
    read_table,
    write_request,
    write_table,
)
from halp_fx.latency.layers import layers
from halp_fx.pruning.goals import cost_called
from halp_fx.pruning.widths import width_options


class RunningTimer(FakeTimer):
    """One that runs what it times."""

    def __call__(self, call, device, effort):
        call()
        return super().__call__(call, device, effort)


X = torch.randn(2, 3, 12, 12)
PI = "Raspberry Pi 5 Model B Rev 1.0, 4 cores"


def attending(s, x):
    """Attention with a table of positions, a group norm and a mask: constants of every kind."""
    x = s.norm(s.stem(x))[..., ::2, ::2].flatten(2).transpose(1, 2)
    a = (x @ x.transpose(1, 2) + s.bias[s.index]).masked_fill(s.index > 300, float("-inf")).softmax(-1, torch.float32)
    return s.head((a @ x).mean(1))


def network():
    torch.manual_seed(0)
    model = Net(attending, stem=nn.Conv2d(3, 16, 3, padding=1), norm=nn.GroupNorm(2, 16), head=nn.Linear(16, 4))
    model.bias = nn.Parameter(torch.randn(36 * 36))
    model.register_buffer("index", torch.arange(36 * 36).reshape(36, 36).flip(0))
    return model.eval()


def wide():
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def requested(model, min_keep=0.1):
    coupling = halp_fx.channel_groups(model, X)
    return coupling, TableRequest.of(
        coupling, {g.name: width_options(g, min_keep=min_keep) for g in coupling.prunable}, "n"
    )


def measured_there(model, path, timer=None, min_keep=0.1):
    """As a Raspberry Pi would leave it."""
    coupling, request = requested(model, min_keep)
    table, _ = measure_request(request, path, timer=timer or FakeTimer())
    write_table(replace(table, fingerprint=replace(table.fingerprint, device=PI)), path)
    return coupling, request


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pi5.json"


def untimed(*_):
    raise AssertionError("something was timed here")


@pytest.mark.parametrize("make", [network, wide])
def test_a_request_is_read_as_it_was_written(make, path):
    coupling, request = requested(make())
    write_request(request, path)
    again = read_request(path)
    assert (again.network, again.runtime) == ("n", "eager")
    by_key = {(layer.key, layer.dense): layer for layer in layers(coupling)}
    assert [row.key for row in again.rows] == [row.key for row in request.rows]
    assert {row.key for row in again.rows} == by_key.keys()
    for there, here in zip(again.rows, request.rows, strict=True):
        assert (there.inputs, there.output, there.uses) == (here.inputs, here.output, here.uses)
        for point in {here.layer.dense, (here.inputs.low, here.output.low)}:
            (args, kwargs), (want, named) = (r.layer.arguments(*point) for r in (there, here))
            torch.testing.assert_close(there.layer.function(*args, **kwargs), here.layer.function(*want, **named))


def test_there_and_here_the_same_points_are_timed(path):
    coupling, request = requested(wide())
    table, where = measure_request(request, path, timer=FakeTimer())
    here = MeasuredLatency(table=LatencyTable(Fingerprint.of(torch.device("cpu"))), timer=FakeTimer())
    here.tables(coupling, {g.name: width_options(g) for g in coupling.prunable})
    assert where == path
    assert read_table(path).entries == table.entries == here.measured.entries


def test_a_table_of_another_device_prunes_here_without_timing(path, monkeypatch):
    model = wide()
    coupling, _ = measured_there(model, path)
    monkeypatch.setattr("halp_fx.latency.sampler.timer_for", lambda runtime: untimed)
    monkeypatch.setattr("halp_fx.latency.measured.interleaved", untimed)
    small = halp_fx.prune(model, 0.5, X, latency=path, progress=False)
    table, report = read_table(path), small.halp
    assert report.met
    assert report.measured <= 0.5 * report.dense
    assert report.predicted == pytest.approx(report.measured)
    assert (report.conditions.device, report.conditions.runtime) == (PI, "eager")
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    times = [table.get(layer.key, layer.dense) for layer in layers(coupling)]
    assert report.dense == pytest.approx(sum(t.median_ms for t in times))


def test_what_was_not_timed_is_not_called_measured(path, tmp_path):
    model = wide()
    measured_there(model, path)
    report = halp_fx.prune(model, 0.5, X, latency=path, progress=False).halp
    assert f"(by the table of {PI})" in report.verdict
    page = report.to_html(tmp_path / "page.html").read_text()
    for said in (str(report), report.summary(), page, page.partition("How it was taken")[2]):
        assert PI in said
        assert "measured" not in said
        assert "in turn" not in said
    curve = halp_fx.pareto(model, ["80%", "50%"], X, latency=path, progress=False)
    for said in (str(curve), curve.to_json(), svg_text(curve.plot(tmp_path / "curve.svg"))):
        assert PI in said
        assert "measured" not in said.replace('"measured":', "")
    found = str(halp_fx.profile(model, X, latency=path, progress=False))
    assert f"by the table of {PI}" in " ".join(found.split())
    assert "measured" not in found


def svg_text(path):
    """What a picture says: matplotlib leaves each text as a comment beside its glyphs."""
    return " ".join(re.findall("<!-- (.*?) -->", path.read_text()))


def test_a_table_that_is_not_there_is_not_measured_here(tmp_path):
    """Times of this machine would pass for those of the other one."""
    gone = tmp_path / "pi5.json"
    with pytest.raises(halp_fx.BudgetError, match=r"there is no such latency table.*MeasuredLatency\(table="):
        halp_fx.prune(wide(), 0.5, X, latency=str(gone), progress=False)
    assert not gone.exists()


def test_between_measured_widths_times_are_interpolated(path):
    coupling, _ = measured_there(wide(), path)
    cost, table = TableLatency(path), read_table(path)
    widths = coupling.widths() | {"0": 20}
    grids = {t.name: t for t in cost.tables(coupling, {"0": (4, 32), "2": (8, 64)})}
    first = next(layer for layer in layers(coupling) if layer.op == "convolution")
    known = sorted(o for i, o in table.entries[first.key] if i == 3)
    low, high = max(o for o in known if o <= 20), min(o for o in known if o >= 20)
    ends = [table.entries[first.key][3, o].median_ms for o in (low, high)]
    want = ends[0] if low == high else ends[0] + (ends[1] - ends[0]) * (20 - low) / (high - low)
    assert grids[first.name].at([20], [3])[0, 0] == pytest.approx(want)
    assert cost.total(coupling, widths) < cost.total(coupling)


def test_what_the_table_lacks_is_named(path):
    model = wide()
    measured_there(model, path, min_keep=0.5)
    with pytest.raises(LatencyError, match=rf"table of {PI} has times of .* from widths \(3, 16\) on.*--min-keep"):
        halp_fx.prune(model, 0.5, X, latency=str(path), progress=False)
    with pytest.raises(LatencyError, match=r"no times of 6 of this network's 6 layers, such as 0/conv.*: aten::conv"):
        halp_fx.prune(model, 0.5, X[:1], latency=str(path), progress=False)


def test_an_interrupted_measurement_goes_on(path):
    _, request = requested(wide())

    def stop(n, ms):
        if n == 9:
            raise KeyboardInterrupt
        return ms

    with pytest.raises(KeyboardInterrupt):
        measure_request(request, path, timer=FakeTimer(stop))
    before = len(read_table(path))
    assert before == 8
    again, whole = FakeTimer(), FakeTimer()
    table, _ = measure_request(request, path, timer=again)
    measure_request(request, path.with_name("other.json"), timer=whole)
    assert table.entries.keys() == {row.layer.key for row in request.rows}
    assert len(again.calls) < len(whole.calls) + 8


def test_an_operator_that_is_not_there_counts_as_nothing(path, tmp_path, caplog):
    model = wide()
    coupling, request = requested(model)
    write_request(request, path)
    data = json.loads(path.read_text())
    data["layers"][1]["function"] = "fancy::relu.Tensor"
    path.write_text(json.dumps(data))
    table, _ = measure_request(read_request(path), tmp_path / "t.json", timer=RunningTimer())
    assert "no operator fancy::relu.Tensor here" in caplog.text
    left = read_table(tmp_path / "t.json")
    assert left.notes == table.notes
    gone = request.rows[1].layer.key
    there = TableLatency(left)
    whole, _ = measure_request(request, tmp_path / "u.json", timer=FakeTimer())
    lost = sum(whole.get(gone, layer.dense).median_ms for layer in layers(coupling) if layer.key == gone)
    assert there.total(coupling) == pytest.approx(TableLatency(whole).total(coupling) - lost)


BROKEN = {
    "truncated": lambda text, data: text[:-20],
    "no request": lambda text, data: json.dumps({"format": "other"}),
    "version": lambda text, data: json.dumps(data | {"version": 9}),
    "widths": lambda text, data: text.replace('"inputs": [3, 3, 1]', '"inputs": [5, 3, 1]', 1),
    "words": lambda text, data: text.replace('"uses": 1', '"uses": "many"', 1),
    "runtime": lambda text, data: json.dumps(data | {"runtime": "quick"}),
    "dtype": lambda text, data: text.replace('"float32"', '"float99"'),
    "constant": lambda text, data: text.replace('"dtype": "float32"', '"dtype": "load"'),
    "no tensor": lambda text, data: json.dumps(
        data | {"layers": [data["layers"][0] | {"function": "aten::from_file", "args": ["x", True, 9]}]}
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_request_is_refused(case, path):
    write_request(requested(wide())[1], path)
    text = BROKEN[case](path.read_text(), json.loads(path.read_text()))
    path.write_text(text)
    kind = TableVersionError if case in ("no request", "version") else CorruptTableError
    with pytest.raises(kind, match=r"pi5\.json"):
        read_request(path)
    assert path.read_text() == text


def test_fused_operators_have_no_names_elsewhere():
    coupling, _ = requested(wide())
    with pytest.raises(LatencyError, match="one of eager, cudagraph, onnxruntime"):
        TableRequest.of(coupling, {}, "n", "inductor")


def test_whose_table_a_file_is(path):
    measured_there(wide(), path)
    assert isinstance(cost_called(path), TableLatency)
    write_table(LatencyTable(Fingerprint.of(torch.device("cpu"))), path)
    assert isinstance(cost_called(path), MeasuredLatency)
    assert isinstance(cost_called(path.parent), MeasuredLatency)


def test_boards_are_called_by_their_names(tmp_path, monkeypatch):
    (tmp_path / "model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    monkeypatch.setattr(fingerprint, "_BOARD", tmp_path / "model")
    assert fingerprint._cpu_name.__wrapped__().startswith("Raspberry Pi 5 Model B Rev 1.0, ")


def test_a_device_needs_no_library_of_networks(path, tmp_path):
    write_request(requested(wide())[1], path)
    blocked = ["torchvision", "timm", "transformers", "ultralytics", "networkx", "matplotlib", "onnx", "onnxruntime"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked})); from pathlib import Path; import halp_fx; "
        "from halp_fx.latency.timing import Effort; request = halp_fx.latency.read_request(Path(sys.argv[1])); "
        "table, _ = halp_fx.latency.measure_request(request, sys.argv[2], effort=Effort(1, 0, 0.001)); "
        "assert table.entries.keys() == {row.layer.key for row in request.rows}, table.notes"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "t.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
