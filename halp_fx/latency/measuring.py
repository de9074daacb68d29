"""measuring: layers, and the widths that each may take -> their grids, timed by a sampler.

A grid starts coarse and gets lines where the time bends (`grids`); what looks wrong in it is measured again, well apart
in time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass

import numpy as np

from ..progress import work
from .costs import Options
from .grids import Grid, Range, adaptive_grid
from .layers import Layer
from .recheck import suspects
from .sampler import Sampler
from .table import Point

GridKey = tuple[str, Point]
"""Signature and dense widths of a layer: layers that share both have one grid."""


def grid_key(layer: Layer) -> GridKey:
    return layer.key, layer.dense


_SETTLING_ROUNDS = 4

_MATTERS = 0.0025


@dataclass(frozen=True, slots=True)
class Wanted:
    """A layer whose times are wanted.

    Attributes:
        inputs, output: the widths that it may take.
        uses: how many layers of the network are alike.
    """

    layer: Layer
    inputs: Range
    output: Range
    uses: int = 1

    @property
    def key(self) -> GridKey:
        return grid_key(self.layer)

    def joined(self, other: Wanted) -> Wanted:
        """With the widths of its twin, which may differ in how far its groups shrink."""
        inputs, output = other.inputs.union(self.inputs), other.output.union(self.output)
        return Wanted(self.layer, inputs, output, self.uses + other.uses)


def wanted(found: Iterable[Layer], options: Options, dense: Mapping[str, int]) -> dict[GridKey, Wanted]:
    """What has to be known of layers whose groups may be as wide as `options` say."""
    rows: dict[GridKey, Wanted] = {}
    for layer in found:
        one = Wanted(layer, Range.of(layer.inputs, options, dense), Range.of(layer.output, options, dense))
        rows[one.key] = rows[one.key].joined(one) if one.key in rows else one
    return rows


def measure_grids(rows: Mapping[GridKey, Wanted], grids: MutableMapping[GridKey, Grid], sampler: Sampler) -> None:
    """Add the grids that are not known yet: all of them first, then whatever looks wrong in them again."""
    sampler.limits.update(_limits(rows.values(), sampler))
    due = [key for key, row in rows.items() if not _covers(grids.get(key), row)]
    for _ in range(_SETTLING_ROUNDS):
        with work("time layers", len(due), "layers") as done:
            for key in due:
                grids[key] = _grid(rows[key], sampler)
                done()
        due = [key for key in due if _settle(rows[key].layer, grids[key], sampler)]
        if not due:
            return


def _covers(grid: Grid | None, row: Wanted) -> bool:
    ends = ((row.inputs.low, row.output.low), (row.inputs.high, row.output.high))
    return grid is not None and all(grid.covers(*end) for end in ends)


def _limits(rows: Iterable[Wanted], sampler: Sampler) -> dict[str, float]:
    """Error in ms that may stand, per signature: 0.25 % of the network shared by its uses, for detail in what hardly
    counts is measured in vain."""
    uses: Counter[str] = Counter()
    total = 0.0
    for row in rows:
        uses[row.layer.key] += row.uses
        total += row.uses * sampler.times(row.layer, [row.layer.dense])[0]
    return {key: _MATTERS * total / count for key, count in uses.items()}


def _grid(row: Wanted, sampler: Sampler) -> Grid:
    """The grid of a layer, with a line wherever it is off by more than 2 % of the layer, what does not matter in it,
    and noise."""
    layer, limit = row.layer, sampler.limits[row.layer.key]

    def tolerance(values: np.ndarray) -> float:
        return max(0.02 * float(values.max()), limit, 2 * sampler.noise(layer))

    narrow = row.inputs.low == row.inputs.high or row.output.low == row.output.high
    first, most = _lines(sampler.times(layer, [layer.dense])[0], limit, narrow)
    return adaptive_grid(
        row.inputs,
        row.output,
        lambda points: sampler.times(layer, points),
        tolerance,
        first,
        most,
        sampler.store.table.entries.get(layer.key, {}).keys(),
        confirm=lambda points: sum(sampler.settle(layer, p, most_runs=2, later=False) for p in points) > 0,
    )


def _lines(dense_ms: float, limit: float, narrow: bool) -> tuple[int, int]:
    """Lines per axis to begin with and at most: what costs so little cannot be off by more."""
    if dense_ms <= limit:
        return 2, 2
    return (5, 12) if narrow else (4, 8)


def _settle(layer: Layer, grid: Grid, sampler: Sampler) -> bool:
    """Measure the suspicious points of a grid again; whether there were any."""
    corner = grid.in_widths[-1], grid.out_widths[-1]
    again = [corner] if sampler.runs(layer, corner) < 2 else []
    points = dict.fromkeys((*again, *suspects(grid, sampler.limits[layer.key] / 4)))
    return sum(sampler.settle(layer, point) for point in points) > 0
