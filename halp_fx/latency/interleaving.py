"""Several networks timed in turn, A B A B …, so that drift of the machine hits all alike.

Networks are compared turn by turn: the median of B / A over the turns. Where the machine is disturbed for a second or a
minute at a time, that is twice as exact as the ratio of the medians (`docs/latency.md`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..model.inputs import normalize_inputs
from ..model.preserving import preserved, set_mode
from ..progress import work
from ..types import Inputs
from .allocator import kept_memory, page_faults
from .clocks import Clock, Thunk, block_clock, cpu_threads, event_clock
from .runtimes import as_asked, device_of, network_call
from .timing import Effort, Timing


@dataclass(frozen=True, slots=True)
class NetworkTiming(Timing):
    """Time of one call of a network.

    Attributes:
        share: of the time of the first network, the median over the turns.
        faults: page faults of the process in one turn (one call, unless that takes less than 0.1 ms), the median over
            the turns (`allocator`).
        waited: share of the wall-clock time in which the timing thread did not run, because other programs did; 0 where
            that cannot be told (several threads, or not on a CPU).
    """

    share: float = 1.0
    faults: float = 0.0
    waited: float = 0.0


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
    keep_memory: bool = True,
) -> tuple[NetworkTiming, ...]:
    """Time several networks in turn, A B A B …, so that drift of the machine hits all alike.

    Runs in eval mode without gradients. Modes, buffers and random state are left as found.

    Args:
        models: networks that take the same inputs, each on its own device.
        inputs: (args, kwargs), or anything that `trace` takes as example inputs.
        min_time_s, max_time_s: time spent on each network.
        precision: stop when the median's standard error is below this share of it.
        repeats: least number of turns.
        runtime: how the networks are executed, as for `MeasuredLatency`.
        threads: CPU threads; None leaves them as they are.
        keep_memory: time them with freed memory kept in the process (`allocator` says why), or as the process is.
    """
    effort = Effort(repeats, min_time_s, max_time_s, precision)
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(preserved(model))
            set_mode(model)
        stack.enter_context(torch.no_grad())
        stack.enter_context(cpu_threads(threads))
        if keep_memory:
            stack.enter_context(kept_memory())
        clocks = [_network_clock(model, inputs, runtime) for model in models]
        stack.enter_context(as_asked(runtime))
        samples: list[list[float]] = [[] for _ in models]
        faults: list[list[int]] = [[] for _ in models]
        spent, ran = [0.0] * len(models), [0.0] * len(models)
        alone = torch.get_num_threads() == 1 and all(p.device.type == "cpu" for m in models for p in m.parameters())
        turn = stack.enter_context(work("time networks", None, "turns"))
        while not all(map(effort.enough, samples, spent)):
            for index, sample in enumerate(clocks):
                start, cpu, before = time.perf_counter(), time.thread_time(), page_faults()
                samples[index].append(sample())
                faults[index].append(page_faults() - before)
                ran[index] += time.thread_time() - cpu
                spent[index] += time.perf_counter() - start
            turn()
    turns = np.asarray(samples)
    went = (turns != 0).all(axis=0)  # As in `undisturbed`.
    turns = turns[:, went] if went.any() else turns
    return tuple(
        replace(
            NetworkTiming.of(row),
            share=float(np.median(row / turns[0])),
            faults=float(np.median(missed)),
            waited=max(1 - own / wall, 0.0) if alone and wall > 0 else 0.0,
        )
        for row, missed, own, wall in zip(turns, faults, ran, spent, strict=True)
    )


def _network_clock(model: nn.Module, inputs: Any, runtime: str) -> Clock:
    args, kwargs = inputs if _is_inputs(inputs) else normalize_inputs(model, inputs)
    device = device_of(args, kwargs)
    call = network_call(model, args, kwargs, runtime)
    return call_clock(call, device)


def call_clock(call: Thunk, device: torch.device) -> Clock:
    """Times one call of a network, with the caches as the last call left them."""
    return event_clock(call, device, 1, flush=None) if device.type == "cuda" else block_clock(call, device)


def _is_inputs(inputs: Any) -> bool:
    return (
        isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict)
    )
