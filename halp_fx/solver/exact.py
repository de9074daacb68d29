"""The budgeted problem as a mixed-integer linear program, solved by HiGHS through `scipy.optimize.milp`.

One binary an option (exactly one per variable). A table over several variables gets a transport variable an
entry, whose marginals must equal the variables' binaries: for a pairwise table that is the standard
linearisation of the product of two one-hot vectors, and its relaxation is the local polytope (Koster et al.
1998). A sum `t = l + r` gets the same over the pairs (l, r), with the pairs of equal sum marginalised onto
t. Only groups and branches need be integral, the rest follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy  # Its parts are imported when they are first used: `scipy.optimize` takes a quarter of a second

from .local import Incumbent
from .model import Model, judged_by
from .tables import Floats, Ints
from .work import COLUMN, NODE, SQUARE

MAX_COLUMNS = 400_000
"""Above this the root of the search tree alone takes minutes: do not start."""

MOST_NODES = 2**31 - 1
"""The largest limit that HiGHS takes."""

MAGNIFIED = 1e4
"""HiGHS stops at an absolute gap of 1e-6, which is more than ties are worth (`model.TIE`)."""


@dataclass(slots=True, eq=False)
class _Program:
    """Columns, equality rows (right-hand side 0 or 1) and budget rows under construction."""

    columns: int
    objective: list[Floats]
    budget: list[Floats]
    rows: list[tuple[Ints, Ints, Floats]]
    right: list[Floats]
    row_count: int = 0

    def add_columns(self, value: Floats, cost: Floats) -> Ints:
        """Append columns worth `value` (n,) at `cost` (R, n); returns their numbers."""
        new = np.arange(self.columns, self.columns + len(value))
        self.columns += len(value)
        self.objective.append(-value)
        self.budget.append(cost)
        return new

    def equal(self, columns: Ints, group: Ints, groups: int, other: Ints | None) -> None:
        """For each of `groups` rows: the sum of its `columns` is the column `other[row]`, or 1 if None."""
        rows, entries = [group + self.row_count], [np.ones(len(columns))]
        where = [columns]
        if other is not None:
            rows.append(np.arange(groups) + self.row_count)
            where.append(other)
            entries.append(-np.ones(groups))
        self.rows.append((np.concatenate(rows), np.concatenate(where), np.concatenate(entries)))
        self.right.append(np.full(groups, 1.0 if other is None else 0.0))
        self.row_count += groups


def columns(model: Model) -> int:
    """About how many columns a model's program has."""
    return sum(f.value.size for f in model.factors) + sum(s.index.size for s in model.sums)


def solve_exact(
    model: Model, free: int, incumbent: Incumbent, gap: float, upper: float = np.inf, most: float = np.inf
) -> tuple[float, bool]:
    """Search a (possibly restricted) model to the end, or until the incumbent's work is spent; offers what it finds.

    Args:
        model: a model whose `options` refer to `incumbent.model`.
        free: how many variables are groups or branches.
        gap: relative gap (see `relative_gap`) at which HiGHS may stop.
        upper: bound known before.
        most: nodes of the search tree, if fewer than the work that is left allows.

    Returns:
        An upper bound of the restricted model's optimum or of the incumbent's value, whichever is greater, -inf if
        nothing is feasible; and whether a limit ended the search.
    """
    if columns(model) > MAX_COLUMNS:
        return upper, True
    program, first = _formulate(model)
    constraints, objective = _constraints(program, model, incumbent)
    integrality = np.zeros(program.columns)
    integrality[: first[free]] = 1
    # HiGHS takes its gap relative to the value.
    options = {"mip_rel_gap": gap * judged_by(incumbent.value, upper) / max(upper, 1e-300)}
    work, node = incumbent.work, NODE + (COLUMN + SQUARE * program.columns) * program.columns
    while True:
        nodes = int(min(most, work.left / node, MOST_NODES))
        if nodes < 1:
            return upper, True
        result = scipy.optimize.milp(
            MAGNIFIED * objective,
            integrality=integrality,
            bounds=scipy.optimize.Bounds(0, 1),
            constraints=constraints,
            options={"node_limit": nodes, **options},
        )
        used = max(int(result.mip_node_count or 0), 1)
        most -= used
        work.done += node * used
        if result.status == 2:
            return incumbent.value, False
        if result.mip_dual_bound is not None and np.isfinite(result.mip_dual_bound):
            upper = min(upper, -float(result.mip_dual_bound) / MAGNIFIED)
        if result.x is None:
            return max(upper, incumbent.value), True
        chosen = [int(np.argmax(result.x[a:b])) for a, b in pairwise(first)]
        state = np.array([options[k] for options, k in zip(model.options, chosen, strict=True)])
        _, cost = incumbent.offer(incumbent.model.complete(state[:, None]))
        if incumbent.model.feasible(cost)[0]:
            return max(upper, incumbent.value), result.status != 0
        # HiGHS allows 1e-6 over the budget and we do not: forbid this very choice and go on.
        binaries = np.array([first[v] + chosen[v] for v in range(free)])
        forbid = scipy.sparse.coo_array((np.ones(free), (np.zeros(free, int), binaries)), shape=(1, program.columns))
        constraints.append(scipy.optimize.LinearConstraint(scipy.sparse.csr_array(forbid), -np.inf, free - 1))
        upper = max(upper, incumbent.value)


