"""Exact maximisation of a sum of small tables by eliminating one variable after another (bucket elimination).

`Elimination(model)` finds its steps once (see `buckets`). `maximise(tables)` then takes them for one set of tables,
which is what a Lagrangian method asks for again and again; it costs a few numpy calls a variable.

* Eliminating v adds the tables that mention v over the union of their variables and maximises over v: the
  min-plus product when there are two of them. Source: Dechter, "Bucket elimination", Artificial
  Intelligence 113 (1999).
* A variable in one sum `total = left + right` is a function of the other two. It is eliminated by indexing,
  without ever making a table over all three; this is what makes nested concats cheap.
* Where an intermediate table would exceed `cap` entries, the tables are split into buckets that are maximised
  separately, each with its own copy of v, and sums that no longer fit are ignored (mini-buckets: Dechter
  and Rish, J. ACM 50(2), 2003). Both only relax, so the result is an upper bound; `exact` says whether this
  happened.

Every intermediate table has one consumer, so the steps form a forest. The maximiser is read off from its
roots, and `max_marginals` sends the complement of each step's table back down (max-product belief
propagation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .buckets import Operand, Step, make_steps
from .model import Model
from .tables import Floats, Ints
from .work import ENTRY, STEP

DEFAULT_CAP = 4_000_000
"""Entries of the largest intermediate table: 32 MB."""

MAX_WORK = 250_000_000
"""Entries of all tables of one run, about a second."""

RELAXED_CAP = 100_000
"""The cap where one of the two above would be exceeded: a bound of relaxed tables is not worth a second."""


REMEMBERED = 3_000_000
"""Up to so many entries (24 MB) the tables of the last maximum are kept: its maximiser and its max-marginals are read
off them."""


@dataclass(frozen=True, slots=True, eq=False)
class _Addend:
    """One table that a step adds, laid out to broadcast over the step's scope.

    Attributes:
        operand: where it comes from.
        factor: of a factor the view of its table, laid out once; None for an earlier step's result.
        plain: a result has the axes of the step's scope as it is.
    """

    operand: Operand
    factor: Floats | None
    plain: bool

    def of(self, results: Sequence[Floats]) -> Floats:
        if self.factor is not None:
            return self.factor
        operand = self.operand
        assert operand.step is not None
        table = results[operand.step]
        return table if self.plain else table.transpose(operand.order)[operand.spread]


class Elimination:
    """Maximises sums of a model's factors. See the module's docstring.

    Attributes:
        exact: whether `maximise` gives the maximum (else an upper bound).
        work: entries of all tables made in one run.
        effort: of one run, in the unit of `Work`.
    """

    def __init__(self, model: Model, cap: int = DEFAULT_CAP) -> None:
        made = make_steps(model, cap)
        if cap > RELAXED_CAP and (not made.exact or made.work > MAX_WORK):
            made = make_steps(model, RELAXED_CAP)
        self.model = model
        self.exact = made.exact
        self.work = made.work
        self.steps = made.steps
        self.effort = STEP * len(made.steps) + ENTRY * made.work
        self._shapes = [f.value.shape for f in model.factors]
        self._offsets = np.cumsum([0, *(f.value.size for f in model.factors)]).tolist()
        # What is maximised is copied here, so that the factors' tables are laid out once.
        self._flat = np.zeros(self._offsets[-1])
        self._adds = [self._addends(step) for step in self.steps]
        # Memory that is asked for anew takes as long to come as the additions.
        self._kept = self.work <= REMEMBERED
        self._places = [np.empty(step.shape if self._kept else 0) for step in self.steps]
        # Of the last maximum, or empty: the table of each step before it is maximised, and after.
        self._tables: list[Floats] = []
        self._results: list[Floats] = []

    def maximise(self, flat: Floats) -> tuple[float, Ints, Ints]:
        """Maximum of the sum of the factors' tables.

        Args:
            flat: (N,) the tables one after another, as `Model.flat_value`.

        Returns:
            The bound, (V,) the maximiser's options, and (F,) the entry of `flat` used of each factor. With
            `exact` false, copies of a variable may differ: the entries then attain the bound, the options
            do not.
        """
        self._forward(flat)
        state = np.zeros(len(self.model.sizes), np.int64)
        chosen: list[tuple[int, ...]] = [()] * len(self.steps)
        for i in range(len(self.steps) - 1, -1, -1):
            step = self.steps[i]
            outer = () if step.consumer is None else tuple([chosen[step.consumer][a] for a in step.place])
            chosen[i] = here = self._choose(i, outer)
            state[step.variable] = here[0]
        bound = self._bound()
        if not self._kept:
            self._results = []
        return bound, state, self.model.entries(state[:, None])[:, 0] if self.exact else self._entries(chosen)

    def max_marginals(self, flat: Floats) -> list[Floats]:
        """For each variable, (K,) the maximum (or a bound on it) with that variable held at each option."""
        if not (self._results and np.array_equal(self._flat, flat)):
            self._forward(flat)
        results, tables = self._results, self._tables
        self._results, self._tables = [], []
        bound = self._bound(results)
        marginals = [np.full(size, np.inf) for size in self.model.sizes]
        downward: list[Floats] = [np.zeros(0)] * len(self.steps)
        for i in range(len(self.steps) - 1, -1, -1):
            step = self.steps[i]
            rest = downward[i] if step.consumer is not None else np.asarray(bound - results[i].item())
            table = tables[i] if tables else self._combine(i, results)
            belief = table + self._undo_sum(step, rest)
            downward[i] = results[i] = np.zeros(0)
            at_most = belief.max(axis=tuple(range(1, belief.ndim)))
            marginals[step.variable] = np.minimum(marginals[step.variable], at_most)
            for operand in step.operands:
                if operand.step is not None:
                    message = results[operand.step]
                    gone = tuple(a for a in range(belief.ndim) if a not in operand.pick)
                    whole = belief.max(axis=gone).transpose(np.argsort(operand.order))
                    with np.errstate(invalid="ignore"):
                        downward[operand.step] = np.where(np.isneginf(message), -np.inf, whole - message)
        return marginals

    def _addends(self, step: Step) -> list[_Addend]:
        """What a step adds, small tables first: their sum stays small until the last addition makes the full table."""
        found, sizes = [], []
        for operand in step.operands:
            view = None
            if operand.factor is not None:
                start, stop = self._offsets[operand.factor : operand.factor + 2]
                view = self._flat[start:stop].reshape(self._shapes[operand.factor])
                view = view.transpose(operand.order)[operand.spread]
            found.append(_Addend(operand, view, operand.pick == tuple(range(len(step.scope)))))
            sizes.append(math.prod(self.model.sizes[v] for v in operand.scope))
        return [found[i] for i in sorted(range(len(found)), key=sizes.__getitem__)]

    def _bound(self, results: Sequence[Floats] | None = None) -> float:
        results = self._results if results is None else results
        return float(sum(results[i].item() for i, step in enumerate(self.steps) if step.consumer is None))

    def _forward(self, flat: Floats) -> None:
        self._flat[:] = flat
        tables: list[Floats] = []
        results: list[Floats] = []
        self._tables, self._results = tables, results
        for i, step in enumerate(self.steps):
            table = self._combine(i, results)
            if step.by_sum is None:
                results.append(np.maximum.reduce(table, axis=0))
            else:
                results.append(table[step.by_sum.gather] + step.by_sum.penalty)
            if self._kept:
                tables.append(table)

    def _combine(self, number: int, results: Sequence[Floats]) -> Floats:
        """The table of a step over its scope."""
        adds = self._adds[number]
        if not adds:
            return np.zeros(self.steps[number].shape)
        total = adds[0].of(results)
        for addend in adds[1:-1]:
            total = total + addend.of(results)
        if len(adds) == 1:
            return total
        return np.add(total, adds[-1].of(results), out=self._places[number] if self._kept else None)

    def _choose(self, number: int, outer: tuple[int, ...]) -> tuple[int, ...]:
        """Options of a step's scope, given those of its result."""
        step = self.steps[number]
        if step.by_sum is not None:
            known = dict(zip(step.result, outer, strict=True))
            return (int(step.by_sum.option[outer[0], outer[1]]), *[known[v] for v in step.scope[1:]])
        at: tuple[Any, ...] = (slice(None), *outer)
        if self._tables:
            column = self._tables[number][at]
        else:
            column = np.zeros(step.shape[0])
            for addend in self._adds[number]:
                table = addend.of(self._results)
                column = column + table[tuple([k if n > 1 else 0 for k, n in zip(at, table.shape, strict=True)])]
        return (int(column.argmax()), *outer)

    def _entries(self, chosen: Sequence[tuple[int, ...]]) -> Ints:
        """(F,) the entry of each factor that the step with it has used."""
        entries = np.zeros(len(self._shapes), np.int64)
        for step, here in zip(self.steps, chosen, strict=True):
            for operand in step.operands:
                if operand.factor is not None:
                    at = 0
                    for a, size in zip(operand.pick, self._shapes[operand.factor], strict=True):
                        at = at * size + here[a]
                    entries[operand.factor] = self._offsets[operand.factor] + at
        return entries

    @staticmethod
    def _undo_sum(step: Step, rest: Floats) -> Floats:
        """Lay a table over a step's result out over the step's own scope: best where several lead there."""
        by_sum = step.by_sum
        if by_sum is None:
            return rest
        if by_sum.shared == (1,):
            rest = np.swapaxes(rest, 0, 1)
        inner = np.arange(rest.shape[0])
        penalty = by_sum.other_penalty.reshape(*by_sum.other_penalty.shape, *[1] * (rest.ndim - 2))
        table = rest[inner, by_sum.other] + penalty
        variables = [step.variable, step.result[1 if by_sum.shared == (1,) else 0], *step.result[2:]]
        if not by_sum.shared:
            table = table.max(axis=1)
            del variables[1]
        elif len(by_sum.shared) == 2:
            wide = np.full((*table.shape[:2], rest.shape[1], *table.shape[2:]), -np.inf)
            wide[np.arange(len(table))[:, None], inner, by_sum.other] = table
            table = wide
            variables.insert(2, step.result[1])
        return table.transpose([variables.index(v) for v in step.scope])
