"""layout: a width problem -> a `Model`, by way of what it has in common with others over the same layers and widths.

Variables, sums and the tables of costs depend on the layers, the widths that groups may take, and the branches. Values
and budgets, which differ from one budget of a curve to the next, come last (`Layout.model`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .elimination import Elimination
from .model import TIE, Factor, Model, Sum
from .problem import WidthProblem
from .tables import CostTable, Floats, Ints, Term

_NOTHING = 1e-200
"""Amounts of a budget up to here are none: what a cost is of them is not finite."""


def _unit(budget: float) -> float:
    """What costs are counted in: the budget, if it is any."""
    return abs(budget) if abs(budget) > _NOTHING else 1.0


@dataclass(slots=True)
class Shared:
    """What was made for one problem and serves the next, if that is over the same layers, widths and branches: answers
    are the same with it as without. It keeps what the last problem needed."""

    layout: Layout | None = None
    elimination: Elimination | None = None

    def compiled(self, problem: WidthProblem) -> Model:
        """The numeric form of a problem. Resources without a budget do not enter it."""
        if self.layout is None or not self.layout.serves(problem):
            self.layout, self.elimination = Layout.of(problem), None
        return self.layout.model(problem)

    def steps(self, model: Model) -> Elimination:
        """The elimination of the model that was compiled last."""
        if self.elimination is None:
            self.elimination = Elimination(model)
        return self.elimination


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The part of a model that values and budgets have no part in.

    Attributes:
        like: the problem that it was made of.
        groups, branches: variable of each, by its name; groups come first, then branches.
        widths: of each variable, the widths at its options (0 and 1 for a branch).
        sums: as `Model.sums`.
        tables: variables -> (R, K_a, K_b, ...) the costs over them, in the unit of the resource.
        full: for each cost that counts, the groups and the branch that it belongs to, its resource, and what it is at
            full width.
    """

    like: WidthProblem
    groups: Mapping[str, int]
    branches: Mapping[str, int]
    widths: tuple[Ints, ...]
    sums: tuple[Sum, ...]
    tables: Mapping[tuple[int, ...], Floats]
    full: tuple[tuple[tuple[int, ...], str, float], ...]

    @classmethod
    def of(cls, problem: WidthProblem) -> Layout:
        """The layout of a problem."""
        return _Builder(problem).layout()

    def serves(self, problem: WidthProblem) -> bool:
        """Whether another problem has the same one."""
        mine = self.like
        return (
            list(problem.budgets) == list(mine.budgets)
            and len(problem.costs) == len(mine.costs)
            and all(a is b for a, b in zip(problem.costs, mine.costs, strict=True))
            and list(problem.groups) == list(mine.groups)
            and all(_same(g.widths, mine.groups[n].widths) for n, g in problem.groups.items())
            and [(b.name, b.groups, b.costs, list(b.adds)) for b in problem.branches]
            == [(b.name, b.groups, b.costs, list(b.adds)) for b in mine.branches]
        )

    def model(self, problem: WidthProblem) -> Model:
        """The model of a problem that has this layout."""
        budgets = np.array(list(problem.budgets.values()))
        scale = np.array([_unit(budget) for budget in problem.budgets.values()])
        values, least, span = self._values(problem)
        factors = []
        for scope in dict.fromkeys((*self.tables, *values)):
            shape = tuple(len(self.widths[v]) for v in scope)
            cost = self.tables[scope] if scope in self.tables else np.zeros((len(scale), *shape))
            value = values[scope] if scope in values else np.zeros(shape)
            factors.append(Factor(scope, value, cost / scale.reshape(-1, *[1] * value.ndim)))
        sizes = tuple(len(w) for w in self.widths)
        options = tuple(np.arange(size) for size in sizes)
        return Model(sizes, options, tuple(factors), self.sums, budgets / scale, scale, least, span)

    def _values(self, problem: WidthProblem) -> tuple[dict[tuple[int, ...], Floats], float, float]:
        """Variables -> what groups and branches are worth; and `Model.least` and `Model.span`."""
        owner = {group: b.name for b in problem.branches for group in b.groups}
        ties = self._ties(problem)
        rows: list[tuple[tuple[int, ...], Floats, Floats]] = []
        for name, group in problem.groups.items():
            part = group.widths / group.widths[-1]
            tie = ties[self.groups[name]] * part / (part + 0.1)
            if name in owner:
                scope = (self.groups[name], self.branches[owner[name]])
                rows.append((scope, _or_nothing(group.value), _or_nothing(tie)))
            else:
                rows.append(((self.groups[name],), group.value, tie))
        for b in problem.branches:
            tie = np.array([0.0, ties[self.branches[b.name]]])
            rows.append(((self.branches[b.name],), np.array([0.0, b.value]), tie))
            for name, added in b.adds.items():
                value, scope = _or_nothing(np.asarray(added)), (self.groups[name], self.branches[b.name])
                rows.append((scope, value, np.zeros_like(value)))
        lowest = [value.min() for _, value, _ in rows]
        least = float(sum(lowest))
        span = float(sum(value.max() - low for (_, value, _), low in zip(rows, lowest, strict=True)))
        unit, weight = (1 / span, TIE) if span > 0 else (0.0, 1.0)
        values: dict[tuple[int, ...], Floats] = {}
        for (variables, value, tie), low in zip(rows, lowest, strict=True):
            worth = (value - low) * unit + weight * tie
            values[variables] = values[variables] + worth if variables in values else worth
        return values, least, span

    def _ties(self, problem: WidthProblem) -> Floats:
        """What the width of each group, and each branch, counts where values tie, 1 in all: its share of the cost at
        full width. It rises with the width w as w / (w + 0.1), which is more concave than a logarithm: costs are
        products of two widths, and narrow layers between wide ones would be worth no less. So widths that nothing else
        decides come out near uniform."""
        shares = [0.0] * (len(self.groups) + len(self.branches))
        units = {resource: _unit(budget) for resource, budget in problem.budgets.items()}
        for parts, resource, cost in self.full:
            for v in parts:
                shares[v] += cost / units[resource]
        # What costs nothing is kept, too, given the choice.
        share = np.array(shares)
        share = share + max(share.sum(), 1e-300) / (100 * len(share))
        return np.asarray(share / share.sum())