def _constraints(
    program: _Program, model: Model, incumbent: Incumbent
) -> tuple[list[scipy.optimize.LinearConstraint], Floats]:
    """What a choice has to hold: one option each, the budgets, and to be no worse than the incumbent; and the
    values of the columns, negative, whose sum is minimised."""
    rows = [np.concatenate(part) for part in zip(*program.rows, strict=True)]
    equalities = scipy.sparse.csr_array(
        scipy.sparse.coo_array((rows[2], (rows[0], rows[1])), shape=(program.row_count, program.columns))
    )
    right = np.concatenate(program.right)
    objective = np.concatenate(program.objective)
    constraints = [scipy.optimize.LinearConstraint(equalities, right, right)]
    if len(model.limit):
        budget = scipy.sparse.csr_array(np.concatenate(program.budget, axis=1))
        constraints.append(scipy.optimize.LinearConstraint(budget, -np.inf, model.limit))
    if np.isfinite(incumbent.value):
        # Prunes what cannot beat the incumbent; slack because HiGHS treats rows with a tolerance of its own.
        slack = 1e-6 * max(1.0, abs(incumbent.value))
        constraints.append(
            scipy.optimize.LinearConstraint(scipy.sparse.csr_array(objective[None]), -np.inf, slack - incumbent.value)
        )
    return constraints, objective


def _formulate(model: Model) -> tuple[_Program, Ints]:
    """The program, and (V + 1,) the first column of each variable's options."""
    resources = len(model.limit)
    first = np.cumsum([0, *model.sizes])
    program = _Program(0, [], [], [], [])
    unary_value = np.zeros(first[-1])
    unary_cost = np.zeros((resources, first[-1]))
    several = []
    for factor in model.factors:
        if len(factor.scope) == 1:
            (v,) = factor.scope
            unary_value[first[v] : first[v + 1]] += factor.value
            unary_cost[:, first[v] : first[v + 1]] += factor.cost
        else:
            several.append(factor)
    program.add_columns(unary_value, unary_cost)
    variable = np.repeat(np.arange(len(model.sizes)), model.sizes)
    program.equal(np.arange(first[-1]), variable, len(model.sizes), None)
    for factor in several:
        new = program.add_columns(factor.value.ravel(), factor.cost.reshape(resources, factor.value.size))
        for v, index in zip(factor.scope, np.indices(factor.value.shape), strict=True):
            program.equal(new, index.ravel(), model.sizes[v], np.arange(first[v], first[v + 1]))
    for s in model.sums:
        left, right = np.nonzero(s.index >= 0)
        new = program.add_columns(np.zeros(len(left)), np.zeros((resources, len(left))))
        for u, option in ((s.left, left), (s.right, right), (s.total, s.index[left, right])):
            program.equal(new, option, model.sizes[u], np.arange(first[u], first[u + 1]))
    return program, first
