"""Exact maximisation of a sum of small tables by eliminating one variable after another (bucket elimination).

`Elimination(model)` plans once: an order of small intermediate tables (greedy: the variable whose
elimination makes the smallest one goes first) and every broadcast and gather it takes. `maximise(tables)`
then runs the plan for one set of tables, which is what a Lagrangian method asks for again and again; it
costs a few numpy calls a variable.

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
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .model import Floats, Ints, Model, Sum

DEFAULT_CAP = 4_000_000
"""Entries of the largest intermediate table: 32 MB."""


@dataclass(slots=True, eq=False)
class _Source:
    """One table that a step adds: a factor (step is None) or an earlier step's result."""

    scope: tuple[int, ...]
    factor: int | None = None
    step: int | None = None
    order: tuple[int, ...] = ()
    spread: tuple[slice | None, ...] = ()
    pick: tuple[int, ...] = ()
    """Axes of the step's scope that this source has, in the source's own order."""


@dataclass(slots=True, eq=False)
class _Step:
    """Add `sources` over `scope` (the eliminated variable first), then maximise over it or index by a sum."""

    variable: int
    scope: tuple[int, ...]
    shape: tuple[int, ...]
    sources: list[_Source]
    result: tuple[int, ...] = ()
    by_sum: _BySum | None = None
    consumer: int | None = None
    place: tuple[int, ...] = ()
    """Axes of the consumer's scope that make up `result`."""


@dataclass(slots=True, eq=False)
class _BySum:
    """v as a function of two other variables: (K_a, K_b) option, clipped, and 0 or -inf where there is none."""

    option: Ints
    penalty: Floats
    gather: tuple[npt.NDArray[np.int64] | slice, ...] = field(default_factory=tuple)


