"""Measured latency: each distinct layer is timed on the device over the widths that matter, once.

`MeasuredLatency` has the interface of every cost. Layers with equal signatures share their times; what is known from
a saved table is not measured again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arguments import shown
from ..errors import LatencyError
from ..files import path_of
from ..progress import counted
from ..solver import CostTable, Term
from ..tracing.graph import of
from ..types import Coupling, Inputs
from .clocks import check_threads
from .costs import Measured, Options, Sized, cost_table
from .files import require_same
from .fingerprint import Fingerprint, check_device, kind_of
from .grids import Grid
from .interleaving import NetworkTiming, interleaved
from .layers import Layer
from .measuring import GridKey, grid_key, measure_grids, wanted
from .prediction import LayerError
from .runtimes import units
from .sampler import Sampler
from .store import open_store
from .table import LatencyTable
from .timing import LAYER_EFFORT, Effort, Timer, Timing

_LONGEST_S = 3.0
"""For each network that is timed in turn."""


@dataclass(slots=True, eq=False)
class MeasuredLatency:
    """The sum of measured layer times, in milliseconds.

    Attributes:
        runtime: how the network will be executed: "eager", "inductor", "inductor-frozen" (weights as constants),
            "cudagraph", "aoti" (a package of AOTInductor) or "onnxruntime"; those of inductor in a mode of
            torch.compile, too: "inductor:max-autotune".
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
    effort: Effort = LAYER_EFFORT
    timer: Timer | None = None
    _sampler: Sampler | None = field(default=None, init=False, repr=False)
    _here: Fingerprint | None = field(default=None, init=False, repr=False)
    _grids: dict[GridKey, Grid] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        kind_of(self.runtime)
        check_threads(self.threads)
        if self.device is not None:
            try:
                torch.device(self.device)
            except (RuntimeError, TypeError) as error:
                raise LatencyError(f"device={shown(self.device)} is no device: write 'cpu' or 'cuda'") from error
        if self.table is not None and not isinstance(self.table, LatencyTable):
            path_of(self.table)

    @property
    def resource(self) -> str:
        return "latency"

    @property
    def unit(self) -> str:
        return "ms"

    @property
    def timed(self) -> bool:
        return True

    @property
    def launched(self) -> bool:
        """Whether a CPU launches the operators on another device one by one: the times of layers leave that out."""
        return self.runtime == "eager" and self._sampler is not None and self._sampler.device.type != "cpu"

    def tables(self, coupling: Coupling, options: Options) -> tuple[CostTable, ...]:
        """A table for each layer; what is not known yet is measured now.

        Raises:
            LatencyError: the table file cannot be used.
        """
        found, dense = self.layers(coupling), coupling.widths()
        sampler = self._open(coupling)
        with sampler.store.saving(), sampler.memory():
            sampler.check_stored(found)
            measure_grids(wanted(found, options, dense), self._grids, sampler)
        sampler.warn()
        return tuple(cost_table(layer, self._grids[grid_key(layer)], self.resource) for layer in found)

    def staircases(self, coupling: Coupling, options: Options) -> tuple[CostTable, ...]:
        """What each layer that makes channels of one group costs at every width in `options`, its input as wide as it
        is: `tables` have so few lines that steps between them are not seen. What is not known yet is measured now."""
        dense, sampler, found = coupling.widths(), self._open(coupling), []
        with sampler.store.saving(), sampler.memory():
            for layer in self.layers(coupling):
                terms = () if layer.output is None else layer.output.terms
                if layer.output is None or len(terms) != 1 or terms[0][0] not in options:
                    continue
                ((group, scale),) = terms
                outs = [layer.output.at(dense | {group: width}) for width in options[group]]
                times = sampler.times(layer, [(layer.dense[0], out) for out in outs])
                found.append(
                    CostTable(
                        *(layer.name, (), (Term(group, scale),)),
                        out_offset=layer.output.fixed,
                        out_widths=np.array(outs),
                        table=np.array(times)[:, None],
                    )
                )
        sampler.warn()
        return tuple(found)

    def total(self, coupling: Coupling, widths: Mapping[str, int] | None = None) -> float:
        """The sum of layer times, in ms, before any calibration."""
        return sum(self.by_layer(coupling, widths).values())

    def by_layer(
        self, coupling: Coupling, widths: Mapping[str, int] | None = None, exact: bool = False
    ) -> dict[str, float]:
        """Time of each layer, in ms, by its name.

        Args:
            widths: of the groups; None: dense.
            exact: measure at these very widths, afresh, and keep nothing. Otherwise the tables made so far are
                interpolated where they reach; the difference is the error of each layer's prediction.
        """
        widths = coupling.widths() if widths is None else widths
        sampler = self._open(coupling)
        found = [(layer, layer.widths(widths)) for layer in self.layers(coupling)]
        if exact:
            once = {(layer.key, point): layer for layer, point in found}
            with sampler.memory():
                places = counted(once.items(), "check layers", "layers")
                now = {place: sampler.afresh(layer, place[1]) for place, layer in places}
            return {layer.name: now[layer.key, point] for layer, point in found}
        result = {}
        with sampler.store.saving(), sampler.memory():
            for layer, point in found:
                grid = self._grids.get(grid_key(layer))
                covered = grid is not None and grid.covers(*point)
                result[layer.name] = grid.at(*point) if grid and covered else sampler.times(layer, [point])[0]
        return result

    def limits(self, coupling: Coupling, amount: float) -> dict[str, float]:
        """See `Cost`."""
        return {self.resource: amount}

    def measure(self, networks: Sequence[Sized], inputs: Inputs) -> Measured:
        """Time the networks in turn: the first one's median, and the others' by their shares of it."""
        timings = interleaved(
            [model for model, _, _ in networks],
            inputs,
            runtime=self.runtime,
            threads=self.threads,
            max_time_s=_LONGEST_S,
        )
        costs = tuple(timing.share * timings[0].median_ms for timing in timings)
        return Measured(costs, timings[0].spread, max(timing.waited for timing in timings))

    def as_found(self, model: nn.Module, inputs: Inputs) -> NetworkTiming:
        """A short look at a network while the process handles memory as it is set (`allocator`)."""
        effort: dict[str, Any] = {"min_time_s": 0.1, "max_time_s": 0.5, "repeats": 5}
        (timing,) = interleaved(
            [model], inputs, runtime=self.runtime, threads=self.threads, keep_memory=False, **effort
        )
        return timing

    def errors(self, coupling: Coupling, widths: Mapping[str, int]) -> tuple[LayerError, ...]:
        """Each layer as the tables predict it and as it is timed now, at these widths."""
        predicted, timed = (self.by_layer(coupling, widths, exact) for exact in (False, True))
        return tuple(
            LayerError(layer.name, layer.op, layer.widths(widths), predicted[layer.name], timed[layer.name])
            for layer in self.layers(coupling)
        )

    def layers(self, coupling: Coupling) -> tuple[Layer, ...]:
        """The units that this runtime executes: operators, or fused runs of them."""
        return units(coupling, self.runtime)

    def timing(self, layer: Layer, n_in: int, n_out: int = 0) -> Timing | None:
        """The stored time of a layer at these widths with its spread, None if it was not measured there."""
        return None if self._sampler is None else self._sampler.store.table.get(layer.key, (n_in, n_out))

    @property
    def measured(self) -> LatencyTable:
        """All times known so far.

        Raises:
            LatencyError: nothing has been measured or loaded yet.
        """
        if self._sampler is None:
            raise LatencyError("no table yet: call tables() or total() first")
        return self._sampler.store.table

    def adopt(self, table: LatencyTable, device: torch.device, name: str) -> None:
        """Take in times that were kept elsewhere, for networks on this device; of a point that is known already, the
        time from more measurements stays.

        Raises:
            ForeignTableError: they were measured on another device or setting; `name` is what the message calls them.
        """
        store = self._open_on(device).store
        if not self.allow_foreign:
            require_same(table, store.table.fingerprint, name)
        store.table.merge(table)

    @property
    def path(self) -> Path | None:
        """The file that times are saved to; None before the first use, and for a table in memory."""
        return None if self._sampler is None else self._sampler.store.path

    def _open(self, coupling: Coupling) -> Sampler:
        """The sampler for the device; the table is opened at the first use, and another one where the device or its
        setting (the number of threads) is another than at the last."""
        return self._open_on(_device_of(coupling))

    def _open_on(self, device: torch.device) -> Sampler:
        device = torch.device(self.device) if self.device is not None else device
        here = Fingerprint.of(device, self.runtime, self.threads)
        if self._sampler is None or here != self._here:
            check_device(self.runtime, device)
            store = open_store(self.table, here, self.allow_foreign)
            self._sampler = Sampler(store, device, self.runtime, self.threads, self.effort, self.timer)
            self._here = here
            self._grids.clear()
        return self._sampler


def _device_of(coupling: Coupling) -> torch.device:
    specs = (of(n).spec for n in coupling.traced.graph.nodes)
    return next((s.device for s in specs if s is not None), torch.device("cpu"))
