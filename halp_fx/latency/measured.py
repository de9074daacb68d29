"""Measured latency: each distinct layer is timed on the device over the widths that matter, once.

`MeasuredLatency` has the interface of every cost. Layers with equal signatures share their times; what is known from
a saved table is not measured again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from os import PathLike

import numpy as np
import torch

from ..solver import CostTable
from ..types import Coupling
from .costs import Options, cost_table
from .errors import LatencyError, TimingError
from .fingerprint import RUNTIMES, Fingerprint
from .grids import Grid, Range, adaptive_grid
from .layers import Layer, layers
from .recheck import suspects
from .store import TableStore, open_store
from .table import LatencyTable, Point
from .timing import Effort, Timer, Timing, cpu_threads, time_call

logger = logging.getLogger("halp_fx")

EFFORT = Effort(min_blocks=7, min_time_s=0.006, max_time_s=0.06, precision=0.01)
"""Per point. A network has a few hundred points: this is seconds for a small one, a minute for ResNet-50."""

_SETTLING_ROUNDS = 3

SPREAD_LIMIT = 0.25
"""Quartile distance, relative to the median, beyond which a point is measured again."""


@dataclass(slots=True, eq=False)
class MeasuredLatency:
    """The sum of measured layer times, in milliseconds.

    Attributes:
        runtime: "eager", "inductor" or "cudagraph": how the network will be executed.
        device: where to measure; None: where the traced model was.
        table: None: the file for this device and setting in the user's cache; a path; or a `LatencyTable` that is
            used and extended in memory.
        threads: CPU threads; None: as torch is set.
        allow_foreign: use a table file even if it was measured on another device or setting.
        effort: time spent per point.
        timer: what measures; None: the runtime's own.
    """

    runtime: str = "eager"
    device: torch.device | str | None = None
    table: str | PathLike[str] | LatencyTable | None = None
    threads: int | None = None
    allow_foreign: bool = False
    effort: Effort = EFFORT
    timer: Timer | None = None
    _store: TableStore | None = field(default=None, init=False, repr=False)
    _grids: dict[tuple[str, Point], Grid] = field(default_factory=dict, init=False, repr=False)
    _unsteady: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _failed: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise LatencyError(f"runtime {self.runtime!r} is not known: {', '.join(RUNTIMES)}")

    @property
    def resource(self) -> str:
        return "latency"

    @property
    def unit(self) -> str:
        return "ms"

    def tables(self, coupling: Coupling, options: Options) -> tuple[CostTable, ...]:
        """A table for each layer; what is not known yet is measured now.

        Raises:
            LatencyError: the table file cannot be used.
        """
        found = self.layers(coupling)
        device, dense = self._device(coupling), coupling.widths()
        limits = self._limits(found, device)
        result = []
        with self._measuring(device):
            for layer in found:
                ranges = Range.of(layer.inputs, options, dense), Range.of(layer.output, options, dense)
                grid = self._grid(layer, *ranges, limits[layer.key], device)
                result.append(cost_table(layer, grid, self.resource))
        self._warn_of_spread()
        return tuple(result)

    def total(self, coupling: Coupling, widths: Mapping[str, int] | None = None) -> float:
        """The sum of layer times, in ms, before any calibration."""
        return sum(self.by_layer(coupling, widths).values())

    def by_layer(self, coupling: Coupling, widths: Mapping[str, int] | None = None) -> dict[str, float]:
        """Time of each layer, in ms, by its name: from the tables made so far, or measured at these very widths."""
        widths = coupling.widths() if widths is None else widths
        device = self._device(coupling)
        result = {}
        with self._measuring(device):
            for layer in self.layers(coupling):
                point = layer.widths(widths)
                grid = self._grids.get((layer.key, layer.dense))
                if grid is not None and grid.covers(*point):
                    result[layer.name] = grid.at(*point)
                else:
                    result[layer.name] = self._times(layer, [point], device)[0]
        return result

    def layers(self, coupling: Coupling) -> tuple[Layer, ...]:
        """The units that this runtime executes."""
        return layers(coupling)

    def timing(self, layer: Layer, n_in: int, n_out: int = 0) -> Timing | None:
        """The stored time of a layer at these widths with its spread, None if it was not measured there."""
        return None if self._store is None else self._store.table.get(layer.key, (n_in, n_out))

    @property
    def measured(self) -> LatencyTable:
        """All times known so far.

        Raises:
            LatencyError: nothing has been measured or loaded yet.
        """
        if self._store is None:
            raise LatencyError("no table yet: call tables() or total() first")
        return self._store.table

    def _device(self, coupling: Coupling) -> torch.device:
        if self.device is not None:
            return torch.device(self.device)
        specs = [n.meta["spec"] for n in coupling.traced.graph.nodes if n.meta.get("spec") is not None]
        return next((s.device for s in specs), torch.device("cpu"))

    def _measuring(self, device: torch.device) -> AbstractContextManager[None]:
        """Open the table for this device, and save it at the end."""
        if self._store is None:
            here = Fingerprint.of(device, self.runtime, self.threads)
            self._store = open_store(self.table, here, self.allow_foreign)
        return self._store.saving()

    def _limits(self, found: Sequence[Layer], device: torch.device) -> dict[str, float]:
        """Interpolation error in ms that may stand, per signature: 0.5 % of the network shared by its uses, for
        detail in what hardly counts is measured in vain."""
        uses = Counter(layer.key for layer in found)
        with self._measuring(device):
            total = sum(self._times(layer, [layer.dense], device)[0] for layer in found)
        return {key: 0.005 * total / count for key, count in uses.items()}

    def _grid(self, layer: Layer, in_range: Range, out_range: Range, limit: float, device: torch.device) -> Grid:
        """The grid of a layer, with a line wherever it is off by more than 2 % of the layer, `limit`, and noise."""
        known = self._grids.get((layer.key, layer.dense))
        ends = ((in_range.low, out_range.low), (in_range.high, out_range.high))
        if known is not None and all(known.covers(*end) for end in ends):
            return known
        narrow = in_range.low == in_range.high or out_range.low == out_range.high

        def tolerance(values: np.ndarray) -> float:
            return max(0.02 * float(values.max()), limit, 2 * self._noise(layer))

        assert self._store is not None
        evaluate = lambda points: self._times(layer, points, device)  # noqa: E731
        shape = {"first": 5, "most": 12} if narrow else {"first": 4, "most": 8}
        for _ in range(_SETTLING_ROUNDS):
            stored = self._store.table.entries.get(layer.key, {})
            grid = adaptive_grid(in_range, out_range, evaluate, tolerance, **shape, known=stored.keys())
            if sum(self._settle(layer, p, device) for p in suspects(grid)) == 0:
                break
        self._grids[layer.key, layer.dense] = grid
        return grid

    def _noise(self, layer: Layer) -> float:
        """Typical standard error of this layer's times, in ms."""
        assert self._store is not None
        points = self._store.table.entries.get(layer.key, {})
        return float(np.median([t.iqr_ms / t.count**0.5 for t in points.values()])) if points else 0.0

    def _warn_of_spread(self) -> None:
        if self._unsteady:
            worst = max(self._unsteady, key=self._unsteady.__getitem__)
            logger.warning(
                "%d layers were measured with times that spread by more than %.0f %%, also at the second try (worst: "
                "%s, %.0f %%): something else may be using this machine",
                *(len(self._unsteady), 100 * SPREAD_LIMIT, worst, 100 * self._unsteady[worst]),
            )
            self._unsteady.clear()

    def _times(self, layer: Layer, points: Sequence[Point], device: torch.device) -> list[float]:
        """Times in ms; measures those that are not known. A layer that cannot be replayed counts as 0: the
        calibration against the whole network makes up for it."""
        assert self._store is not None
        result = []
        for point in points:
            timing = self._store.table.get(layer.key, point)
            if timing is None and layer.key not in self._failed:
                timing = self._measure(layer, point, device)
            result.append(0.0 if timing is None else timing.median_ms)
        return result

    def _measure(self, layer: Layer, point: Point, device: torch.device) -> Timing | None:
        assert self._store is not None
        try:
            timing = self._time(layer, point, device, self.effort)
            if timing.spread > SPREAD_LIMIT:
                timing = min(timing, self._time(layer, point, device, self.effort.longer()), key=lambda t: t.spread)
        except (TimingError, RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self._failed[layer.key] = str(error)
            logger.warning("%s cannot be timed on its own and is left to the calibration: %s", layer.name, error)
            return None
        if timing.spread > SPREAD_LIMIT:
            self._store.table.notes[layer.key] = f"spread {timing.spread:.0%} at widths {point}"
            self._unsteady[layer.name] = max(timing.spread, self._unsteady.get(layer.name, 0.0))
        self._store.put(layer.key, point, timing)
        return timing

    def _settle(self, layer: Layer, point: Point, device: torch.device) -> bool:
        """Measure a point again that looks wrong; the lower time stays, for interference only adds. Points with
        many samples are settled already."""
        assert self._store is not None
        before = self._store.table.get(layer.key, point)
        if before is None or before.count >= self.effort.longer().min_blocks:
            return False
        timing = self._time(layer, point, device, self.effort.longer())
        best = min(timing, before, key=lambda t: t.median_ms)
        self._store.put(layer.key, point, Timing(best.median_ms, best.iqr_ms, before.count + timing.count))
        return True

    def _time(self, layer: Layer, point: Point, device: torch.device, effort: Effort) -> Timing:
        args, kwargs = layer.arguments(*point, device=device)
        with cpu_threads(self.threads):
            return (self.timer or time_call)(partial(layer.function, *args, **kwargs), device, effort)
