"""Timers: a function -> the median time of one call and how far calls spread.

Interference (other processes, page faults) only ever adds time, in bursts. So every call or block of calls is timed on
its own, samples beyond `_DISTURBED` times the fastest decile are set aside, and the median of the others is reported,
never the mean. On a shared 2-core machine a third of the samples of a 1 ms convolution took 3 times as long as the
rest, which moves the plain median at random between the two; on a quiet machine nothing is set aside.

CPU: `time.perf_counter_ns` around blocks of calls, each block at least 100 us long (the clock costs 50 ns), after
warm-up; caches are warm. CUDA: events around single calls queued behind one another, with the L2 cache overwritten
before each, as `triton.testing.do_bench` does (whose mean and whose sync per call are not wanted here); or a replayed
CUDA graph of many calls, which leaves L2 warm and has no launch overhead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..inputs import normalize_inputs
from ..tracing import preserved
from ..types import Inputs
from .errors import TimingError

_BLOCK_NS = 100_000
_DISTURBED = 1.5
_FLUSH_BYTES = 256 << 20  # More than the L2 of any current GPU (H100: 50 MB, MI300X: 256 MB).

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Timing:
    """Time of one call.

    Attributes:
        median_ms: median over blocks.
        iqr_ms: distance between the quartiles.
        count: undisturbed blocks timed.
        runs: separate measurements, of which this is the fastest.
    """

    median_ms: float
    iqr_ms: float
    count: int
    runs: int = 1

    def __post_init__(self) -> None:
        if not (isfinite(self.median_ms) and self.median_ms > 0 and isfinite(self.iqr_ms) and self.iqr_ms >= 0):
            raise TimingError(
                f"a timer gave {self.median_ms} ms (spread {self.iqr_ms} ms): not a time, so it is refused"
            )

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Timing:
        """Median and quartile distance of the undisturbed samples.

        Raises:
            TimingError: no samples, NaN, or a median that is not positive.
        """
        if len(samples_ms) == 0:
            raise TimingError("a timer gave no samples")
        quiet = undisturbed(samples_ms)
        low, median, high = np.percentile(quiet, (25, 50, 75))
        return cls(float(median), float(high - low), len(quiet))

    @property
    def spread(self) -> float:
        """Quartile distance relative to the median."""
        return self.iqr_ms / self.median_ms


def undisturbed(samples: Sequence[float]) -> np.ndarray:
    """The samples that are at most `_DISTURBED` times the fastest decile; all of them if one is NaN."""
    values = np.asarray(samples, np.float64)
    kept = values[values <= _DISTURBED * np.percentile(values, 10)]
    return kept if len(kept) else values


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to time one function: at least `min_blocks` and `min_time_s`, then until `max_time_s` or until the
    median is known to `precision` (standard error relative to the median)."""

    min_blocks: int = 9
    min_time_s: float = 0.01
    max_time_s: float = 0.1
    precision: float = 0.01
    max_blocks: int = 1000

    def enough(self, samples: Sequence[float], spent_s: float) -> bool:
        if len(samples) < self.min_blocks:
            # One slow function may use up the time of many, but not forever.
            return len(samples) >= 3 and spent_s > 10 * self.max_time_s
        if spent_s < self.min_time_s:
            return False
        if spent_s >= self.max_time_s or len(samples) >= self.max_blocks:
            return True
        quiet = undisturbed(samples)
        low, median, high = np.percentile(quiet, (25, 50, 75))
        # Standard error of a median of normal samples: 1.25 * sigma / sqrt(n), and the quartiles are 1.35 sigma apart.
        return bool(0.93 * (high - low) / len(quiet) ** 0.5 <= self.precision * median)

    def longer(self) -> Effort:
        """Three times as much."""
        return Effort(
            3 * self.min_blocks, 3 * self.min_time_s, 3 * self.max_time_s, self.precision, 3 * self.max_blocks
        )


Timer = Callable[[Call, torch.device, Effort], Timing]
"""What measures: replaceable, so that tests need no clock."""


def time_call(call: Call, device: torch.device, effort: Effort | None = None) -> Timing:
    """Time a function on the device its tensors are on, without gradients.

    Raises:
        TimingError: the clock gave nonsense.
    """
    effort = effort or Effort()
    with torch.no_grad():
        sample = _cuda_sampler(call, device) if device.type == "cuda" else _clock_sampler(call, device)
        return Timing.of(_collect(sample, effort))


