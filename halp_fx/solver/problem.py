"""The value that the solver takes and the value that it returns. Imports no other part of the solver.

A `WidthProblem` is plain numbers: for each channel group the widths that it may take and what each is
worth, and for each layer a table of what it costs at a grid of (output width, input width). Construction
validates: a `ProblemError` names the entry that is wrong.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ProblemError

LATENCY = "latency"
"""Name of the resource that `budget` in a problem file, and a `CostTable` without a resource, mean."""

TOLERANCE = 1e-9
"""Relative slack in "within the budget": sums of the same costs in another order differ by rounding."""


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

    widths: npt.NDArray[np.int64]
    value: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", _integers(self.widths, "widths"))
        object.__setattr__(self, "value", _floats(self.value, "value", ndim=1))
        if len(self.widths) == 0:
            raise ProblemError("a group has no widths to choose from: give it at least one")
        if len(self.value) != len(self.widths):
            raise ProblemError(
                f"{len(self.widths)} widths but {len(self.value)} values: give one value a width"
            )
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
        inputs, output: terms of the two widths. A group may stand in both (depthwise) or in one of them
        (norm).
        in_widths: (I,) int64 strictly ascending. out_widths: (O,) likewise.
        table: (O, I) float64 in the unit of the resource. Need not be monotone nor positive.
        resource: which budget it counts towards.
    """

    name: str
    inputs: tuple[Term, ...]
    output: tuple[Term, ...]
    in_offset: int = 0
    out_offset: int = 0
    in_widths: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    out_widths: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    table: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((1, 1)))
    resource: str = LATENCY

    def __post_init__(self) -> None:
        where = f"cost {self.name!r}"
        object.__setattr__(self, "inputs", tuple(self.inputs))
        object.__setattr__(self, "output", tuple(self.output))
        for side in ("in_widths", "out_widths"):
            object.__setattr__(self, side, _integers(getattr(self, side), f"{where}: {side}"))
            _ascending(getattr(self, side), f"{where}: {side}")
        object.__setattr__(self, "table", _floats(self.table, f"{where}: table", ndim=2))
        expected = (len(self.out_widths), len(self.in_widths))
        if self.table.shape != expected or 0 in expected:
            raise ProblemError(
                f"{where}: table has shape {self.table.shape}, but out_widths x in_widths is {expected}: "
                "give one row an output width and one column an input width"
            )
        for term in (*self.inputs, *self.output):
            if not isinstance(term.scale, (int, np.integer)) or term.scale < 1:
                raise ProblemError(
                    f"{where}: scale {term.scale!r} of group {term.group!r} is not a positive integer"
                )

    def at(self, out_widths: npt.ArrayLike, in_widths: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """(P, Q) costs at every pair of the (P,) output and (Q,) input widths, bilinear between grid points.

        Raises:
            ProblemError: a width lies outside the grid.
        """
        low, high, part = self._locate(out_widths, self.out_widths, "output")
        rows = self.table[low] * (1 - part)[:, None] + self.table[high] * part[:, None]
        low, high, part = self._locate(in_widths, self.in_widths, "input")
        return rows[:, low] * (1 - part) + rows[:, high] * part

    def _locate(
        self, widths: npt.ArrayLike, grid: npt.NDArray[np.int64], side: str
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
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


@dataclass(frozen=True, slots=True)
class Branch:
    """A residual branch that may be dropped whole: its groups' value, its costs and `value` go with it.

    Attributes:
        name: unique.
        groups: groups that exist only inside the branch. Every cost that uses one must be listed.
        costs: names, or positions in `WidthProblem.costs`, of the costs that vanish.
        value: what keeping the branch is worth beyond the value of its groups.
    """

    name: str
    groups: tuple[str, ...]
    costs: tuple[int | str, ...]
    value: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class WidthProblem:
    """Pick a width for every group so that the value is greatest and every budget is met.

    Attributes:
        groups: name -> `WidthGroup`.
        costs: one `CostTable` a layer and resource.
        budgets: resource -> most that the sum of its costs may be. A resource without a budget is only
        reported.
        branches: parts that may be dropped whole.
        unit: of the latency, for display.
    """

    name: str
    groups: Mapping[str, WidthGroup]
    costs: tuple[CostTable, ...]
    budgets: Mapping[str, float]
    branches: tuple[Branch, ...] = ()
    unit: str = "us"

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", dict(self.groups))
        object.__setattr__(self, "costs", tuple(self.costs))
        object.__setattr__(self, "budgets", {k: float(v) for k, v in self.budgets.items()})
        object.__setattr__(self, "branches", tuple(self.branches))
        if not self.groups:
            raise ProblemError(f"problem {self.name!r} has no groups: there is nothing to choose")
        for resource, budget in self.budgets.items():
            if not math.isfinite(budget):
                raise ProblemError(
                    f"budget of {resource!r} is {budget}: give a finite number, or leave it out"
                )
        self._check_costs()
        self._check_branches()

    def _check_costs(self) -> None:
        extremes = [{name: int(g.widths[end]) for name, g in self.groups.items()} for end in (0, -1)]
        for cost in self.costs:
            for term in (*cost.inputs, *cost.output):
                if term.group not in self.groups:
                    raise ProblemError(
                        f"cost {cost.name!r} uses group {term.group!r}, which the problem does not have"
                    )
            for widths in extremes:
                cost.at(self.out_width(cost, widths), self.in_width(cost, widths))

    def _check_branches(self) -> None:
        owner: dict[str, str] = {}
        for branch in self.branches:
            where = f"branch {branch.name!r}"
            if sum(other.name == branch.name for other in self.branches) > 1:
                raise ProblemError(f"{where}: two branches have this name")
            if not math.isfinite(branch.value):
                raise ProblemError(f"{where}: value is {branch.value}")
            for group in branch.groups:
                if group not in self.groups:
                    raise ProblemError(f"{where} has group {group!r}, which the problem does not have")
                if group in owner:
                    raise ProblemError(f"group {group!r} is in branches {owner[group]!r} and {branch.name!r}")
                owner[group] = branch.name
        dropped_with = self.branch_of_cost()
        for index, cost in enumerate(self.costs):
            for term in (*cost.inputs, *cost.output):
                home = owner.get(term.group)
                if home is not None and dropped_with.get(index) != home:
                    raise ProblemError(
                        f"cost {cost.name!r} uses group {term.group!r} of branch {home!r} but is not one of the "
                        "branch's costs: what would it cost without the branch?"
                    )

    def branch_of_cost(self) -> dict[int, str]:
        """Position of each cost that belongs to a branch -> that branch's name."""
        home: dict[int, str] = {}
        for branch in self.branches:
            for key in branch.costs:
                index = self._cost_index(key, branch)
                if home.setdefault(index, branch.name) != branch.name:
                    raise ProblemError(f"cost {key!r} is in branches {home[index]!r} and {branch.name!r}")
        return home

    def _cost_index(self, key: int | str, branch: Branch) -> int:
        if isinstance(key, str):
            found = [i for i, cost in enumerate(self.costs) if cost.name == key]
        else:
            found = [key] if 0 <= key < len(self.costs) else []
        if len(found) != 1:
            kind = "no cost is" if not found else f"{len(found)} costs are"
            raise ProblemError(f"branch {branch.name!r}: {kind} called {key!r}: use its position in `costs`")
        return found[0]

    @staticmethod
    def in_width(cost: CostTable, widths: Mapping[str, int]) -> int:
        """Input width of a layer under a choice of widths."""
        return _width(cost.inputs, cost.in_offset, cost.in_widths, widths)

    @staticmethod
    def out_width(cost: CostTable, widths: Mapping[str, int]) -> int:
        """Output width of a layer under a choice of widths."""
        return _width(cost.output, cost.out_offset, cost.out_widths, widths)

    def evaluate(
        self, widths: Mapping[str, int], dropped: Iterable[str] = ()
    ) -> tuple[float, dict[str, float]]:
        """Value and cost per resource of one choice, straight from the tables.

        Args:
            widths: group -> width; groups of dropped branches may be missing.
            dropped: names of the branches that are dropped.
        """
        gone = set(dropped)
        lost = {group for branch in self.branches if branch.name in gone for group in branch.groups}
        value = sum(branch.value for branch in self.branches if branch.name not in gone)
        for name, group in self.groups.items():
            if name not in lost:
                (option,) = np.flatnonzero(group.widths == widths[name])
                value += float(group.value[option])
        home = self.branch_of_cost()
        costs = dict.fromkeys([*self.budgets, *(cost.resource for cost in self.costs)], 0.0)
        for index, cost in enumerate(self.costs):
            if home.get(index) not in gone or index not in home:
                there = cost.at(self.out_width(cost, widths), self.in_width(cost, widths))
                costs[cost.resource] += float(there[0, 0])
        return float(value), costs

    def fits(self, costs: Mapping[str, float]) -> bool:
        """Whether costs (as `evaluate` gives them) meet every budget, up to rounding."""
        return all(costs[r] <= b + TOLERANCE * max(1.0, abs(b)) for r, b in self.budgets.items())

    @classmethod
    def from_json(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> WidthProblem:
        """Read a problem: JSON text, the path of a file (as `Path`), or what `json.load` returned.

        Raises:
            ProblemError: malformed; the message names the entry.
        """
        from .serialize import read_problem

        return read_problem(source)

    def to_json(self) -> str:
        """The problem as JSON text that `from_json` reads back."""
        from .serialize import write_problem

        return write_problem(self)


@dataclass(frozen=True, slots=True)
class Solution:
    """An answer and how close to the best possible it is known to be.

    Attributes:
        widths: group -> width kept; 0 for the groups of a dropped branch.
        value: what it is worth. costs: resource -> what it costs, for every resource of the problem.
        upper_bound: no choice within the budgets is worth more.
        gap: (upper_bound - value) / |upper_bound|; 0 is proven optimal.
        seconds: wall-clock time of the call.
        method: that found it. dropped: names of the branches dropped.
        status: "optimal" (gap below 1e-6), "within_gap" (below the gap asked for), "feasible" (budgets met,
            gap larger, e.g. the time limit came first).
    """

    widths: dict[str, int]
    value: float
    costs: dict[str, float]
    upper_bound: float
    gap: float
    seconds: float
    method: str
    dropped: tuple[str, ...] = ()
    status: str = "feasible"


def _width(
    terms: tuple[Term, ...], offset: int, grid: npt.NDArray[np.int64], widths: Mapping[str, int]
) -> int:
    if not terms and len(grid) == 1:
        return int(grid[0])
    return offset + sum(term.scale * int(widths[term.group]) for term in terms)


def _floats(values: Any, where: str, ndim: int) -> npt.NDArray[np.float64]:
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


def _integers(values: Any, where: str) -> npt.NDArray[np.int64]:
    array = _floats(values, where, ndim=1)
    if (array != np.rint(array)).any():
        raise ProblemError(f"{where}: {array[array != np.rint(array)][0]} is not a whole number of channels")
    whole = array.astype(np.int64)
    whole.setflags(write=False)
    return whole


def _ascending(array: npt.NDArray[np.int64], where: str) -> None:
    step = np.diff(array)
    if (step <= 0).any():
        spot = int(np.argmax(step <= 0))
        raise ProblemError(f"{where}: {array[spot]} is followed by {array[spot + 1]}: sort them, each once")
