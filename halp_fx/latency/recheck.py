"""Which points of a measured grid deserve a second look: those where fewer channels seem to take longer.

In published tables 3-4 % of adjacent pairs do get slower with fewer channels. Some of that is real (another kernel is
picked), some is noise; both points of such a pair are measured again before the pair is believed.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .grids import Grid
from .table import LatencyTable, Point

_NOISE = 0.02


def suspects(grid: Grid) -> list[Point]:
    """Both points of every adjacent pair where the narrower is slower by more than 2 %."""
    values = grid.values
    marked = np.zeros(values.shape, dtype=bool)
    for axis in (0, 1):
        less, more = (np.take(values, part, axis) for part in _pairs(values.shape[axis]))
        wrong = less > more * (1 + _NOISE)
        for offset in (0, 1):
            index = [slice(None), slice(None)]
            index[axis] = slice(offset, offset + wrong.shape[axis])
            marked[tuple(index)] |= wrong
    rows, columns = np.nonzero(marked)
    return [(grid.in_widths[c], grid.out_widths[r]) for r, c in zip(rows.tolist(), columns.tolist(), strict=True)]


def slower_when_narrower(table: LatencyTable) -> tuple[int, int]:
    """(adjacent pairs, those where the narrower point is slower by more than 2 %) of all points of a table."""
    pairs = slower = 0
    for points in table.entries.values():
        for axis in (0, 1):
            rows: dict[int, list[tuple[int, float]]] = {}
            for point, timing in points.items():
                rows.setdefault(point[1 - axis], []).append((point[axis], timing.median_ms))
            for row in rows.values():
                times = [time for _, time in sorted(row)]
                pairs += len(times) - 1
                slower += sum(a > b * (1 + _NOISE) for a, b in pairwise(times))
    return pairs, slower


def _pairs(length: int) -> tuple[np.ndarray, np.ndarray]:
    steps = np.arange(max(length - 1, 0))
    return steps, steps + 1
