"""Times single layers at single widths, and decides which times to believe."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from .allocator import kept_memory
from .clocks import cpu_threads
from .errors import TimingError
from .layers import Layer
from .runtimes import as_asked, callable_for, timer_for
from .store import TableStore
from .table import Point
from .timing import Effort, Timer, Timing

logger = logging.getLogger("halp_fx")

SPREAD_LIMIT = 0.25
"""Quartile distance, relative to the median, beyond which a point is measured again at once."""

DRIFT_LIMIT = 0.1
"""Median change between first and second times beyond which the machine is said to have changed speed."""

_LEAST_DRIFT_SAMPLES = 8

CHECKED = 12
"""Layers of a stored table that are timed again when it is opened: the heaviest."""

MOST_RUNS = 3
"""Separate measurements after which a suspicious point is believed."""


@dataclass(slots=True, eq=False)
class Sampler:
    """Measures what the store does not have yet.

    Attributes:
        store: times known so far; new ones go there.
        device, runtime, threads: where and how layers are run.
        effort: per point. timer: None for the runtime's own.
        failed: signature -> why its layers cannot be timed on their own. They count as 0, and the calibration
            against the whole network makes up for it.
        unsteady: layer name -> widest spread that a second try did not cure.
        drift: second times relative to first ones.
        limits: signature -> ms that do not matter in it.
    """

    store: TableStore
    device: torch.device
    runtime: str
    threads: int | None
    effort: Effort
    timer: Timer | None = None
    failed: dict[str, str] = field(default_factory=dict)
    unsteady: dict[str, float] = field(default_factory=dict)
    drift: list[float] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)

    def memory(self) -> AbstractContextManager[None]:
        """To be held around measurements: freed memory is kept while a CPU is timed."""
        return kept_memory() if self.device.type == "cpu" else nullcontext()

    def times(self, layer: Layer, points: Sequence[Point]) -> list[float]:
        """Times in ms; those that are not known are measured."""
        result = []
        for point in points:
            timing = self.store.table.get(layer.key, point)
            if timing is None and layer.key not in self.failed:
                timing = self._measure(layer, point)
            result.append(0.0 if timing is None else timing.median_ms)
        return result

    def check_stored(self, layers: Sequence[Layer]) -> None:
        """Time the heaviest layers that another process timed again, once. Interference only adds, so where they are
        faster now, that process was disturbed: the times of all `layers` that it left are forgotten."""
        if not self.store.unchecked:
            return
        stored = {layer.key: layer for layer in layers if self.store.table.get(layer.key, layer.dense) is not None}
        before = {key: self.store.table.entries[key][layer.dense] for key, layer in stored.items()}
        heaviest = sorted(stored, key=lambda key: -before[key].median_ms)[:CHECKED]
        ratios = [self.afresh(stored[key], stored[key].dense) / before[key].median_ms for key in heaviest]
        self.store.unchecked = False
        if ratios and float(np.median(ratios)) < 1 - DRIFT_LIMIT:
            logger.warning(
                "%s holds times of a busier machine (layers take %+.0f %% now): %d layers are timed again",
                *(self.store.path, 100 * (float(np.median(ratios)) - 1), len(stored)),
            )
            self.store.forget(stored)

    def settle(self, layer: Layer, point: Point, most_runs: int = MOST_RUNS, later: bool = True) -> bool:
        """Measure a suspicious point again, unless that was done often enough; the lower time stays, for
        interference only adds.

        Args:
            most_runs: how often is enough.
            later: well after the first time, so that the two tell whether the machine changed speed.
        """
        before = self.store.table.get(layer.key, point)
        if before is None or before.runs >= most_runs:
            return False
        timing = self._time(layer, point, self._effort(layer))
        if later:
            self.drift.append(timing.median_ms / before.median_ms)
        best = min(timing, before, key=lambda t: t.median_ms)
        self.store.put(layer.key, point, Timing(best.median_ms, best.iqr_ms, best.count, before.runs + 1))
        return True

    def afresh(self, layer: Layer, point: Point) -> float:
        """Time in ms, measured now and not kept; 0 for a layer that cannot be timed."""
        return 0.0 if layer.key in self.failed else self._time(layer, point, self._effort(layer)).median_ms

    def runs(self, layer: Layer, point: Point) -> int:
        """How many separate measurements a point has."""
        timing = self.store.table.get(layer.key, point)
        return 0 if timing is None else timing.runs

    def noise(self, layer: Layer) -> float:
        """Typical standard error of this layer's times, in ms."""
        points = self.store.table.entries.get(layer.key, {})
        return float(np.median([t.iqr_ms / t.count**0.5 for t in points.values()])) if points else 0.0

    def warn(self) -> None:
        """Say once how many layers could not be timed steadily and whether the machine changed speed; then forget."""
        if self.unsteady:
            worst = max(self.unsteady, key=self.unsteady.__getitem__)
            logger.warning(
                "%s measured with times that spread by more than %.0f %%, also at the second try (worst: "
                "%s, %.0f %%): something else may be using this machine",
                *(_layers(len(self.unsteady)), 100 * SPREAD_LIMIT, worst, 100 * self.unsteady[worst]),
            )
        drift = float(np.median(self.drift)) - 1 if len(self.drift) >= _LEAST_DRIFT_SAMPLES else 0.0
        if abs(drift) > DRIFT_LIMIT:
            logger.warning(
                "the device changed speed while it was measured: layers took %+.0f %% when measured a second time",
                100 * drift,
            )
        self.unsteady.clear()
        self.drift.clear()

    def _measure(self, layer: Layer, point: Point) -> Timing | None:
        try:
            effort = self._effort(layer)
            timing = self._time(layer, point, effort)
            if timing.spread > SPREAD_LIMIT:
                timing = min(timing, self._time(layer, point, effort.longer()), key=lambda t: t.spread)
        except torch.OutOfMemoryError:
            raise
        except (TimingError, RuntimeError, ValueError, TypeError, IndexError) as error:
            self.failed[layer.key] = str(error)
            logger.warning("%s cannot be timed on its own and is left to the calibration: %s", layer.name, error)
            return None
        if timing.spread > SPREAD_LIMIT:
            self.unsteady[layer.name] = max(timing.spread, self.unsteady.get(layer.name, 0.0))
            self.store.note(layer.key, f"spread {timing.spread:.0%} at widths {point}")
        self.store.put(layer.key, point, timing)
        return timing

    def _effort(self, layer: Layer) -> Effort:
        """A layer that hardly counts need not be known to 1 %: a quarter of what does not matter in it will do."""
        return replace(self.effort, precision_ms=self.limits.get(layer.key, 0.0) / 4)

    def _time(self, layer: Layer, point: Point, effort: Effort) -> Timing:
        args, kwargs = layer.arguments(*point, device=self.device)
        with torch.no_grad(), cpu_threads(self.threads):
            call = callable_for(layer, args, kwargs, self.runtime)
            with as_asked(self.runtime):
                return (self.timer or timer_for(self.runtime))(call, self.device, effort)


def _layers(count: int) -> str:
    return "1 layer was" if count == 1 else f"{count} layers were"
