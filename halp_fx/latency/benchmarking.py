"""benchmark: networks and example inputs -> their times in turn, throughput and memory.

The clocks, the turns and the runtimes are those by which a budget is met (`interleaving`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..arguments import check_switches, is_number, shown, whole
from ..errors import HalpError, words_of
from ..fitting import Column, folded, tabled
from ..internals import tree_leaves
from ..model.checks import check_module
from ..model.inputs import normalize_inputs
from ..model.preserving import preserved, set_mode
from ..model.tensors import parameter_count, tensors_in
from ..types import Inputs
from .allocator import kept_memory
from .clocks import check_threads, cpu_threads
from .disturbance import SCATTER, load_notes
from .errors import TimingError
from .fingerprint import kind_of
from .interleaving import call_clock, interleaved
from .runtimes import device_of
from .timing import Effort, Timing


@dataclass(frozen=True, slots=True)
class NetworkBenchmark:
    """One network.

    Attributes:
        name: as it was given.
        forward: time of one call in eval mode, without gradients.
        share: of the first network's time, the median over the turns.
        throughput: samples a second, by the first dimension of the first input.
        training: time of one forward and backward in train mode; None unless asked for.
        parameters: how many.
        peak_bytes: the most that one forward held on the GPU beyond parameters and inputs; None on a CPU, where
            `halp_fx.MemoryCost` counts it.
    """

    name: str
    forward: Timing
    share: float
    throughput: float
    training: Timing | None
    parameters: int
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Networks that were timed in turn, on one device in one runtime.

    Attributes:
        networks: in the order given; shares are of the first.
        batch: samples of a call.
        runtime, device, threads: how and where they ran.
        waited: largest share of the time in which other programs ran; 0 where that cannot be told.
    """

    networks: tuple[NetworkBenchmark, ...]
    batch: int
    runtime: str
    device: str
    threads: int
    waited: float

    @property
    def busy(self) -> str:
        """What disturbed the times so that they are not to be trusted; "" if nothing did."""
        worst = max(self.networks, key=lambda n: n.forward.spread)
        if worst.forward.spread <= SCATTER:
            return ""
        return f"those of {worst.name} scatter by {worst.forward.spread:.0%}"

    def summary(self, width: int | None = None) -> str:
        """A table with a line for each network.

        Args:
            width: columns of text; None: those of the terminal. Where there is none, sentences are one line each.
        """
        first = self.networks[0]
        several = len(self.networks) > 1
        columns = [Column.name("network"), Column.number("ms"), Column.number("spread", 1)]
        columns += [Column.number("of first")] if several else []
        columns += [Column.number("samples/s", 3), Column.number("parameters", 2)]
        columns += [] if first.training is None else [Column.number("ms, training")]
        columns += [] if first.peak_bytes is None else [Column.number("peak MiB")]
        rows = []
        for n in self.networks:
            row = [n.name, f"{n.forward.median_ms:.4g}", f"{n.forward.spread:.1%}"]
            row += [f"{n.share:.1%}"] if several else []
            row += [f"{n.throughput:,.0f}" if n.throughput >= 1000 else f"{n.throughput:.4g}", f"{n.parameters:,}"]
            row += [] if n.training is None else [f"{n.training.median_ms:.4g}"]
            row += [] if n.peak_bytes is None else [f"{n.peak_bytes / 2**20:,.1f}"]
            rows.append(row)
        where = f"batch {self.batch}, {self.runtime}, {self.device}"
        where += f", {self.threads} thread{'s' * (self.threads != 1)}" if self.device == "cpu" else ""
        turns = '; networks ran in turn, and "of first" is the median of the shares over the turns' if several else ""
        parts = [tabled(columns, rows, width), f"{where}; medians{turns}"]
        parts += [f"note: {note}" for note in load_notes(self.busy, self.waited)]
        return folded("\n\n".join(parts), width)

    def __str__(self) -> str:
        return self.summary()


