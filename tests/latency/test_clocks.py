"""Clocks: what is inside of a time, and what is not. A GPU's events are replaced by ones that can be counted."""

from __future__ import annotations

import time
from contextlib import nullcontext

import pytest
import torch

from halp_fx.latency import clocks
from halp_fx.latency.errors import TimingError

CPU = torch.device("cpu")


@pytest.fixture
def ticks(monkeypatch):
    """A clock of nanoseconds that only moves when it is told to."""
    now = [0]
    monkeypatch.setattr(clocks, "_counter", lambda device: lambda: now[0])
    return now


@pytest.mark.parametrize(("took", "calls"), [(1_000, 100), (30_000, 3), (5_000_000, 1)])
def test_a_block_lasts_a_tenth_of_a_millisecond(ticks, took, calls):
    def call():
        ticks[0] += took

    sample = clocks.block_clock(call, CPU)
    before = ticks[0]
    assert sample() == pytest.approx(took * 1e-6)
    assert ticks[0] - before == calls * took


def test_one_thread_is_timed_by_itself_and_several_by_the_wall():
    before = torch.get_num_threads()
    with clocks.cpu_threads(1):
        assert clocks._counter(CPU) is time.thread_time_ns
        assert clocks._counter(torch.device("meta")) is time.perf_counter_ns
    with clocks.cpu_threads(2):
        assert torch.get_num_threads() == 2
        assert clocks._counter(CPU) is time.perf_counter_ns
    assert torch.get_num_threads() == before


def test_threads_are_put_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), clocks.cpu_threads(before + 1):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == before


@pytest.fixture
def gpu(monkeypatch):
    """What happens on the stream, in order."""
    done = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            done.append("event")

        def synchronize(self):
            done.append("wait")

        def elapsed_time(self, end):
            return 6.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append("sync"))
    return done


def test_between_two_events_is_the_call_and_nothing_else(gpu):
    class Flush:
        def zero_(self):
            gpu.append("flush")

    sample = clocks.event_clock(lambda: gpu.append("call"), CPU, 3, Flush())
    assert gpu == ["call"] * 3 + ["sync"], "warm before the first time"
    gpu.clear()
    assert sample() == 2.0, "6 ms in three calls"
    assert gpu == ["flush", "event", "call", "event", "wait"]
    gpu.clear()
    clocks.event_clock(lambda: gpu.append("call"), CPU, 1, None)()
    assert "flush" not in gpu


def test_a_flushed_clock_overwrites_more_than_a_cache(gpu, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "empty", lambda size, **options: asked.append((size, options["dtype"])))
    clocks.flushed_clock(lambda: None, CPU)
    assert asked == [(256 << 20, torch.int8)]


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


class Graph:
    replayed = 0

    def replay(self):
        Graph.replayed += 1


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    monkeypatch.setattr(Graph, "replayed", 0)


def test_a_graph_holds_as_many_calls_as_were_asked_for(graphs):
    calls = []
    replay = clocks.captured(lambda: calls.append(1), CPU, 5)
    assert len(calls) == 3 + 5, "three to warm up"
    replay()
    assert Graph.replayed == 1
    assert len(calls) == 8


def test_what_cannot_be_captured_is_an_error_of_ours(graphs):
    def call():
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(TimingError, match="cannot be captured in a CUDA graph: operation not permitted"):
        clocks.captured(call, CPU)
