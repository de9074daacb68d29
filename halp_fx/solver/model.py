"""A width problem as numbers: discrete variables, tables over few of them, and sums. `layout` builds it.

Every group is a variable (an index into its widths), every removable branch is one (0 dropped, 1 kept), and
every distinct sum of several groups that some layer has as its width is one (an index into the sums that
can occur). Sums are built two at a time and share their parts, so that the nested concats of a DenseNet
become one chain: `s3 = s2 + g3`. With that, every layer's table is over at most three variables, however
many groups feed it.

Costs that touch the same variables are added into one factor: batch norm, activation and add cost no time
later.

Values are counted from the least that any choice has, in units of how far choices can differ: what every choice has
alike decides nothing, and a gap relative to it says nothing. Where choices are worth the same, a wider one is worth
a little more (`TIE`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .tables import Floats, Ints

TIE = 1e-7
"""What all ties together are worth, as a share of what choices can differ by; where nothing differs, all there is. A
tenth of the gap called optimal, and a single one of 10^4 options still is far above rounding."""


MISSED = 10.0
"""What the budgets do not buy counts so many times as much as what they buy, when a gap is judged."""


def relative_gap(value: float, upper: float) -> float:
    """How far a value may be from the best, both in a `Model`'s units (0: the least there is, 1: about the most):
    relative to what the budgets buy, or to `MISSED` times what they do not, whichever is less. A budget that buys
    nearly everything is judged by the little that it leaves."""
    return (upper - value) / judged_by(value, upper) if upper > value else 0.0


def judged_by(value: float, upper: float) -> float:
    """What a gap is relative to: see `relative_gap`."""
    if not (np.isfinite(value) and np.isfinite(upper)):
        return 1.0
    return max(min(upper, MISSED * (1.0 + TIE - value)), 1e-300)


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """Part of the value and of the costs, as tables over the variables in `scope` (ascending).

    Attributes:
        value: (K_a, K_b, ...) float64.
        cost: (R, K_a, K_b, ...) as fractions of the budgets.
    """

    scope: tuple[int, ...]
    value: Floats
    cost: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """`total = left + right`: `index[i, j]` is total's option for left's i and right's j, -1 where it has none."""

    left: int
    right: int
    total: int
    index: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Maximise the factors' value with each row of their cost at most `limit`.

    Attributes:
        sizes: number of options of each variable: groups first, then branches, then sums (parts before wholes).
        options: for each variable, the positions of its options in the unrestricted model.
        factors, sums: see `Factor`, `Sum`.
        limit: (R,) budgets in units of `scale`: 1 for a positive budget.
        scale: (R,) in the unit of the resource.
        least, span: a value v of the model is `least + span * v` of the problem, up to ties.
    """

    sizes: tuple[int, ...]
    options: tuple[Ints, ...]
    factors: tuple[Factor, ...]
    sums: tuple[Sum, ...]
    limit: Floats
    scale: Floats
    least: float = 0.0
    span: float = 1.0
    flat_value: Floats = field(init=False)
    flat_cost: Floats = field(init=False)
    _offset: Ints = field(init=False)
    _axis: Ints = field(init=False)
    _stride: Ints = field(init=False)

    def __post_init__(self) -> None:
        resources = len(self.limit)
        values = [np.zeros(0), *(f.value.ravel() for f in self.factors)]
        costs = [np.zeros((resources, 0)), *(f.cost.reshape(resources, f.value.size) for f in self.factors)]
        arity = max((len(f.scope) for f in self.factors), default=1)
        axis = np.zeros((len(self.factors), max(arity, 1)), np.int64)
        stride = np.zeros_like(axis)
        for row, factor in enumerate(self.factors):
            for column, variable in enumerate(factor.scope):
                axis[row, column] = variable
                stride[row, column] = math.prod(factor.value.shape[column + 1 :])
        sizes = [f.value.size for f in self.factors]
        object.__setattr__(self, "flat_value", np.concatenate(values))
        object.__setattr__(self, "flat_cost", np.concatenate(costs, axis=1))
        object.__setattr__(self, "_offset", np.cumsum([0, *sizes])[:-1].astype(np.int64))
        object.__setattr__(self, "_axis", axis)
        object.__setattr__(self, "_stride", stride)

    def entries(self, states: Ints) -> Ints:
        """(F, M) positions in `flat_value` of what each factor contributes under each column of (V, M) states."""
        where = np.repeat(self._offset[:, None], states.shape[1], axis=1)
        for column in range(self._axis.shape[1]):
            where += self._stride[:, column, None] * states[self._axis[:, column]]
        return where

    def entries_at(self, factors: Ints, states: Ints, columns: Ints) -> Ints:
        """(P,) such positions for P pairs of a factor and a column of (V, M) states."""
        where = self._offset[factors]
        for column in range(self._axis.shape[1]):
            where += self._stride[factors, column] * states[self._axis[factors, column], columns]
        return where

    def touched(self, free: int) -> list[Ints]:
        """For each of the first `free` variables, the factors that change with it, or with a sum that it is in."""
        inside: list[set[int]] = [{v} for v in range(len(self.sizes))]
        for s in self.sums:
            inside[s.total] = inside[s.left] | inside[s.right]
        found: list[set[int]] = [set() for _ in self.sizes]
        for row, factor in enumerate(self.factors):
            for v in set().union(*(inside[v] for v in factor.scope)):
                found[v].add(row)
        return [np.array(sorted(rows), np.int64) for rows in found[:free]]

    def complete(self, states: Ints) -> Ints:
        """Fill in the sums' rows of (V, M) states from the groups'. States whose sum has no option get -1 there."""
        for s in self.sums:
            left, right = states[s.left], states[s.right]
            states[s.total] = np.where((left < 0) | (right < 0), -1, s.index[left, right])
        return states

    def evaluate(self, states: Ints) -> tuple[Floats, Floats]:
        """(M,) values and (R, M) costs of complete (V, M) states; a state with an impossible sum costs infinity."""
        where = self.entries(np.maximum(states, 0) if self.sums else states)
        cost = self.flat_cost[:, where].sum(axis=1)
        if self.sums:  # Else nothing is impossible.
            cost[:, (states < 0).any(axis=0)] = np.inf
        return self.flat_value[where].sum(axis=0), cost

    def feasible(self, cost: Floats) -> npt.NDArray[np.bool_]:
        """(M,) whether the columns of (R, M) costs are within every limit, up to rounding."""
        slack = 1e-9 * np.maximum(1.0, np.abs(self.limit))
        return np.asarray((cost <= (self.limit + slack)[:, None]).all(axis=0))

    def keep(self, kept: Sequence[Ints]) -> Model:
        """The same model with only the given options (ascending positions) of each variable."""
        factors = []
        for f in self.factors:
            value, cost = f.value, f.cost
            for axis, v in enumerate(f.scope):
                if len(kept[v]) < self.sizes[v]:
                    value, cost = value.take(kept[v], axis), cost.take(kept[v], 1 + axis)
            factors.append(Factor(f.scope, value, cost))
        sums = []
        for s in self.sums:
            renumber = np.full(self.sizes[s.total] + 1, -1, np.int64)
            renumber[kept[s.total]] = np.arange(len(kept[s.total]))
            index = renumber[s.index[np.ix_(kept[s.left], kept[s.right])]]
            sums.append(Sum(s.left, s.right, s.total, index))
        options = tuple(old[new] for old, new in zip(self.options, kept, strict=True))
        sizes = tuple(len(new) for new in kept)
        return Model(sizes, options, tuple(factors), tuple(sums), self.limit, self.scale, self.least, self.span)
