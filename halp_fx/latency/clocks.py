"""Clocks: a function -> its clock, which takes the time of one block of calls, in ms per call.

CPU: blocks of calls at least 100 us long (a clock costs up to 0.3 us), caches warm. With one thread, that thread's CPU
time is taken, which equals wall time on a quiet machine and leaves out what other processes took: on two cores shared
by four processes, MobileNetV2 took 27 to 56 ms by the wall clock and 27 to 29 ms by this one. Several threads wait for
each other, so theirs is wall time. CUDA: events around a single call, with the L2 cache overwritten before it, as
`triton.testing.do_bench` does; or around a replayed CUDA graph of many calls, which leaves L2 warm and has no launch
overhead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..arguments import whole
from ..errors import LatencyError
from .errors import TimingError

Thunk = Callable[[], Any]
"""What is timed: a function without arguments."""

Clock = Callable[[], float]
"""One time of it, in ms per call."""

_BLOCK_NS = 100_000
_MOST_THREADS = 4096  # With a billion of them, OpenMP ends the process.
_FLUSH_BYTES = 256 << 20  # More than the L2 of any current GPU (H100: 50 MB, MI300X: 256 MB).


def block_clock(call: Thunk, device: torch.device) -> Clock:
    """Times one block of calls, in ms per call, after warm-up."""
    sync, clock_ns = _synchronizer(device), _counter(device)
    call()
    sync()
    start = clock_ns()
    call()
    sync()
    number = max(1, round(_BLOCK_NS / max(clock_ns() - start, 1)))

    def sample() -> float:
        start = clock_ns()
        for _ in range(number):
            call()
        sync()
        return (clock_ns() - start) / number * 1e-6

    return sample


def _counter(device: torch.device) -> Callable[[], int]:
    """Nanoseconds of this thread on one CPU thread, else of the wall."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time_ns if alone else time.perf_counter_ns


def _synchronizer(device: torch.device) -> Callable[[], None]:
    if device.type == "cpu":
        return lambda: None
    module = getattr(torch, device.type)
    return lambda: module.synchronize(device)


def flushed_clock(call: Thunk, device: torch.device) -> Clock:
    return event_clock(call, device, 1, torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device))


def event_clock(call: Thunk, device: torch.device, calls: int, flush: torch.Tensor | None) -> Clock:
    """Times one call with CUDA events, in ms per call; `flush` is overwritten first, to empty the L2 cache."""
    for _ in range(3):
        call()
    torch.cuda.synchronize(device)

    def sample() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if flush is not None:
            flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / calls

    return sample


def captured(call: Thunk, device: torch.device, calls: int = 1) -> Thunk:
    """A function that replays a CUDA graph of `calls` calls.

    Raises:
        TimingError: the function cannot be captured.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                call()
    except RuntimeError as error:
        raise TimingError(f"this cannot be captured in a CUDA graph: {error}") from error
    return graph.replay


def check_threads(threads: int | None) -> None:
    """Raises LatencyError unless it is a number of threads, or None."""
    if threads is not None:
        whole("threads", threads, LatencyError, _MOST_THREADS)


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """Run with this many intra-op threads; None changes nothing."""
    before = torch.get_num_threads()
    if threads is not None and threads != before:
        torch.set_num_threads(int(threads))
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