class _Builder:
    """Collects variables, sums and tables while it walks the costs once."""

    def __init__(self, problem: WidthProblem) -> None:
        self.problem = problem
        self.number = {name: i for i, name in enumerate(problem.groups)}
        self.widths: list[Ints] = [group.widths for group in problem.groups.values()]
        self.branch = {b.name: len(self.widths) + i for i, b in enumerate(problem.branches)}
        self.widths += [np.arange(2)] * len(problem.branches)
        self.resources = list(problem.budgets)
        self.sums: list[Sum] = []
        self.sum_of: dict[frozenset[tuple[int, int]], int] = {}
        self.tables: dict[tuple[int, ...], Floats] = {}
        self.full: list[tuple[tuple[int, ...], str, float]] = []

    def layout(self) -> Layout:
        problem = self.problem
        self._make_sums()
        home = problem.branch_of_cost()
        for index, cost in enumerate(problem.costs):
            if cost.resource in problem.budgets:
                self._add_cost(cost, self.branch.get(home.get(index, "")))
        widths, sums, full = tuple(self.widths), tuple(self.sums), tuple(self.full)
        return Layout(problem, self.number, self.branch, widths, sums, self.tables, full)

    def _add_cost(self, cost: CostTable, branch: int | None) -> None:
        """Add one layer's table, laid out over the variables of its output and input width."""
        out, out_widths = self._coordinate(cost.output, cost.out_offset, cost.out_widths)
        into, in_widths = self._coordinate(cost.inputs, cost.in_offset, cost.in_widths)
        table = cost.at(out_widths, in_widths)
        parts = {self.number[term.group] for term in (*cost.inputs, *cost.output)}
        parts |= set() if branch is None else {branch}
        self.full.append((tuple(parts), cost.resource, abs(float(table[-1, -1]))))
        if out is None:
            table, scope = table[0], [into]
        elif into is None:
            table, scope = table[:, 0], [out]
        elif into == out:
            table, scope = np.diagonal(table), [out]
        else:
            scope = [out, into]
        if scope == [None]:
            table, scope = table[0], []
        if branch is not None:
            table, scope = np.stack([np.zeros_like(table), table], axis=-1), [*scope, branch]
        known = [v for v in scope if v is not None]
        if not known:
            known, table = [0], np.full(len(self.widths[0]), float(table))
        order, variables = np.argsort(known), tuple(sorted(known))
        if variables not in self.tables:
            self.tables[variables] = np.zeros((len(self.resources), *(len(self.widths[v]) for v in variables)))
        self.tables[variables][self.resources.index(cost.resource)] += np.transpose(table, order)

    def _coordinate(self, terms: tuple[Term, ...], offset: int, grid: Ints) -> tuple[int | None, Ints]:
        """The variable that decides a layer's width, and the width at each of its options."""
        parts = self._parts(terms)
        if not parts:
            return None, grid if len(grid) == 1 else np.array([offset])
        if len(parts) == 1:
            ((variable, scale),) = parts
            return variable, offset + scale * self.widths[variable]
        variable = self.sum_of[parts]
        return variable, offset + self.widths[variable]

    def _parts(self, terms: tuple[Term, ...]) -> frozenset[tuple[int, int]]:
        scales: dict[int, int] = {}
        for term in terms:
            variable = self.number[term.group]
            scales[variable] = scales.get(variable, 0) + int(term.scale)
        return frozenset(scales.items())

    def _make_sums(self) -> None:
        """Make a variable of every sum that occurs, from the largest sum made before that it contains."""
        wanted: dict[frozenset[tuple[int, int]], list[tuple[int, int]]] = {}
        for cost in self.problem.costs:
            for terms in (cost.inputs, cost.output):
                parts = self._parts(terms)
                if len(parts) > 1 and cost.resource in self.problem.budgets:
                    order = list(dict.fromkeys(self.number[term.group] for term in terms))
                    wanted.setdefault(parts, [(v, dict(parts)[v]) for v in order])
        for parts in sorted(wanted, key=len):
            inside = max((made for made in self.sum_of if made <= parts), key=len, default=frozenset())
            rest = [part for part in wanted[parts] if part not in inside]
            if not inside:
                first = rest.pop(0)
                inside = frozenset([first])
            for part in rest:
                grown = inside | {part}
                if grown not in self.sum_of:
                    self.sum_of[grown] = self._make_sum(inside, part)
                inside = grown

    def _make_sum(self, inside: frozenset[tuple[int, int]], part: tuple[int, int]) -> int:
        left, left_widths = self._addend(inside)
        right, right_widths = self._addend(frozenset([part]))
        widths, index = np.unique(left_widths[:, None] + right_widths, return_inverse=True)
        self.widths.append(widths)
        total = len(self.widths) - 1
        self.sums.append(Sum(left, right, total, index.reshape(len(left_widths), len(right_widths))))
        return total

    def _addend(self, parts: frozenset[tuple[int, int]]) -> tuple[int, Ints]:
        if len(parts) == 1:
            ((variable, scale),) = parts
            return variable, scale * self.widths[variable]
        return self.sum_of[parts], self.widths[self.sum_of[parts]]


def _same(a: Ints, b: Ints) -> bool:
    return a is b or np.array_equal(a, b)


def _or_nothing(value: Floats) -> Floats:
    """(K, 2) 0 for a dropped branch, (K,) values for a kept one."""
    return np.stack([np.zeros_like(value), value], axis=-1)