def benchmark(
    models: nn.Module | Mapping[str, nn.Module],
    example_inputs: Any = None,
    *,
    runtime: str = "eager",
    threads: int | None = None,
    training: bool = False,
    min_time_s: float = 1.0,
    max_time_s: float = 5.0,
    repeats: int = 15,
) -> Benchmark:
    """Time networks in turn, A B A B …, so that drift of the machine hits all alike. They are left as found.

    Args:
        models: a network, or networks by name that take the same inputs; shares are of the first.
        example_inputs: as for `halp_fx.prune`: their batch is timed.
        runtime: how the forward is executed, as in `MeasuredLatency`.
        threads: CPU threads; None leaves them as they are.
        training: also time a forward and backward in train mode; it runs eagerly.
        min_time_s, max_time_s: spent on each network. repeats: least number of turns.

    Raises:
        LatencyError: no networks, a runtime that is not known or cannot run them, or no output to differentiate.
    """
    named = _named(models)
    networks = list(named.values())
    kind_of(runtime)
    check_threads(threads)
    check_switches(TimingError, training=training)
    repeats = whole("repeats", repeats, TimingError)
    for bound, seconds in (("min_time_s", min_time_s), ("max_time_s", max_time_s)):
        if not (is_number(seconds) and seconds >= 0):
            raise TimingError(f"{bound}={shown(seconds)} must be a number of seconds")
    inputs = normalize_inputs(networks[0], example_inputs)
    for name, model in named.items():
        _try(name, model, inputs)
    options: dict[str, Any] = {"min_time_s": min_time_s, "max_time_s": max_time_s, "repeats": repeats}
    times = interleaved(networks, inputs, runtime=runtime, threads=threads, **options)
    trained: Sequence[Timing | None] = [None] * len(networks)
    if training:
        trained = _training(networks, inputs, threads, Effort(repeats, min_time_s, max_time_s, 0.003))
    device = device_of(*inputs)
    batch = next((t.shape[0] for t in tree_leaves(inputs) if isinstance(t, torch.Tensor) and t.ndim), 1)
    rows = zip(named.items(), times, trained, strict=True)
    return Benchmark(
        networks=tuple(
            NetworkBenchmark(
                name=name,
                forward=timing,
                share=timing.share,
                throughput=batch / timing.median_ms * 1e3,
                training=both,
                parameters=parameter_count(model),
                peak_bytes=_peak(model, inputs) if device.type == "cuda" else None,
            )
            for (name, model), timing, both in rows
        ),
        batch=batch,
        runtime=runtime,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=threads or torch.get_num_threads(),
        waited=max(t.waited for t in times),
    )


def _named(models: nn.Module | Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The networks by name.

    Raises:
        LatencyError: there are none, or something else is among them.
        ModelError: one is wrapped.
    """
    if not isinstance(models, nn.Module | Mapping):
        raise TimingError(
            f"models is a {type(models).__name__}: pass a network, or networks by name, "
            '{"dense": model, "small": small}'
        )
    named = {type(models).__name__: models} if isinstance(models, nn.Module) else dict(models)
    if not named:
        raise TimingError("there are no networks to time")
    other = next((name for name, model in named.items() if not isinstance(model, nn.Module)), None)
    if other is not None:
        raise TimingError(f"{other!r} is a {type(named[other]).__name__}: pass a network, or networks by name")
    for model in named.values():
        check_module(model)
    return named


def _try(name: str, model: nn.Module, inputs: Inputs) -> None:
    """Run it once.

    Raises:
        TimingError: that fails.
    """
    args, kwargs = inputs
    with preserved(model), torch.no_grad():
        set_mode(model)
        try:
            model(*args, **kwargs)
        except (HalpError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise TimingError(
                f"the forward of {name!r} fails on the example inputs: {type(error).__name__}: {words_of(error)}. Pass "
                "example_inputs with which model(*example_inputs) runs"
            ) from error


def _training(networks: Sequence[nn.Module], inputs: Inputs, threads: int | None, effort: Effort) -> list[Timing]:
    """Time of one forward and backward of each network, in turn."""
    with ExitStack() as stack:
        for model in networks:
            stack.enter_context(preserved(model))
            set_mode(model, training=True)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(cpu_threads(threads))
        stack.enter_context(kept_memory())
        clocks = [call_clock(_step(model, inputs), device_of(*inputs)) for model in networks]
        samples: list[list[float]] = [[] for _ in networks]
        spent = [0.0] * len(networks)
        while not all(map(effort.enough, samples, spent)):
            for index, sample in enumerate(clocks):
                start = time.perf_counter()
                samples[index].append(sample())
                spent[index] += time.perf_counter() - start
    return [Timing.of(row) for row in samples]


def _step(model: nn.Module, inputs: Inputs) -> Callable[[], Any]:
    """A forward, and the gradients of a sum of its outputs: they are returned, so that the model's own stay."""
    args, kwargs = inputs
    weights = [p for p in model.parameters() if p.requires_grad]

    def step() -> Any:
        outputs = [t for t in tensors_in(model(*args, **kwargs)) if t.requires_grad]
        if not (outputs and weights):
            raise TimingError(f"{type(model).__name__} has no output with a gradient: its training cannot be timed")
        total = torch.stack([t.float().sum() for t in outputs]).sum()
        return torch.autograd.grad(total, weights, allow_unused=True)

    return step


def _peak(model: nn.Module, inputs: Inputs) -> int:
    """Bytes that one forward takes on its GPU beyond what was there."""
    args, kwargs = inputs
    device = device_of(args, kwargs)
    with preserved(model), torch.no_grad():
        set_mode(model)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        model(*args, **kwargs)
        return torch.cuda.max_memory_allocated(device) - before
