"""Timers and calibration, without assertions on real times."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from halp_fx.errors import LatencyError
from halp_fx.latency import Timing, TimingError
from halp_fx.latency.calibration import Calibration
from halp_fx.latency.interleaving import interleaved
from halp_fx.latency.timing import Effort, time_call, time_graph, undisturbed


def test_disturbed_samples_are_set_aside():
    samples = [1.0, 1.02, 0.98, 3.1, 1.01, 2.9, 3.0, 0.99]
    assert Timing.of(samples) == Timing.of([s for s in samples if s < 2])
    assert len(undisturbed([1.0, 1.1, 1.2, 1.3])) == 4


@pytest.mark.parametrize("samples", [[], [float("nan")] * 3, [0.0] * 3, [-1.0] * 5])
def test_nonsense_is_refused(samples):
    with pytest.raises(TimingError):
        Timing.of(samples)


def test_effort_stops_when_the_median_is_known():
    effort = Effort(min_blocks=5, min_time_s=0.01, max_time_s=1.0, precision=0.01)
    steady, wild = [1.0, 1.001] * 5, [1.0, 1.4] * 5
    assert not effort.enough(steady[:4], 0.5)
    assert not effort.enough(steady, 0.001)
    assert effort.enough(steady, 0.5)
    assert not effort.enough(wild, 0.5)
    assert effort.enough(wild, 1.0)
    assert effort.enough([100.0] * 3, 11.0)


def fake_clock(monkeypatch, step_ns):
    ticks = itertools.count(0, step_ns)
    monkeypatch.setattr(time, "thread_time_ns", lambda: next(ticks))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(ticks))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) * 1e-9)


def test_time_call_counts_calls(monkeypatch):
    fake_clock(monkeypatch, 1_000_000)
    calls = []
    found = time_call(lambda: calls.append(torch.is_grad_enabled()), torch.device("cpu"))
    assert found.median_ms == 1.0
    assert found.spread == 0
    assert calls.count(True) == 0
    assert len(calls) == found.count + 2


def test_a_clock_that_stands_still_is_refused(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(time, "thread_time_ns", lambda: 0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    with pytest.raises(TimingError, match="not a time"):
        time_call(lambda: None, torch.device("cpu"))


def test_interleaved_takes_turns_and_leaves_models_as_found(monkeypatch):
    fake_clock(monkeypatch, 10_000_000)
    order = []

    class Net(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name, self.norm, self.drop = name, nn.BatchNorm1d(3), nn.Dropout()

        def forward(self, x):
            order.append((self.name, self.training, torch.is_grad_enabled()))
            return self.drop(self.norm(x))

    models = [Net("a").train(), Net("b").eval()]
    models[0].norm.eval()
    before, x = models[0].norm.running_mean.clone(), torch.rand(4, 3)
    state = torch.get_rng_state()
    found = interleaved(models, x, min_time_s=0.01, max_time_s=0.1, repeats=5)
    assert [t.median_ms for t in found] == [10.0, 10.0]
    assert {row[1:] for row in order} == {(False, False)}
    names = [row[0] for row in order]
    assert names[4:] == ["a", "b"] * found[0].count
    assert (models[0].training, models[0].norm.training, models[1].training) == (True, False, False)
    assert torch.equal(models[0].norm.running_mean, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_networks_are_compared_turn_by_turn(monkeypatch):
    # The machine slows down by 40 % now and then, sometimes between the two.
    times = {3: [10.0, 10.0, 14.0, 14.0, 14.0], 4: [6.0, 8.4, 8.4, 6.0, 6.0]}
    samplers = {width: iter(row) for width, row in times.items()}
    monkeypatch.setattr(
        "halp_fx.latency.interleaving._network_clock",
        lambda model, inputs, runtime: lambda: next(samplers[model.out_features]),
    )
    models = [nn.Linear(2, 3), nn.Linear(2, 4)]
    dense, small = interleaved(models, torch.rand(1, 2), min_time_s=0, precision=1.0, repeats=5)
    assert (dense.share, small.share) == pytest.approx((1.0, 0.6))
    assert small.median_ms / dense.median_ms < 0.5


@pytest.mark.parametrize(("threads", "speed", "waited"), [(1, 1.0, 0.0), (1, 0.25, 0.75), (2, 0.25, 0.0)])
def test_time_in_which_other_programs_ran_is_told_for_one_thread(monkeypatch, threads, speed, waited):
    now = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    monkeypatch.setattr(time, "thread_time", lambda: speed * next(now))
    monkeypatch.setattr("halp_fx.latency.interleaving._network_clock", lambda *_: lambda: 1.0)
    (found,) = interleaved([nn.Linear(2, 3)], torch.rand(1, 2), repeats=5, max_time_s=20.0, threads=threads)
    # The wall's clock is read before and after the thread's own: 3 ticks against 1.
    assert found.waited == pytest.approx(waited if waited == 0 and threads > 1 else max(1 - speed / 3, 0))


@pytest.mark.parametrize("inputs", [((torch.rand(2, 3),), {}), ((), {"input": torch.rand(2, 3)}), torch.rand(2, 3)])
def test_interleaved_takes_inputs_in_every_form(inputs):
    (found,) = interleaved((nn.Linear(3, 2),), inputs, min_time_s=0.0, max_time_s=0.01, repeats=3)
    assert found.count >= 1


def test_unknown_runtime_and_graphs_without_cuda():
    with pytest.raises(LatencyError, match=r"'fast' is not known: eager, inductor, .* onnxruntime"):
        interleaved((nn.Linear(3, 2),), torch.rand(2, 3), runtime="fast")
    with pytest.raises(TimingError, match="CUDA device"):
        time_graph(lambda: None, torch.device("cpu"))


def test_calibration_by_the_dense_network_alone():
    c = Calibration().with_point(100, 130)
    assert c.measured_dense == 130
    assert c.predict(100) == pytest.approx(130)
    # A third of the 30 ms that the sum leaves out stays.
    assert c.predict(0.0) == pytest.approx(10)
    assert c.predict(50) == pytest.approx(70)
    assert c.budget_for(70) == pytest.approx(50)


@pytest.mark.parametrize("measured", [100, 80], ids=["counted", "sum too high"])
def test_calibration_without_overhead_is_a_ratio(measured):
    c = Calibration().with_point(100, measured)
    assert c.predict(0.0) == pytest.approx(0)
    assert c.predict(30) == pytest.approx(0.3 * measured)


def test_calibration_finds_the_published_line():
    # End-to-end times follow 32.4 ms + 220.2 ms * r (design 3.4).
    c = Calibration()
    for r in (1.0, 0.6, 0.3):
        c = c.with_point(220.2 * r, 32.4 + 220.2 * r)
    assert c.predict(0.0) == pytest.approx(32.4)
    assert c.budget_for(32.4 + 22.02) == pytest.approx(22.02)
    assert c.predict(0.45 * 220.2) == pytest.approx(32.4 + 0.45 * 220.2)


def test_calibration_closes_in_like_a_secant():
    def end_to_end(total):
        return 8 + 0.9 * total + 0.001 * total**2

    target, c = 60.0, Calibration().with_point(100, end_to_end(100))
    errors = []
    for _ in range(3):
        total = c.budget_for(target)
        errors.append(abs(end_to_end(total) / target - 1))
        c = c.with_point(total, end_to_end(total))
    assert 0.02 > errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4


def test_calibration_follows_a_machine_that_changes_speed():
    c = Calibration().with_point(100, 120).with_point(50, 120, dense=240)
    assert c.points[1] == (50, 60)


def test_calibration_refuses_nonsense():
    with pytest.raises(LatencyError, match="no points"):
        Calibration().predict(1)
    for point in ((0, 1), (1, float("nan")), (1, -1)):
        with pytest.raises(LatencyError, match="positive"):
            Calibration().with_point(*point)


positive = st.floats(0.1, 1000)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=5), st.lists(positive, min_size=2, max_size=2))
def test_calibration_rises_and_inverts(points, totals):
    c = Calibration(tuple(points))
    low, high = sorted(totals)
    assert c.predict(low) <= c.predict(high) * (1 + 1e-9)
    assert c.predict(0.0) >= -1e-6
    assert c.budget_for(c.predict(high)) == pytest.approx(high, rel=1e-3)
    assert c.budget_for(1e-9) > 0


def test_a_clock_that_stood_still_for_a_sample_says_nothing():
    assert Timing.of([0.0, 0.0, *[1.0] * 7]).median_ms == 1.0
    with pytest.raises(TimingError, match=r"gave 0\.0 ms"):
        Timing.of([0.0] * 9)


def test_networks_in_turn_by_a_clock_that_stood_still(monkeypatch):
    """One turn of nothing made a share of NaN, and of the dense network's time with it."""
    rows = [[0.0, 3.0], [2.0, 0.0], *[[2.0, 1.0]] * 20]

    def clock(model, *_):
        own = iter([row[model.out_features - 1] for row in rows])
        return lambda: next(own)

    monkeypatch.setattr("halp_fx.latency.interleaving._network_clock", clock)
    networks = [torch.nn.Linear(3, 1), torch.nn.Linear(3, 2)]
    found = interleaved(networks, torch.rand(1, 3), min_time_s=0, max_time_s=0, repeats=9)
    assert [timing.median_ms for timing in found] == [2.0, 1.0]
    assert [timing.share for timing in found] == [1.0, 0.5]
