"""Measured latency with a timer that obeys: what is measured, how often, and what is believed."""

from __future__ import annotations

import math
from collections import Counter

import numpy
import pytest
import torch
from test_latency_layers import couple
from torch import nn
from torch.utils._pytree import tree_leaves

from halp_fx.errors import LatencyError
from halp_fx.latency import Fingerprint, LatencyTable, MeasuredLatency, TimingError, read_table
from halp_fx.latency.lookup import cost_at
from halp_fx.latency.recheck import slower_when_narrower
from halp_fx.latency.sampler import CHECKED
from halp_fx.latency.timing import Timing
from halp_fx.trials.trials import channel_groups


def elements(call):
    """Elements of the tensors that a timed call reads."""
    leaves = tree_leaves((call.args, call.keywords))
    return sum(t.numel() for t in leaves if isinstance(t, torch.Tensor))


class FakeTimer:
    """Times that grow with the number of elements, in steps of 32; `disturb(n, ms)` may change the n-th."""

    def __init__(self, disturb=lambda n, ms: ms, spread=0.01):
        self.calls = []
        self.disturb, self.spread = disturb, spread

    def __call__(self, call, device, effort):
        true_ms = math.ceil(elements(call) / 32) * 1e-3
        self.calls.append(true_ms)
        ms = self.disturb(len(self.calls), true_ms)
        return Timing(ms, ms * self.spread, effort.min_blocks)


def measured(timer=None, table=None, **options):
    table = LatencyTable(Fingerprint.of(torch.device("cpu"))) if table is None else table
    return MeasuredLatency(table=table, timer=timer or FakeTimer(), **options)


def all_options(coupling):
    return {g.name: tuple(range(1, g.size + 1)) for g in coupling.prunable}


