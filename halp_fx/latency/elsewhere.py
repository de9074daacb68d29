"""elsewhere: a request -> a table of this device; a table of another device -> what networks cost there."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from ..errors import LatencyError
from ..solver import CostTable
from ..types import Coupling
from .costs import CountedCost, Options, cost_table
from .files import read_table
from .fingerprint import Fingerprint, check_device, devices_here
from .grids import Grid, Range, adaptive_grid
from .layers import Layer
from .measuring import GridKey, grid_key, measure_grids, wanted
from .request import TableRequest
from .runtimes import units
from .sampler import Sampler
from .store import open_store
from .table import LatencyTable, Point
from .timing import LAYER_EFFORT, Effort, Timer

logger = logging.getLogger("halp_fx")

UNTIMED = "cannot be timed on its own: "
"""How the note begins of a layer that the device could not run by itself: it counts as nothing."""


def measure_request(
    request: TableRequest,
    table: str | PathLike[str],
    device: torch.device | str = "cpu",
    threads: int | None = None,
    effort: Effort = LAYER_EFFORT,
    timer: Timer | None = None,
) -> tuple[LatencyTable, Path | None]:
    """Time the layers of a request on this device. What the table has is not timed again, so an interrupted call goes
    on where it was.

    Args:
        table: a file, or a folder, in which the file is named by device and setting.
        threads: CPU threads; None: as torch is set.
        effort, timer: as for `MeasuredLatency`.

    Returns:
        The table, and the file that it was saved to.

    Raises:
        LatencyError: the table cannot be used, or this device does not have the request's runtime.
    """
    device = torch.device(device)
    check_device(request.runtime, device)
    store = open_store(table, Fingerprint.of(device, request.runtime, threads))
    sampler = Sampler(store, device, request.runtime, threads, effort, timer)
    with store.saving(), sampler.memory():
        sampler.check_stored([row.layer for row in request.rows])
        measure_grids(request.by_grid, {}, sampler)
        for key, why in sampler.failed.items():
            store.note(key, f"{UNTIMED}{why}")
    sampler.warn()
    return store.table, store.path


@dataclass(slots=True, eq=False)
class TableLatency(CountedCost):
    """The sum of layer times of another device, in milliseconds, from a table that was measured there.

    Nothing is timed here. Of a network's time there only what its layers add up to is known, so nothing is calibrated:
    a budget is met by that sum (`docs/tables.md`).

    Attributes:
        table: a file, or a `LatencyTable`.
    """

    table: str | PathLike[str] | LatencyTable
    _grids: dict[GridKey, Grid | None] = field(default_factory=dict, init=False, repr=False)
    resource = "latency"
    unit = "ms"

    def __post_init__(self) -> None:
        if not isinstance(self.table, LatencyTable):
            self.table = read_table(self.table)

    @property
    def measured(self) -> LatencyTable:
        """The times."""
        assert isinstance(self.table, LatencyTable)
        return self.table

    def tables(self, coupling: Coupling, options: Options) -> tuple[CostTable, ...]:
        """See `Cost`.

        Raises:
            LatencyError: the table lacks layers of this network, or widths that they may take.
        """
        found = self._layers(coupling)
        for row in wanted(found, options, coupling.widths()).values():
            self._require(row.layer, (row.inputs.low, row.output.low))
        return tuple(cost_table(layer, self._grid(layer), self.resource) for layer in found)

    def total(self, coupling: Coupling, widths: Mapping[str, int] | None = None) -> float:
        """See `Cost`.

        Raises:
            LatencyError: the table lacks layers of this network, or has none as narrow.
        """
        widths = coupling.widths() if widths is None else widths
        found = [(layer, layer.widths(widths)) for layer in self._layers(coupling)]
        for layer, point in found:
            self._require(layer, point)
        return float(sum(self._grid(layer).at(*point) for layer, point in found))

    def _layers(self, coupling: Coupling) -> tuple[Layer, ...]:
        """The layers of a network, all of which the table has."""
        found = units(coupling, self.measured.fingerprint.runtime)
        for layer in found:
            if grid_key(layer) not in self._grids:
                self._grids[grid_key(layer)] = _grid_of(self.measured, layer)
        missing = [layer for layer in found if self._grids[grid_key(layer)] is None]
        if missing:
            raise LatencyError(
                f"the table of {self.measured.fingerprint.device} has no times of {len(missing)} of this network's "
                f"{len(found)} layers, such as {missing[0].name}: {missing[0].key:.200}. Layers are told by operator, "
                "shapes, dtype and memory format: request the table with the inputs that you prune with"
            )
        return found

    def _grid(self, layer: Layer) -> Grid:
        grid = self._grids[grid_key(layer)]
        assert grid is not None
        return grid

    def _require(self, layer: Layer, point: Point) -> None:
        """Raises LatencyError for widths that the table has no times of."""
        grid = self._grid(layer)
        if not grid.covers(*point):
            raise LatencyError(
                f"the table of {self.measured.fingerprint.device} has times of {layer.name} from widths "
                f"{(grid.in_widths[0], grid.out_widths[0])} on, but it may become {point}: request the table with a "
                "smaller --min-keep, or prune with a larger one"
            )


def of_other_device(path: Path) -> TableLatency | None:
    """Latency by a table file of a device that this machine does not have; None for other files, and for folders.

    Raises:
        TableFileError: it cannot be used.
    """
    if not path.is_file():
        return None
    table = read_table(path)
    if table.fingerprint.device in devices_here():
        return None
    logger.info("%s is of %s: a network costs the sum of its layers there", path, table.fingerprint.device)
    return TableLatency(table)


def _grid_of(table: LatencyTable, layer: Layer) -> Grid | None:
    """The largest grid of times that ends at the layer's dense widths; None if it was not timed there."""
    known, (n_in, n_out) = table.entries.get(layer.key, {}), layer.dense
    if table.notes.get(layer.key, "").startswith(UNTIMED):
        ins, outs = (tuple(sorted({0, width})) for width in layer.dense)
        return Grid(ins, outs, np.zeros((len(outs), len(ins))))
    corners = [(i, o) for i, o in known if {(i, n_out), (n_in, o), (n_in, n_out)} <= known.keys()]
    corners = [(i, o) for i, o in corners if i <= n_in and o <= n_out]
    if not corners:
        return None
    least_in, least_out = max(corners, key=lambda p: (n_in - p[0] + 1) * (n_out - p[1] + 1))
    return adaptive_grid(
        *(Range(least_in, n_in), Range(least_out, n_out)),
        lambda points: [known[point].median_ms for point in points],
        math.inf,
        *(2, 2),
        known.keys(),
    )