class Elimination:
    """A plan to maximise the sum of a model's factors. See the module's docstring.

    Attributes:
        exact: whether `maximise` gives the maximum (else an upper bound).
        work: entries of all tables made in one run.
    """

    def __init__(self, model: Model, cap: int = DEFAULT_CAP) -> None:
        self.model = model
        self.cap = cap
        self.exact = True
        self.work = 0
        self.steps: list[_Step] = []
        self._offsets = np.cumsum([0, *(f.value.size for f in model.factors)])
        self._plan()

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
        bound = float(sum(results[i].item() for i, step in enumerate(self.steps) if step.consumer is None))
        state = np.zeros(len(self.model.sizes), np.int64)
        entries = np.zeros(len(self.model.factors), np.int64)
        chosen: list[tuple[int, ...]] = [()] * len(self.steps)
        for i in range(len(self.steps) - 1, -1, -1):
            step = self.steps[i]
            outer = () if step.consumer is None else tuple(chosen[step.consumer][a] for a in step.place)
            chosen[i] = here = self._choose(step, outer, flat, results)
            state[step.variable] = here[0]
            for source in step.sources:
                if source.factor is not None:
                    index = tuple(here[a] for a in source.pick)
                    shape = self.model.factors[source.factor].value.shape
                    entries[source.factor] = self._offsets[source.factor] + np.ravel_multi_index(index, shape)
        return bound, state, entries

    def max_marginals(self, flat: Floats) -> list[Floats]:
        """For each variable, (K,) the maximum (or a bound on it) with that variable held at each option."""
        results = self._forward(flat)
        bound = sum(results[i].item() for i, step in enumerate(self.steps) if step.consumer is None)
        marginals = [np.full(size, np.inf) for size in self.model.sizes]
        downward: list[Floats] = [np.zeros(0)] * len(self.steps)
        for i in range(len(self.steps) - 1, -1, -1):
            step = self.steps[i]
            rest = bound - results[i].item() if step.consumer is None else downward[i]
            belief = self._combine(step, flat, results)
            if step.by_sum is None:
                belief = belief + rest
            else:
                belief = belief + self._scatter(step, np.asarray(rest))
            marginals[step.variable] = np.minimum(
                marginals[step.variable], belief.max(axis=tuple(range(1, belief.ndim)))
            )
            for source in step.sources:
                if source.step is not None:
                    axes = tuple(a for a in range(belief.ndim) if a not in source.pick)
                    message = results[source.step]
                    with np.errstate(invalid="ignore"):
                        back = (
                            np.transpose(belief.max(axis=axes), np.argsort(np.argsort(source.pick))) - message
                        )
                    downward[source.step] = np.where(np.isneginf(message), -np.inf, back)
        return marginals

    def _forward(self, flat: Floats) -> list[Floats]:
        results: list[Floats] = []
        for step in self.steps:
            table = self._combine(step, flat, results)
            if step.by_sum is None:
                results.append(table.max(axis=0))
            else:
                results.append(table[step.by_sum.gather] + step.by_sum.penalty)
        return results

    def _tables(self, step: _Step, flat: Floats, results: Sequence[Floats]) -> list[Floats]:
        tables = []
        for source in step.sources:
            if source.step is not None:
                tables.append(results[source.step])
            elif source.factor is not None:
                start, stop = self._offsets[source.factor : source.factor + 2]
                tables.append(flat[start:stop].reshape(self.model.factors[source.factor].value.shape))
        return tables

    def _combine(self, step: _Step, flat: Floats, results: Sequence[Floats]) -> Floats:
        tables = self._tables(step, flat, results)
        spread = [t.transpose(s.order)[s.spread] for t, s in zip(tables, step.sources, strict=True)]
        if not spread:
            return np.zeros(step.shape)
        # Small operands first: their sum stays small until the last addition makes the full table.
        spread.sort(key=lambda t: t.size)
        total = spread[0]
        for table in spread[1:]:
            total = total + table
        return np.broadcast_to(total, step.shape)

    def _choose(
        self, step: _Step, outer: tuple[int, ...], flat: Floats, results: Sequence[Floats]
    ) -> tuple[int, ...]:
        """Options of the step's scope, given those of its result."""
        known = dict(zip(step.result, outer, strict=True))
        if step.by_sum is not None:
            first = int(step.by_sum.option[outer[0], outer[1]])
        else:
            gain = np.zeros(step.shape[0])
            for table, source in zip(self._tables(step, flat, results), step.sources, strict=True):
                gain = (
                    gain + table[tuple(slice(None) if v == step.variable else known[v] for v in source.scope)]
                )
            first = int(np.argmax(gain))
        return (first, *(known[v] for v in step.scope[1:]))

    def _scatter(self, step: _Step, rest: Floats) -> Floats:
        """Undo a step's indexing: the best of `rest` at each entry of the step's own table, -inf where none leads."""
        assert step.by_sum is not None
        target = np.full(step.shape, -np.inf)
        gather = tuple(
            np.arange(size).reshape([-1 if a == axis else 1 for a in range(rest.ndim)])
            if isinstance(index, slice)
            else np.reshape(index, [*np.shape(index), *[1] * (rest.ndim - 2)])
            for index, axis, size in zip(step.by_sum.gather, self._gather_axes(step), step.shape, strict=True)
        )
        np.maximum.at(target, np.broadcast_arrays(*gather, rest)[:-1], rest + step.by_sum.penalty)
        return target

    @staticmethod
    def _gather_axes(step: _Step) -> list[int]:
        """Axis of the result for each axis of the step's scope (0 for those indexed through the sum)."""
        return [step.result.index(v) if v in step.result else 0 for v in step.scope]

    def _plan(self) -> None:
        sizes = self.model.sizes
        live: dict[int, list[_Source]] = {v: [] for v in range(len(sizes))}
        sums: dict[int, list[Sum]] = {v: [] for v in range(len(sizes))}
        for f, factor in enumerate(self.model.factors):
            for v in factor.scope:
                live[v].append(_Source(factor.scope, factor=f))
        # One object must stand under each of its variables, so that removing it once removes it everywhere.
        for v in range(len(sizes)):
            for source in live[v]:
                if source.factor is not None and source.scope[0] == v:
                    for other in source.scope[1:]:
                        live[other] = [source if s.factor == source.factor else s for s in live[other]]
        for s in self.model.sums:
            for v in (s.left, s.right, s.total):
                sums[v].append(s)
        costs = {v: self._cost(v, live, sums) for v in live}
        while live:
            v = min(costs, key=costs.__getitem__)
            touched = {u for s in live[v] for u in s.scope} | {
                u for s in sums[v] for u in (s.left, s.right, s.total)
            }
            self._eliminate(v, live, sums)
            del live[v], sums[v], costs[v]
            for u in touched:
                if u in live:
                    costs[u] = self._cost(u, live, sums)

    def _cost(
        self, v: int, live: dict[int, list[_Source]], sums: dict[int, list[Sum]]
    ) -> tuple[bool, int, int]:
        """Sort key of eliminating v next: exact ones first, then by size of the tables made."""
        scope = {u for s in live[v] for u in s.scope} | {v}
        size = math.prod(self.model.sizes[u] for u in scope)
        if len(sums[v]) == 1:
            scope |= {sums[v][0].left, sums[v][0].right, sums[v][0].total}
            size = max(size, math.prod(self.model.sizes[u] for u in scope - {v}))
        return len(sums[v]) > 1 or size > self.cap, size, v

    def _eliminate(self, v: int, live: dict[int, list[_Source]], sums: dict[int, list[Sum]]) -> None:
        relation = sums[v][0] if sums[v] else None
        self.exact &= len(sums[v]) <= 1
        for s in sums[v]:
            for u in {s.left, s.right, s.total} - {v}:
                sums[u] = [other for other in sums[u] if other is not s]
        buckets: list[list[_Source]] = []
        for source in sorted(live[v], key=lambda s: -math.prod(self.model.sizes[u] for u in s.scope)):
            for bucket in buckets:
                if self._size(v, [*bucket, source]) <= self.cap:
                    bucket.append(source)
                    break
            else:
                buckets.append([source])
        self.exact &= len(buckets) <= 1
        by_sum = {0: relation}
        if relation is not None:
            with_sum = [self._size(v, bucket, relation) for bucket in buckets or [[]]]
            best = int(np.argmin(with_sum))
            fits = with_sum[best] <= self.cap
            self.exact &= fits
            by_sum = {best: relation} if fits else {}
        for i, bucket in enumerate(buckets or [[]]):
            for source in bucket:
                for u in source.scope:
                    live[u] = [s for s in live[u] if s is not source]
            made = self._add_step(v, bucket, by_sum.get(i))
            for u in made.scope:
                live[u].append(made)

    def _size(self, v: int, bucket: list[_Source], relation: Sum | None = None) -> int:
        scope = {u for s in bucket for u in s.scope} | {v}
        size = math.prod(self.model.sizes[u] for u in scope)
        if relation is not None:
            scope = (scope | {relation.left, relation.right, relation.total}) - {v}
            size = max(size, math.prod(self.model.sizes[u] for u in scope))
        return size

    def _add_step(self, v: int, bucket: list[_Source], relation: Sum | None) -> _Source:
        rest = tuple(sorted({u for s in bucket for u in s.scope} - {v}))
        scope = (v, *rest)
        shape = tuple(self.model.sizes[u] for u in scope)
        step = _Step(v, scope, shape, bucket, result=rest)
        number = len(self.steps)
        for source in bucket:
            source.pick = tuple(scope.index(u) for u in source.scope)
            source.order = tuple(int(a) for a in np.argsort(source.pick))
            source.spread = tuple(slice(None) if u in source.scope else None for u in scope)
            if source.step is not None:
                self.steps[source.step].consumer = number
                self.steps[source.step].place = source.pick
        if relation is not None:
            step.result, step.by_sum = self._by_sum(v, scope, relation)
        self.steps.append(step)
        self.work += math.prod(shape) + math.prod(self.model.sizes[u] for u in step.result)
        return _Source(step.result, step=number)

    def _by_sum(self, v: int, scope: tuple[int, ...], relation: Sum) -> tuple[tuple[int, ...], _BySum]:
        """The result's scope and the index arrays of eliminating v through `relation`."""
        first, second = (u for u in (relation.left, relation.right, relation.total) if u != v)
        option = _solve_sum(relation, v, self.model.sizes)
        result = (first, second, *(u for u in scope[1:] if u not in (first, second)))
        gather: list[npt.NDArray[np.int64] | slice] = [np.maximum(option, 0)]
        for u in scope[1:]:
            if u == first:
                gather.append(np.arange(self.model.sizes[first])[:, None])
            elif u == second:
                gather.append(np.arange(self.model.sizes[second])[None, :])
            else:
                gather.append(slice(None))
        penalty = np.where(option < 0, -np.inf, 0.0).reshape(*option.shape, *[1] * (len(result) - 2))
        return result, _BySum(np.maximum(option, 0), penalty, tuple(gather))


def _solve_sum(relation: Sum, v: int, sizes: Sequence[int]) -> Ints:
    """(K_a, K_b) option of v for each option of the sum's other two variables, -1 where there is none."""
    if v == relation.total:
        return relation.index
    left, right = np.nonzero(relation.index >= 0)
    total = relation.index[left, right]
    if v == relation.left:
        option = np.full((sizes[relation.right], sizes[relation.total]), -1, np.int64)
        option[right, total] = left
    else:
        option = np.full((sizes[relation.left], sizes[relation.total]), -1, np.int64)
        option[left, total] = right
    return option
