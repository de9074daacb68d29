"""What a report says about the predictions, and about costs that are not times. No clock decides."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from test_prune import IMAGE, Small, small_resnet
from torch import nn

import halp_fx
from halp_fx import HalpError, MacsCost
from halp_fx.latency import Fingerprint, LatencyTable, MeasuredLatency, Timing
from halp_fx.latency.interleaving import NetworkTiming
from halp_fx.latency.prediction import LayerError


class Clock:
    """Times that follow the bytes of the arguments, `factor` times over."""

    def __init__(self):
        self.factor = 1.0
        self.calls = 0

    def __call__(self, call, device, effort):
        self.calls += 1
        elements = sum(a.numel() for a in call.args if isinstance(a, torch.Tensor))
        return Timing(self.factor * (1e-3 + 1e-5 * elements), 1e-6, 9)


def latency(clock):
    return MeasuredLatency(table=LatencyTable(Fingerprint.of(torch.device("cpu"))), timer=clock)


def test_layers_timed_exactly_are_timed_now_and_not_kept():
    coupling, clock = halp_fx.channel_groups(Small().eval(), torch.rand(2, 3, 8, 8)), Clock()
    cost = latency(clock)
    before = cost.by_layer(coupling)
    clock.factor = 2.0
    now = cost.by_layer(coupling, exact=True)
    assert now == pytest.approx({name: 2 * ms for name, ms in before.items()})
    assert cost.by_layer(coupling) == before


def test_report_has_every_layer_predicted_and_timed(monkeypatch):
    def interleaved(models, inputs, **_):
        return tuple(NetworkTiming(ms, 0.01, 9, share=ms / 10.0) for ms in (10.0, 6.0)[: len(models)])

    monkeypatch.setattr("halp_fx.latency.measured.interleaved", interleaved)
    small = halp_fx.prune(Small().eval(), 0.6, torch.rand(2, 3, 8, 8), latency=latency(Clock()), progress=False)
    report = small.halp
    operators = halp_fx.channel_groups(small, torch.rand(2, 3, 8, 8)).traced.graph.nodes
    assert {x.name.split("/")[1] for x in report.layers} <= {n.name for n in operators}
    assert {x.op for x in report.layers} >= {"convolution", "addmm", "relu"}
    convolution = next(x for x in report.layers if x.name.startswith("b/"))
    assert convolution.widths == (small.b.in_channels, small.b.out_channels)
    # The clock is bilinear in the widths, so tables predict it exactly.
    assert report.layer_error == pytest.approx(0, abs=1e-9)
    assert report.uncalibrated == pytest.approx(sum(x.timed_ms for x in report.layers))
    assert report.rounds[-1].uncalibrated > 0
    assert report.dense_ms == report.dense == 10.0
    assert "layers by 0.0% in the mean" in report.summary()


def test_layer_errors_are_weighted_by_time():
    report = halp_fx.prune(small_resnet(), 0.5, IMAGE, latency=MacsCost(), progress=False).halp
    assert math.isnan(report.layer_error)
    assert report.worst_layer is None
    rows = (
        LayerError("big", "convolution", (8, 8), 9.0, 10.0),
        LayerError("small", "relu", (8, 0), 0.03, 0.01),  # Three times off, but nobody notices.
        LayerError("left out", "nms", (8, 0), 0.0, 0.0),
    )
    report = replace(report, layers=rows)
    assert report.layer_error == pytest.approx(1.02 / 10.01)
    assert report.worst_layer is rows[0]
    assert rows[0].error == pytest.approx(-0.1)
    assert rows[2].error == 0.0


def test_a_counted_cost_is_not_given_out_as_milliseconds():
    report = halp_fx.prune(small_resnet(), 0.5, IMAGE, latency=MacsCost(), progress=False).halp
    assert report.unit == "MACs"
    assert report.measured <= report.budget < report.dense
    for name in ("dense_ms", "budget_ms", "predicted_ms", "measured_ms"):
        with pytest.raises(HalpError, match=f"MACs, not by time; read report.{name[:-3]}"):
            getattr(report, name)


class Finds(nn.Module):
    """As a two-stage detector: layers that run once for each place that was found."""

    def __init__(self):
        super().__init__()
        self.stem, self.found = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 1, 1)
        self.fc, self.head = nn.Linear(16, 64), nn.Linear(64, 4)

    def forward(self, x):
        h = self.stem(x).relu()
        places = h.permute(0, 2, 3, 1)[self.found(h)[:, 0] > 0]
        return self.head(self.fc(places).relu())


def test_work_that_depends_on_what_is_found_is_said_to():
    torch.manual_seed(0)
    report = halp_fx.prune(Finds().eval(), 0.7, torch.randn(1, 3, 16, 16), latency="macs", progress=False).halp
    (note,) = (n for n in report.notes if "depends on what" in n)
    assert re.match(r"\d\d% of the MACs are in layers whose work depends on .* \(fc, head\)\.", note)
    assert "what the dense network found in the example inputs" in note
    plain = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    report = halp_fx.prune(plain, 0.7, torch.randn(1, 3, 16, 16), latency="macs", progress=False).halp
    assert not any("depends on what" in n for n in report.notes)