def time_graph(call: Call, device: torch.device, effort: Effort | None = None, calls: int = 20) -> Timing:
    """As `time_call`, replaying a CUDA graph that holds `calls` calls: without launch overhead, L2 warm.

    Raises:
        TimingError: not a CUDA device, or the function cannot be captured.
    """
    if device.type != "cuda":
        raise TimingError(f"CUDA graphs need a CUDA device, not {device}")
    with torch.no_grad():
        replay = captured(call, device, calls)
        sample = _event_sampler(replay, device, calls, flush=None)
        return Timing.of(_collect(sample, effort or Effort()))


def captured(call: Call, device: torch.device, calls: int = 1) -> Call:
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


def interleaved(
    models: Sequence[nn.Module],
    inputs: Inputs | Any,
    *,
    min_time_s: float = 1.0,
    max_time_s: float = 5.0,
    precision: float = 0.003,
    repeats: int = 15,
    runtime: str = "eager",
    threads: int | None = None,
) -> tuple[Timing, ...]:
    """Time several networks in turn, A B A B …, so that drift of the machine hits all alike.

    Runs in eval mode without gradients. Modes, buffers and random state are left as found.

    Args:
        models: networks that take the same inputs, each on its own device.
        inputs: (args, kwargs), or anything that `trace` takes as example inputs.
        min_time_s, max_time_s: time spent on each network.
        precision: stop when the median's standard error is below this share of it.
        repeats: least number of turns.
        runtime: "eager", "inductor" or "cudagraph": how the networks are executed.
        threads: CPU threads; None leaves them as they are.
    """
    effort = Effort(repeats, min_time_s, max_time_s, precision)
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(preserved(model))
            model.eval()
        stack.enter_context(torch.no_grad())
        stack.enter_context(cpu_threads(threads))
        samplers = [_network_sampler(model, inputs, runtime) for model in models]
        samples: list[list[float]] = [[] for _ in models]
        spent = [0.0] * len(models)
        while not all(map(effort.enough, samples, spent)):
            for index, sample in enumerate(samplers):
                start = time.perf_counter()
                samples[index].append(sample())
                spent[index] += time.perf_counter() - start
    return tuple(Timing.of(row) for row in samples)


def _network_sampler(model: nn.Module, inputs: Any, runtime: str) -> Callable[[], float]:
    args, kwargs = inputs if _is_inputs(inputs) else normalize_inputs(model, inputs)
    device = next((t.device for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)), torch.device("cpu"))
    call: Call = lambda: model(*args, **kwargs)  # noqa: E731
    if runtime == "inductor":
        compiled = torch.compile(model)
        call = lambda: compiled(*args, **kwargs)  # noqa: E731
    elif runtime == "cudagraph":
        call = captured(call, device)
    elif runtime != "eager":
        raise TimingError(f"runtime {runtime!r} is not known: eager, inductor or cudagraph")
    if device.type == "cuda":
        return _event_sampler(call, device, 1, flush=None)
    return _clock_sampler(call, device)


def _is_inputs(inputs: Any) -> bool:
    return (
        isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict)
    )


def _collect(sample: Callable[[], float], effort: Effort) -> list[float]:
    samples: list[float] = []
    start = time.perf_counter()
    while not effort.enough(samples, time.perf_counter() - start):
        samples.append(sample())
    return samples


def _clock_sampler(call: Call, device: torch.device) -> Callable[[], float]:
    """Times one block of calls with the wall clock, in ms per call, after warm-up."""
    sync = _synchronizer(device)
    call()
    sync()
    start = time.perf_counter_ns()
    call()
    sync()
    number = max(1, round(_BLOCK_NS / max(time.perf_counter_ns() - start, 1)))

    def sample() -> float:
        start = time.perf_counter_ns()
        for _ in range(number):
            call()
        sync()
        return (time.perf_counter_ns() - start) / number * 1e-6

    return sample


def _synchronizer(device: torch.device) -> Callable[[], None]:
    if device.type == "cpu":
        return lambda: None
    module = getattr(torch, device.type)
    return lambda: module.synchronize(device)


def _cuda_sampler(call: Call, device: torch.device) -> Callable[[], float]:
    return _event_sampler(call, device, 1, torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device))


def _event_sampler(call: Call, device: torch.device, calls: int, flush: torch.Tensor | None) -> Callable[[], float]:
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


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """Run with this many intra-op threads; None changes nothing."""
    before = torch.get_num_threads()
    if threads is not None and threads != before:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