def narrow_widths(coupling):
    return {g.name: g.size if g.frozen else max(1, g.size // 2) for g in coupling.groups}


def test_total_and_tables_agree():
    coupling, cost = couple(), measured()
    dense = cost.total(coupling)
    tables = cost.tables(coupling, all_options(coupling))
    assert len(tables) == len(cost.layers(coupling)) == len(cost.by_layer(coupling))
    assert sum(cost_at(t, coupling.widths()) for t in tables) == pytest.approx(dense)
    widths = narrow_widths(coupling)
    assert sum(cost_at(t, widths) for t in tables) == pytest.approx(cost.total(coupling, widths))
    assert cost.total(coupling, widths) < dense
    assert cost.total(coupling) == dense


def test_the_dense_total_alone_measures_each_distinct_layer_once():
    body = [part for _ in range(3) for part in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    coupling = channel_groups(nn.Sequential(nn.Conv2d(3, 8, 1), *body, nn.Conv2d(8, 2, 1)), torch.rand(1, 3, 6, 6))
    timer = FakeTimer()
    cost = measured(timer)
    cost.total(coupling)
    distinct = {(x.key, x.dense) for x in cost.layers(coupling)}
    assert len(timer.calls) == len(distinct) < len(cost.layers(coupling))


def test_nothing_is_measured_twice_and_a_warm_table_is_enough(tmp_path):
    coupling, path = couple(), tmp_path / "table.json"
    first = MeasuredLatency(table=path, timer=FakeTimer())
    tables = first.tables(coupling, all_options(coupling))
    assert first.path == path

    timer = FakeTimer()
    second = MeasuredLatency(table=path, timer=timer)
    again = second.tables(coupling, all_options(coupling))
    assert len(timer.calls) == min(CHECKED, len({x.key for x in second.layers(coupling)}))
    assert all((a.table == b.table).all() for a, b in zip(tables, again, strict=True))
    assert second.total(coupling) == first.total(coupling)


@pytest.mark.parametrize("slowdown", [1.05, 3.0, 0.5])
def test_times_that_a_busy_machine_left_are_measured_again(tmp_path, slowdown, caplog):
    """Interference only adds: what is faster now was disturbed then; what is slower now is disturbed now."""
    coupling, path = couple(), tmp_path / "table.json"
    busy = FakeTimer(lambda n, ms: ms * slowdown)
    MeasuredLatency(table=path, timer=busy).tables(coupling, all_options(coupling))
    cost, quiet = MeasuredLatency(table=path, timer=FakeTimer()), measured()
    tables, expected = (c.tables(coupling, all_options(coupling)) for c in (cost, quiet))
    true = 1.0 if slowdown == 3.0 else slowdown
    for table, right in zip(tables, expected, strict=True):
        numpy.testing.assert_allclose(table.table, true * right.table)
    assert ("busier machine" in caplog.text) == (slowdown == 3.0)
    # The file has been put right as well, and all of it.
    left = {(key, point): t.median_ms for key, point, t in read_table(path)}
    now = {(key, point): t.median_ms for key, point, t in quiet.measured}
    assert left == pytest.approx({place: true * ms for place, ms in now.items()})


def test_narrower_options_of_a_later_step_use_the_same_lines():
    coupling, timer = couple(), FakeTimer()
    cost = measured(timer)
    options = all_options(coupling)
    cost.tables(coupling, options)
    count = len(timer.calls)
    later = {name: row[: max(1, len(row) // 2)] for name, row in options.items()}
    tables = cost.tables(coupling, later)
    assert len(timer.calls) == count
    cost_at(tables[0], coupling.widths())


def test_twins_with_different_options_share_a_grid_that_covers_both():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.c, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.c(self.a(x)), self.d(self.b(x))

    coupling, cost = channel_groups(Twins(), torch.rand(1, 3, 4, 4)), measured()
    tables = {t.name: t for t in cost.tables(coupling, {"stem": (4, 8), "a": (4, 8), "b": (3, 6, 8)})}
    for name in ("a", "b"):
        table = next(t for key, t in tables.items() if key.startswith(f"{name}/"))
        assert cost_at(table, {**coupling.widths(), name: 4}) > 0
    assert table.out_widths[0] == 3


def test_disturbed_points_are_measured_again_and_corrected():
    # Every 17th measurement comes out five times too long, until it is repeated.
    coupling = couple()
    timer = FakeTimer(lambda n, ms: 5 * ms if n % 17 == 0 else ms)
    noisy, calm = measured(timer), measured()
    tables, expected = (c.tables(coupling, all_options(coupling)) for c in (noisy, calm))
    total = calm.total(coupling)
    for widths in (narrow_widths(coupling), coupling.widths()):
        for a, b in zip(tables, expected, strict=True):
            # A layer may be off by what does not matter in the network.
            assert abs(cost_at(a, widths) - cost_at(b, widths)) < max(0.05 * cost_at(b, widths), 0.0025 * total)
    assert any(t.runs > 1 for *_, t in noisy.measured)


def test_real_cliffs_stay():
    class Cliff(FakeTimer):
        def __call__(self, call, device, effort):
            super().__call__(call, device, effort)
            ms = 1.0 + (0.8 if call.args[0].shape[1] % 8 else 0.0) + 1e-3 * call.args[0].shape[1]
            return Timing(ms, 0.01, 9)

    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 4, 1))
    coupling = channel_groups(model, torch.rand(1, 3, 4, 4))
    cost = measured(Cliff())
    table = next(t for t in cost.tables(coupling, {"0": tuple(range(2, 33, 2))}) if "relu" in t.name)
    by_width = dict(zip(table.in_widths.tolist(), table.table[0].tolist(), strict=True))
    assert all((ms > 1.5) == bool(width % 8) for width, ms in by_width.items())
    pairs, slower = slower_when_narrower(cost.measured)
    assert 0 < slower < pairs


def test_wide_spread_is_measured_again_then_reported(caplog):
    coupling, timer = couple(), FakeTimer(spread=0.4)
    cost = measured(timer)
    cost.total(coupling)
    cost.tables(coupling, all_options(coupling))
    assert max(Counter(timer.calls).values()) >= 2
    assert "spread by more than 25 %" in caplog.text
    assert "40 %" in caplog.text
    assert cost.measured.notes


def test_a_machine_that_changes_speed_is_reported(caplog):
    coupling = couple()
    cost = measured(FakeTimer(lambda n, ms: ms * (1 + n / 300)))
    cost.tables(coupling, all_options(coupling))
    assert "changed speed" in caplog.text


def test_prediction_errors_by_layer():
    coupling, cost = couple(), measured()
    cost.tables(coupling, all_options(coupling))
    widths = narrow_widths(coupling)
    predicted, exact = (cost.by_layer(coupling, widths, exact) for exact in (False, True))
    assert predicted.keys() == exact.keys()
    assert predicted != exact
    assert sum(predicted.values()) == pytest.approx(sum(exact.values()), rel=0.05)


@pytest.mark.parametrize("ms", [float("nan"), 0.0, -1.0, float("inf")])
def test_times_that_are_none_are_refused(ms, caplog):
    coupling = couple()
    cost = MeasuredLatency(table=LatencyTable(Fingerprint.of(torch.device("cpu"))), timer=lambda *_: Timing(ms, 0.0, 3))
    with pytest.raises(TimingError, match="refused"):
        Timing(ms, 0.0, 3)
    assert cost.total(coupling) == 0
    assert "cannot be timed" in caplog.text
    assert len(cost.measured) == 0


def test_a_layer_that_cannot_be_replayed_is_left_to_the_calibration(caplog):
    def timer(call, device, effort):
        if call.func is torch.ops.aten.cat.default:
            raise RuntimeError("no such kernel")
        return Timing(1.0, 0.0, 9)

    coupling = couple()
    cost = measured(timer)
    parts = cost.by_layer(coupling)
    assert parts["forward/cat"] == 0
    assert sum(parts.values()) == len(parts) - 1
    assert "no such kernel" in caplog.text


def test_interrupted_build_resumes(tmp_path):
    coupling, path = couple(), tmp_path / "table.json"

    def interrupt(n, ms):
        if n == 40:
            raise KeyboardInterrupt
        return ms

    with pytest.raises(KeyboardInterrupt):
        MeasuredLatency(table=path, timer=FakeTimer(interrupt)).tables(coupling, all_options(coupling))
    assert len(read_table(path)) == 39
    full, rest = FakeTimer(), FakeTimer()
    measured(full).tables(coupling, all_options(coupling))
    MeasuredLatency(table=path, timer=rest).tables(coupling, all_options(coupling))
    assert len(rest.calls) == len(full.calls) - 39 + CHECKED


def test_times_on_this_machine():
    # The one test with a real clock: it asserts no figures.
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1)).eval()
    coupling = channel_groups(model, torch.rand(1, 3, 8, 8))
    cost = MeasuredLatency(table=LatencyTable(Fingerprint.of(torch.device("cpu"))))
    assert len(cost.tables(coupling, {"0": (2, 4, 6, 8)})) == 4
    assert cost.total(coupling) > 0
    layer = cost.layers(coupling)[0]
    assert cost.timing(layer, *layer.dense).count >= 3


def test_another_number_of_threads_has_a_table_of_its_own(tmp_path):
    coupling, cost = couple(), MeasuredLatency(table=tmp_path, timer=FakeTimer())
    cost.total(coupling)
    one, calls = cost.path, len(cost.timer.calls)
    torch.set_num_threads(2)
    cost.total(coupling)
    assert len(cost.timer.calls) == 2 * calls
    assert [read_table(path).fingerprint.threads for path in (one, cost.path)] == [1, 2]


def test_unknown_runtime_and_early_questions():
    with pytest.raises(LatencyError, match="eager, inductor"):
        MeasuredLatency(runtime="fast")
    with pytest.raises(LatencyError, match="no table yet"):
        _ = MeasuredLatency().measured


def test_cuda_graphs_without_cuda_are_refused_before_anything_is_timed():
    with pytest.raises(LatencyError, match="CUDA device, not cpu"):
        MeasuredLatency(runtime="cudagraph", timer=FakeTimer()).total(couple())
