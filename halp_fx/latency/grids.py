"""Which widths of a layer to look at: a grid that starts coarse and gets lines where the cost bends.

Takes the widths that groups may have, and a function that gives costs; returns grid lines and the cost at each
crossing. The cost of a layer is wanted between the lines too, by linear interpolation. So a line is checked against
what its neighbours would have predicted, and where that fails the wider of the intervals beside it is halved: steps
get points, flat and straight parts do not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd

import numpy as np

from ..types import Extent

Evaluate = Callable[[Sequence[tuple[int, int]]], Sequence[float]]
"""From (n_in, n_out) points to costs."""


@dataclass(frozen=True, slots=True)
class Range:
    """The widths a layer's axis can have: `low`, `low + step`, …, and `high`."""

    low: int
    high: int
    step: int = 1

    @classmethod
    def of(cls, extent: Extent | None, options: Mapping[str, Sequence[int]], widths: Mapping[str, int]) -> Range:
        """The range of an extent.

        It ends at the dense width even if the options do not, so that the later steps of a gradual removal, whose
        options are narrower, use the same lines.

        Args:
            options: ascending widths per group; a group without options keeps its width.
            widths: dense widths.
        """
        if extent is None:
            return cls(0, 0)
        if not extent.terms:
            return cls(extent.fixed, extent.fixed)
        least = {group: min(options.get(group, (widths[group],))) for group, _ in extent.terms}
        steps = [scale * _step(options.get(group, (widths[group],))) for group, scale in extent.terms]
        low, high = extent.at(least), extent.at(widths)
        return cls(low, max(low, high), reduce(gcd, steps))

    def union(self, other: Range) -> Range:
        """A range that has the widths of both, which end at the same width."""
        step = gcd(self.step, other.step, abs(self.low - other.low))
        return Range(min(self.low, other.low), max(self.high, other.high), max(step, 1))

    def lines(self, count: int) -> list[int]:
        """About `count` evenly spaced widths, both ends included."""
        return sorted({self.snap(x) for x in np.linspace(self.low, self.high, count)} | {self.low, self.high})

    def snap(self, width: float) -> int:
        """The nearest width that the axis can have."""
        if width >= self.high:
            return self.high
        return min(self.low + self.step * max(0, round((width - self.low) / self.step)), self.high)

    def allows(self, width: int) -> bool:
        """Whether the axis can have this width."""
        return width == self.high or (self.low <= width < self.high and (width - self.low) % self.step == 0)

    def between(self, a: int, b: int) -> int | None:
        """A width near the middle of a and b, None if there is none strictly between."""
        middle = self.snap((a + b) / 2)
        return middle if a < middle < b else None


def _step(options: Sequence[int]) -> int:
    """What all options but the last are multiples of: the last is the dense width, whatever it is."""
    return reduce(gcd, options[:-1]) if len(options) > 1 else max(int(options[0]), 1)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Costs at grid lines: `values[o][i]` at (out_widths[o], in_widths[i])."""

    in_widths: tuple[int, ...]
    out_widths: tuple[int, ...]
    values: np.ndarray

    def at(self, n_in: int, n_out: int) -> float:
        """Bilinear between lines, clamped at the ends."""
        columns = np.array([np.interp(n_in, self.in_widths, row) for row in self.values])
        return float(np.interp(n_out, self.out_widths, columns))

    def covers(self, n_in: int, n_out: int) -> bool:
        return self.in_widths[0] <= n_in <= self.in_widths[-1] and self.out_widths[0] <= n_out <= self.out_widths[-1]


def adaptive_grid(
    in_range: Range,
    out_range: Range,
    evaluate: Evaluate,
    tolerance: float | Callable[[np.ndarray], float],
    first: int = 3,
    most: int = 9,
    known: Collection[tuple[int, int]] = (),
    confirm: Callable[[Sequence[tuple[int, int]]], bool] | None = None,
) -> Grid:
    """Costs over two ranges.

    Args:
        evaluate: costs at points; asked once for each point.
        tolerance: largest interpolation error that is left alone, in the unit of the cost; or a function of the
            values so far.
        first, most: lines per axis at the beginning and at the end.
        known: points that cost nothing to ask for; lines all of whose crossings are known are in the grid.
        confirm: looks again at the three points of a bend before it gets a line, for noise bends too and a line is
            many points; whether any of them was looked at.
    """
    lines = [in_range.lines(first), out_range.lines(first)]
    ranges = (in_range, out_range)
    _add_known_lines(lines, ranges, set(known))
    seen: dict[tuple[int, int], float] = {}
    while True:
        values = _values(lines, seen, evaluate)
        limit = tolerance(values) if callable(tolerance) else tolerance
        split = _worst_interval(lines, ranges, values, limit, most)
        if split is None:
            return Grid(tuple(lines[0]), tuple(lines[1]), values)
        axis, width, bend = split
        if confirm is not None and confirm(bend):
            for point in bend:
                del seen[point]
        else:
            lines[axis] = sorted((*lines[axis], width))


def _add_known_lines(lines: list[list[int]], ranges: Sequence[Range], known: set[tuple[int, int]]) -> None:
    """Add every line whose crossings with the others are all known, until there is none left."""
    grown = bool(known)
    while grown:
        grown = False
        for axis in (0, 1):
            for width in sorted({p[axis] for p in known} - set(lines[axis])):
                crossings = [(width, o) if axis == 0 else (o, width) for o in lines[1 - axis]]
                if ranges[axis].allows(width) and known.issuperset(crossings):
                    lines[axis] = sorted((*lines[axis], width))
                    grown = True


def _values(lines: Sequence[Sequence[int]], seen: dict[tuple[int, int], float], evaluate: Evaluate) -> np.ndarray:
    missing = [(i, o) for o in lines[1] for i in lines[0] if (i, o) not in seen]
    seen.update(zip(missing, evaluate(missing), strict=True))
    return np.array([[seen[i, o] for i in lines[0]] for o in lines[1]])


def _worst_interval(
    lines: Sequence[Sequence[int]], ranges: Sequence[Range], values: np.ndarray, limit: float, most: int
) -> tuple[int, int, list[tuple[int, int]]] | None:
    """(axis, width) of the line to add, beside the line that its neighbours predict worst; and the three points
    where they do."""
    candidates = []
    for axis, widths in enumerate(lines):
        if len(widths) >= most:
            continue
        for error, line, across in bends(widths, values if axis == 0 else values.T):
            if error > limit:
                gaps = [(widths[line - 1], widths[line]), (widths[line], widths[line + 1])]
                for a, b in sorted(gaps, key=lambda gap: gap[0] - gap[1]):
                    middle = ranges[axis].between(a, b)
                    if middle is not None:
                        other = lines[1 - axis][across]
                        row = widths[line - 1 : line + 2]
                        candidates.append((error, axis, middle, [(w, other) if axis == 0 else (other, w) for w in row]))
                        break
    return max(candidates)[1:] if candidates else None


def bends(widths: Sequence[int], values: np.ndarray) -> list[tuple[float, int, int]]:
    """(error, line, row) for each inner line: how far its neighbours' interpolation is from it at worst, and where.

    Args:
        values: costs, lines along the last dimension.
    """
    found = []
    for j in range(1, len(widths) - 1):
        part = (widths[j] - widths[j - 1]) / (widths[j + 1] - widths[j - 1])
        guess = values[..., j - 1] * (1 - part) + values[..., j + 1] * part
        errors = np.abs(values[..., j] - guess)
        found.append((float(errors.max()), j, int(errors.argmax())))
    return found
