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

from collections.abc import Sequence

import numpy as np

from .buckets import Step, make_steps
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
"""Up to so many entries (24 MB) the tables of the last maximum are kept: its max-marginals begin with them."""


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
        self._offsets = np.cumsum([0, *(f.value.size for f in model.factors)]).tolist()
        self._shapes = [f.value.shape for f in model.factors]
        self._last: tuple[Floats, list[Floats]] | None = None

    def maximise(self, flat: Floats) -> tuple[float, Ints, Ints]:
        """Maximum of the sum of the factors' tables.

        Args:
            flat: (N,) the tables one after another, as `Model.flat_value`.

        Returns:
            The bound, (V,) the maximiser's options, and (F,) the entry of `flat` used of each factor. With
            `exact` false, copies of a variable may differ: the entries then attain the bound, the options
            do not.
        """
        results = self._forward(flat)
        self._last = (flat, results) if self.work <= REMEMBERED else None
        state = np.zeros(len(self.model.sizes), np.int64)
        entries = np.zeros(len(self.model.factors), np.int64)
        chosen: list[tuple[int, ...]] = [()] * len(self.steps)
        for i in range(len(self.steps) - 1, -1, -1):
            step = self.steps[i]
            outer = () if step.consumer is None else tuple(chosen[step.consumer][a] for a in step.place)
            chosen[i] = here = self._choose(step, outer, flat, results)
            state[step.variable] = here[0]
            for operand in step.operands:
                if operand.factor is not None:
                    at = 0
                    for a, size in zip(operand.pick, self._shapes[operand.factor], strict=True):
                        at = at * size + here[a]
                    entries[operand.factor] = self._offsets[operand.factor] + at
        return self._bound(results), state, entries

    def max_marginals(self, flat: Floats) -> list[Floats]:
        """For each variable, (K,) the maximum (or a bound on it) with that variable held at each option."""
        last, self._last = self._last, None
        again = last is not None and np.array_equal(last[0], flat)
        results = last[1] if last is not None and again else self._forward(flat)
        bound = self._bound(results)
        marginals = [np.full(size, np.inf) for size in self.model.sizes]
        downward: list[Floats] = [np.zeros(0)] * len(self.steps)
        for i in range(len(self.steps) - 1, -1, -1):
            step = self.steps[i]
            rest = downward[i] if step.consumer is not None else np.asarray(bound - results[i].item())
            belief = self._combine(step, flat, results) + self._undo_sum(step, rest)
            downward[i] = results[i] = np.zeros(0)
            at_most = belief.max(axis=tuple(range(1, belief.ndim)))
            marginals[step.variable] = np.minimum(marginals[step.variable], at_most)
            for operand in step.operands:
                if operand.step is not None:
                    message = results[operand.step]
                    gone = tuple(a for a in range(belief.ndim) if a not in operand.pick)
                    whole = np.transpose(belief.max(axis=gone), np.argsort(np.argsort(operand.pick)))
                    with np.errstate(invalid="ignore"):
                        downward[operand.step] = np.where(np.isneginf(message), -np.inf, whole - message)
        return marginals

    def _bound(self, results: Sequence[Floats]) -> float:
        return float(sum(results[i].item() for i, step in enumerate(self.steps) if step.consumer is None))

    def _forward(self, flat: Floats) -> list[Floats]:
        results: list[Floats] = []
        for step in self.steps:
            table = self._combine(step, flat, results)
            if step.by_sum is None:
                results.append(table.max(axis=0))
            else:
                results.append(table[step.by_sum.gather] + step.by_sum.penalty)
        return results

    def _tables(self, step: Step, flat: Floats, results: Sequence[Floats]) -> list[Floats]:
        tables = []
        for operand in step.operands:
            if operand.step is not None:
                tables.append(results[operand.step])
            elif operand.factor is not None:
                start, stop = self._offsets[operand.factor : operand.factor + 2]
                tables.append(flat[start:stop].reshape(self._shapes[operand.factor]))
        return tables

    def _combine(self, step: Step, flat: Floats, results: Sequence[Floats]) -> Floats:
        tables = self._tables(step, flat, results)
        spread = [t.transpose(s.order)[s.spread] for t, s in zip(tables, step.operands, strict=True)]
        if not spread:
            return np.zeros(step.shape)
        # Small operands first: their sum stays small until the last addition makes the full table.
        spread.sort(key=lambda t: t.size)
        total = spread[0]
        for table in spread[1:]:
            total = total + table
        return total if total.shape == step.shape else np.broadcast_to(total, step.shape)

    def _choose(self, step: Step, outer: tuple[int, ...], flat: Floats, results: Sequence[Floats]) -> tuple[int, ...]:
        """Options of the step's scope, given those of its result."""
        known = dict(zip(step.result, outer, strict=True))
        if step.by_sum is not None:
            first = int(step.by_sum.option[outer[0], outer[1]])
        else:
            gain = np.zeros(step.shape[0])
            for table, operand in zip(self._tables(step, flat, results), step.operands, strict=True):
                index = tuple(slice(None) if v == step.variable else known[v] for v in operand.scope)
                gain = gain + table[index]
            first = int(np.argmax(gain))
        return (first, *(known[v] for v in step.scope[1:]))

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
