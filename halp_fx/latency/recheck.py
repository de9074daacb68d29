"""Which points of a measured grid deserve a second look.

Those where fewer channels seem to take longer: in published tables 3-4 % of adjacent pairs do. And those where the
time grows faster than the width, for work grows at most in proportion. Some of either is real (another kernel is
picked, a cache overflows), some is noise; both points of such a pair are measured again before it is believed. The
last corner of a grid has no wider neighbour to give it away, and everything is judged by it: it is always measured
a second time.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .grids import Grid
from .table import LatencyTable, Point

_NOISE = 0.02
_GROWTH = 1.15
"""Times the ratio of widths: what a time may grow by."""


def suspects(grid: Grid, limit: float = 0.0) -> list[Point]:
    """Both points of every adjacent pair where the narrower is slower, or the wider slower than in proportion.

    Args:
        limit: differences of so many ms do not matter.
    """
    values = grid.values
    marked = np.zeros(values.shape, dtype=bool)
    for axis, widths in ((0, grid.out_widths), (1, grid.in_widths)):
        if len(widths) < 2:
            continue
        less, more = (values.take(range(k, len(widths) - 1 + k), axis) for k in (0, 1))
        sizes = np.maximum(np.asarray(widths, np.float64), 1)
        ratio = np.expand_dims(sizes[1:] / sizes[:-1], 1 - axis)
        wrong = (less > more * (1 + _NOISE) + limit) | (more > less * ratio * _GROWTH + limit)
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
