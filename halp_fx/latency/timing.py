"""Timers: a function -> the median time of one call and how far calls spread.

Interference (other processes, page faults) only ever adds time, in bursts. So every call or block of calls is timed on
its own, samples beyond `_DISTURBED` times the fastest decile are set aside, and the median of the others is reported,
never the mean. On a shared 2-core machine a third of the samples of a 1 ms convolution took 3 times as long as the
rest, which moves the plain median at random between the two; on a quiet machine nothing is set aside.

`clocks` says what is sampled on which device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Self

import numpy as np
import torch

from .clocks import Thunk, block_clock, captured, event_clock, flushed_clock
from .errors import TimingError

_DISTURBED = 1.5


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
    def of(cls, samples_ms: Sequence[float]) -> Self:
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
    """The samples that are at most `_DISTURBED` times the fastest decile; all of them if one is NaN.

    A thread's CPU clock stands still now and then on a virtual machine: samples of nothing say nothing, unless all are.
    """
    values = np.asarray(samples, np.float64)
    values = values[values != 0] if values.any() else values
    kept = values[values <= _DISTURBED * np.percentile(values, 10)]
    return kept if len(kept) else values


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to time one function: at least `min_blocks` and `min_time_s`, then until `max_time_s` or until the
    median is known to `precision` (standard error relative to the median), or to `precision_ms`."""

    min_blocks: int = 9
    min_time_s: float = 0.01
    max_time_s: float = 0.1
    precision: float = 0.01
    precision_ms: float = 0.0
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
        error = 0.93 * (high - low) / len(quiet) ** 0.5
        return bool(error <= max(self.precision * median, self.precision_ms))

    def longer(self) -> Effort:
        """Three times as much."""
        return replace(
            self,
            min_blocks=3 * self.min_blocks,
            min_time_s=3 * self.min_time_s,
            max_time_s=3 * self.max_time_s,
            max_blocks=3 * self.max_blocks,
        )


LAYER_EFFORT = Effort(min_blocks=5, min_time_s=0.004, max_time_s=0.04, precision=0.01)
"""Per layer and widths, of which a network has a few hundred."""

Timer = Callable[[Thunk, torch.device, Effort], Timing]
"""What measures: replaceable, so that tests need no clock."""


def time_call(call: Thunk, device: torch.device, effort: Effort | None = None) -> Timing:
    """Time a function on the device its tensors are on, without gradients.

    Raises:
        TimingError: the clock gave nonsense.
    """
    effort = effort or Effort()
    with torch.no_grad():
        sample = flushed_clock(call, device) if device.type == "cuda" else block_clock(call, device)
        return Timing.of(_collect(sample, effort))


def time_graph(call: Thunk, device: torch.device, effort: Effort | None = None, calls: int = 20) -> Timing:
    """As `time_call`, replaying a CUDA graph that holds `calls` calls: without launch overhead, L2 warm.

    Raises:
        TimingError: not a CUDA device, or the function cannot be captured.
    """
    if device.type != "cuda":
        raise TimingError(f"CUDA graphs need a CUDA device, not {device}")
    with torch.no_grad():
        replay = captured(call, device, calls)
        sample = event_clock(replay, device, calls, flush=None)
        return Timing.of(_collect(sample, effort or Effort()))


def _collect(sample: Callable[[], float], effort: Effort) -> list[float]:
    samples: list[float] = []
    start = time.perf_counter()
    while not effort.enough(samples, time.perf_counter() - start):
        # Asked after each sample, the quartiles of thousands of short blocks took a quarter of the time of a table.
        samples += [sample() for _ in range(1 + len(samples) // 4)]
    return samples
