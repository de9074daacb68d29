"""The value that the solver takes and the value that it returns.

A `WidthProblem` is plain numbers: for each channel group the widths that it may take and what each is
worth, and for each layer a table of what it costs at a grid of (output width, input width). Construction
validates: a `ProblemError` names the entry that is wrong.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ProblemError
from .tables import Branch, CostTable, Ints, Term, WidthGroup

TOLERANCE = 1e-9
"""Relative slack in "within the budget": sums of the same costs in another order differ by rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class WidthProblem:
    """Pick a width for every group so that the value is greatest and every budget is met.

    Attributes:
        groups: name -> `WidthGroup`.
        costs: one `CostTable` a layer and resource.
        budgets: resource -> most that the sum of its costs may be. A resource without a budget is only reported.
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
        if not self.groups and not self.branches:
            raise ProblemError(f"problem {self.name!r} has no groups and no branches: there is nothing to choose")
        for resource, budget in self.budgets.items():
            if not math.isfinite(budget):
                raise ProblemError(f"budget of {resource!r} is {budget}: give a finite number, or leave it out")
        self._check_costs()
        self._check_branches()

    def _check_costs(self) -> None:
        extremes = [{name: int(g.widths[end]) for name, g in self.groups.items()} for end in (0, -1)]
        for cost in self.costs:
            for term in (*cost.inputs, *cost.output):
                if term.group not in self.groups:
                    raise ProblemError(f"cost {cost.name!r} uses group {term.group!r}, which the problem does not have")
            for widths in extremes:
                cost.check_covers(self.out_width(cost, widths), self.in_width(cost, widths))

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
            for group, value in branch.adds.items():
                if group not in self.groups or group in branch.groups:
                    raise ProblemError(f"{where} adds to group {group!r}, which is in it, or not in the problem")
                if len(value) != len(self.groups[group].widths):
                    raise ProblemError(
                        f"{where} adds {len(value)} values to group {group!r}, which has "
                        f"{len(self.groups[group].widths)} widths: give one value a width"
                    )
        for branch in self.branches:
            other = next((group for group in branch.adds if group in owner), None)
            if other is not None:
                raise ProblemError(f"branch {branch.name!r} adds to group {other!r} of branch {owner[other]!r}")
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

    def evaluate(self, widths: Mapping[str, int], dropped: Iterable[str] = ()) -> tuple[float, dict[str, float]]:
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
                stay = (b for b in self.branches if b.name not in gone and name in b.adds)
                value += sum(b.adds[name][int(option)] for b in stay)
        home = self.branch_of_cost()
        costs = dict.fromkeys([*self.budgets, *(cost.resource for cost in self.costs)], 0.0)
        for index, cost in enumerate(self.costs):
            if home.get(index) not in gone or index not in home:
                costs[cost.resource] += cost.entry(self.out_width(cost, widths), self.in_width(cost, widths))
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
        value: what it is worth.
        costs: resource -> what it costs, for every resource of the problem.
        upper_bound: no choice within the budgets is worth more.
        gap: upper_bound - value, relative to what the budgets buy (value beyond the least that any choice has), or to
            ten times what they do not buy (value of the dense network beyond this one), whichever is less; 0 is proven
            optimal. Where all choices are worth the same, of the preference for wide and even ones instead.
        seconds: wall-clock time of the call.
        method: that was asked for.
        dropped: names of the branches dropped.
        status: "optimal" (gap below 1e-6), "within_gap" (below the gap asked for), "feasible" (budgets met,
            gap larger).
        work: what finding it took, in the unit of `work_limit`.
        limited: whether a limit ended the search before the gap was what was asked for: more work may find a better
            choice, by `gap` at most.
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
    work: float = 0.0
    limited: bool = False


def _width(terms: tuple[Term, ...], offset: int, grid: Ints, widths: Mapping[str, int]) -> int:
    if not terms:
        return int(grid[0]) if len(grid) == 1 else offset
    for term in terms:
        offset += term.scale * int(widths[term.group])
    return offset
