"""The tables that a width problem is made of: what a group's widths are worth and what a layer's widths cost.

Construction validates; a `ProblemError` names the entry that is wrong.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ProblemError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LATENCY = "latency"
"""Name of the resource that `budget` in a problem file, and a `CostTable` without a resource, mean."""


@dataclass(frozen=True, slots=True)
class Term:
    """`scale * width(group)`: one part of a layer's width. A flatten of H x W columns has scale H*W."""

    group: str
    scale: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class WidthGroup:
    """The choices of one channel group.

    Attributes:
        widths: (K,) int64, strictly ascending and positive: channels that may be kept.
        value: (K,) float64: what keeping that many is worth (prefix sums of saliency, any unit, any sign).
    """

    widths: Ints
    value: Floats

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", _integers(self.widths, "widths"))
        object.__setattr__(self, "value", _floats(self.value, "value", ndim=1))
        if len(self.widths) == 0:
            raise ProblemError("a group has no widths to choose from: give it at least one")
        if len(self.value) != len(self.widths):
            raise ProblemError(f"{len(self.widths)} widths but {len(self.value)} values: give one value a width")
        _ascending(self.widths, "widths")
        if self.widths[0] < 1:
            raise ProblemError(f"width {self.widths[0]} is not positive: drop whole layers with a Branch")


@dataclass(frozen=True, slots=True, eq=False)
class CostTable:
    """What one layer costs as a function of its output and input width.

    The cost is `table` at (out_offset + sum of scale*width over `output`, in_offset + the same over
    `inputs`), linear between grid points along both axes and exact at them. Outside the grid there is no
    measurement to lean on, so a problem whose widths leave the grid is refused. A dimension without terms
    is fixed: a single row or column is used as it is, otherwise the offset is the width.

    Attributes:
        name: layer or operator; need not be unique (a module may run twice).
        inputs, output: terms of the two widths. A group may stand in both (depthwise) or in one of them (norm).
        in_widths: (I,) int64 strictly ascending. out_widths: (O,) likewise.
        table: (O, I) float64 in the unit of the resource. Need not be monotone nor positive.
        resource: which budget it counts towards.
    """

    name: str
    inputs: tuple[Term, ...]
    output: tuple[Term, ...]
    in_offset: int = 0
    out_offset: int = 0
    in_widths: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    out_widths: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    table: Floats = field(default_factory=lambda: np.zeros((1, 1)))
    resource: str = LATENCY
    # What `at` was asked last: problems for many budgets are of the same tables and widths.
    _laid: dict[tuple[bytes, ...], Floats] = field(default_factory=dict, init=False, repr=False)
    # Output and input widths as lists, in which single ones are found ten times as fast.
    _grids: tuple[list[int], list[int]] = field(default=([], []), init=False, repr=False)
    # Whether it costs nothing anywhere, as most operators do where multiply-accumulates are counted.
    _free: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        where = f"cost {self.name!r}"
        object.__setattr__(self, "inputs", tuple(self.inputs))
        object.__setattr__(self, "output", tuple(self.output))
        for side in ("in_widths", "out_widths"):
            object.__setattr__(self, side, _integers(getattr(self, side), f"{where}: {side}"))
            _ascending(getattr(self, side), f"{where}: {side}")
        object.__setattr__(self, "_grids", (self.out_widths.tolist(), self.in_widths.tolist()))
        object.__setattr__(self, "table", _floats(self.table, f"{where}: table", ndim=2))
        object.__setattr__(self, "_free", not self.table.any())
        expected = (len(self.out_widths), len(self.in_widths))
        if self.table.shape != expected or 0 in expected:
            raise ProblemError(
                f"{where}: table has shape {self.table.shape}, but out_widths x in_widths is {expected}: "
                "give one row an output width and one column an input width"
            )
        for term in (*self.inputs, *self.output):
            if not isinstance(term.scale, (int, np.integer)) or term.scale < 1:
                raise ProblemError(f"{where}: scale {term.scale!r} of group {term.group!r} is not a positive integer")

    def at(self, out_widths: npt.ArrayLike, in_widths: npt.ArrayLike) -> Floats:
        """(P, Q) costs at every pair of the (P,) output and (Q,) input widths, bilinear between grid points; read-only.

        Raises:
            ProblemError: a width lies outside the grid.
        """
        asked = tuple(np.asarray(widths, np.float64).tobytes() for widths in (out_widths, in_widths))
        if asked not in self._laid:
            low, high, part = self._locate(out_widths, self.out_widths, "output")
            rows = self.table[low] * (1 - part)[:, None] + self.table[high] * part[:, None]
            low, high, part = self._locate(in_widths, self.in_widths, "input")
            found = rows[:, low] * (1 - part) + rows[:, high] * part
            found.setflags(write=False)
            self._laid.clear()
            self._laid[asked] = found
        return self._laid[asked]

    def entry(self, out_width: int, in_width: int) -> float:
        """`at` for a single pair of widths, without the arrays.

        Raises:
            ProblemError: as `at`.
        """
        self.check_covers(out_width, in_width)
        if self._free:
            return 0.0
        (low, high, part), (left, right, share) = map(_cell, (out_width, in_width), self._grids)
        at, rest = self.table.item, 1 - part
        before = at(low, left) * rest + at(high, left) * part
        behind = at(low, right) * rest + at(high, right) * part
        return float(before * (1 - share) + behind * share)

    def check_covers(self, out_width: int, in_width: int) -> None:
        """Raises ProblemError: a width lies outside the grid."""
        rows, columns = self._grids
        if not (rows[0] <= out_width <= rows[-1] and columns[0] <= in_width <= columns[-1]):
            self.at(out_width, in_width)  # Says what is outside.

    def _locate(self, widths: npt.ArrayLike, grid: Ints, side: str) -> tuple[Ints, Ints, Floats]:
        """Grid cell below and above each width, and how far between the two it lies."""
        points = np.atleast_1d(np.asarray(widths, np.float64))
        outside = (points < grid[0]) | (points > grid[-1])
        if outside.any():
            raise ProblemError(
                f"cost {self.name!r}: {side} width {points[outside][0]:g} is outside its table, which covers "
                f"{grid[0]} to {grid[-1]}: measure it there, or restrict the groups"
            )
        low = np.clip(np.searchsorted(grid, points, side="right") - 1, 0, max(len(grid) - 2, 0))
        high = np.minimum(low + 1, len(grid) - 1)
        return low, high, (points - grid[low]) / np.maximum(grid[high] - grid[low], 1)


def _cell(width: int, grid: Sequence[int]) -> tuple[int, int, float]:
    """Positions in a grid below and above a width, and how far between the two it lies."""
    low = max(min(bisect_right(grid, width) - 1, len(grid) - 2), 0)
    high = min(low + 1, len(grid) - 1)
    below = grid[low]
    return low, high, (width - below) / max(grid[high] - below, 1)


@dataclass(frozen=True, slots=True)
class Branch:
    """A residual branch that may be dropped whole: its groups' value, its costs, `value` and `adds` go with it.

    Attributes:
        name: unique.
        groups: groups that exist only inside the branch. Every cost that uses one must be listed.
        costs: names, or positions in `WidthProblem.costs`, of the costs that vanish.
        value: what keeping the branch is worth beyond the value of its groups.
        adds: group that is not in the branch -> one number for each of its widths: what the group is worth at that
            width as long as the branch is kept, beside its own value.
    """

    name: str
    groups: tuple[str, ...]
    costs: tuple[int | str, ...]
    value: float = 0.0
    adds: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"branch {self.name!r}: adds to"
        adds = {n: tuple(_floats(value, f"{where} {n!r}", ndim=1).tolist()) for n, value in self.adds.items()}
        object.__setattr__(self, "adds", adds)


def _floats(values: Any, where: str, ndim: int) -> Floats:
    if _made_here(values, np.float64, ndim):
        return np.asarray(values)
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ProblemError(f"{where}: not a rectangular array of numbers ({error})") from error
    if array.ndim != ndim:
        raise ProblemError(f"{where}: has {array.ndim} dimensions, expected {ndim}")
    if not np.isfinite(array).all():
        spot = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ProblemError(f"{where}: entry {list(spot)} is {array[spot]}: every entry must be finite")
    array.setflags(write=False)
    return array


def _made_here(values: Any, dtype: type[np.generic], ndim: int) -> bool:
    """Whether an array can be taken as it is: nobody can write into it, and it has what is wanted. Problems for many
    budgets are of the same widths."""
    own = isinstance(values, np.ndarray) and values.base is None and not values.flags.writeable
    return (
        own and values.dtype == dtype and values.ndim == ndim and (dtype is np.int64 or bool(np.isfinite(values).all()))
    )


def _integers(values: Any, where: str) -> Ints:
    if _made_here(values, np.int64, 1):
        return np.asarray(values)
    array = _floats(values, where, ndim=1)
    if (array != np.rint(array)).any():
        raise ProblemError(f"{where}: {array[array != np.rint(array)][0]} is not a whole number of channels")
    whole = array.astype(np.int64)
    whole.setflags(write=False)
    return whole


def _ascending(array: Ints, where: str) -> None:
    step = array[1:] - array[:-1]
    if (step <= 0).any():
        spot = int(np.argmax(step <= 0))
        raise ProblemError(f"{where}: {array[spot]} is followed by {array[spot + 1]}: sort them, each once")
