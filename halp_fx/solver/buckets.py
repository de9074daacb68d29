"""The steps of an `elimination`: which variable to eliminate when, from which tables, with which indexing.

`make_steps(model, cap)` returns it as a flat list of steps in the order of execution. Each step's result is consumed by
exactly one later step. Orders are greedy; several keys are tried, and the steps with the least work are taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .model import Model, Sum
from .tables import Floats, Ints


@dataclass(slots=True, eq=False)
class Operand:
    """One table that a step adds: a factor (step is None) or an earlier step's result.

    Attributes:
        scope: variables of its axes.
        factor, step: number of the factor or of the step that made it; the other is None.
        order, spread: how to transpose and index it to broadcast over the scope of the step that adds it.
        pick: for each of its axes, the axis of that step's scope.
    """

    scope: tuple[int, ...]
    factor: int | None = None
    step: int | None = None
    order: tuple[int, ...] = ()
    spread: tuple[slice | None, ...] = ()
    pick: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class BySum:
    """How a step eliminates v, a function of two other variables a and b through a sum.

    Attributes:
        option: (K_a, K_b) option of v, 0 where it has none.
        penalty: 0, or -inf where v has none, with axes for the rest.
        gather: index of the step's table that gives a table over (a, b, rest).
        shared: which of a (0) and b (1) stand in the step's table, too.
        other: (K_v, K_a) option of b for each of v and a, 0 where none. If only b is shared, a and b change roles.
        other_penalty: (K_v, K_a) 0, or -inf where b has none.
    """

    option: Ints
    penalty: Floats
    gather: tuple[Ints | slice, ...]
    shared: tuple[int, ...]
    other: Ints
    other_penalty: Floats


@dataclass(slots=True, eq=False)
class Step:
    """Add `operands` over `scope` (the eliminated variable first), then maximise over it or index by a sum.

    Attributes:
        result: variables of the table it makes.
        relation: the sum through which the variable is eliminated, and how; None to maximise over it.
        consumer: the step that adds that table, None for a root.
        place: the axes of the consumer's scope that the result has there.
    """

    variable: int
    scope: tuple[int, ...]
    shape: tuple[int, ...]
    operands: list[Operand]
    result: tuple[int, ...]
    relation: Sum | None = None
    by_sum: BySum | None = None
    consumer: int | None = None
    place: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """Steps, whether they give the exact maximum, and the entries of all tables that they make."""

    steps: tuple[Step, ...]
    exact: bool
    work: int


CHEAP = 300_000
"""Work (1-2 ms) that no other order needs to be tried for."""

ORDERS = ("table", "spare totals", "result")
"""What is smallest goes first: the larger of the tables made; the same, but the total of a sum late (eliminating it
ties its parts together); or the table left behind."""


def make_steps(model: Model, cap: int) -> Steps:
    """The steps that eliminate every variable; no table exceeds `cap` entries if a single factor does not."""
    planner = _Planner(model, cap, ORDERS[0]).run()
    for order in ORDERS[1:] if model.sums else ():
        if planner.exact and planner.work <= CHEAP:
            break
        other = _Planner(model, cap, order).run()
        if (not other.exact, other.work) < (not planner.exact, planner.work):
            planner = other
    for step in planner.steps:
        if step.relation is not None:
            step.by_sum = _by_sum(step, model.sizes)
    return Steps(tuple(planner.steps), planner.exact, planner.work)


class _Planner:
    """The tables and sums that are left, by variable, and the steps so far."""

    def __init__(self, model: Model, cap: int, order: str) -> None:
        self.sizes = model.sizes
        self.cap = cap
        self.order = order
        self.exact = True
        self.work = 0
        self.steps: list[Step] = []
        self.live: dict[int, list[Operand]] = {v: [] for v in range(len(model.sizes))}
        self.sums: dict[int, list[Sum]] = {v: [] for v in range(len(model.sizes))}
        for number, factor in enumerate(model.factors):
            operand = Operand(factor.scope, factor=number)
            for v in factor.scope:
                self.live[v].append(operand)
        for relation in model.sums:
            for v in (relation.left, relation.right, relation.total):
                self.sums[v].append(relation)
        self.costs = {v: self._cost(v) for v in self.live}

    def run(self) -> _Planner:
        while self.live:
            self.eliminate(min(self.costs, key=self.costs.__getitem__))
        return self

    def entries(self, scope: Sequence[int] | set[int]) -> int:
        return math.prod(self.sizes[v] for v in scope)

    def eliminate(self, v: int) -> None:
        """Append the steps that eliminate v and put their results in place of what they consume."""
        relations = self.sums.pop(v)
        operands = self.live.pop(v)
        touched = {u for s in operands for u in s.scope}
        self.exact &= len(relations) <= 1
        for relation in relations:
            others = {relation.left, relation.right, relation.total} - {v}
            touched |= others
            for u in others:
                self.sums[u] = [r for r in self.sums[u] if r is not relation]
        buckets = self._split(v, operands)
        with_sum = self._bucket_for_sum(v, buckets, relations[0]) if relations else None
        for operand in operands:
            for u in operand.scope:
                if u != v:
                    self.live[u] = [s for s in self.live[u] if s is not operand]
        for number, bucket in enumerate(buckets):
            made = self._add_step(v, bucket, relations[0] if number == with_sum else None)
            for u in made.scope:
                self.live[u].append(made)
        del self.costs[v]
        for u in touched - {v}:
            self.costs[u] = self._cost(u)

    def _cost(self, v: int) -> tuple[bool, int, int]:
        """Sort key of eliminating v next: exact ones first, then by size of the tables made."""
        relation = self.sums[v][0] if len(self.sums[v]) == 1 else None
        size = self._size(v, self.live[v], relation)
        inexact = len(self.sums[v]) > 1 or size > self.cap
        if self.order == "spare totals" and relation is not None and relation.total == v:
            size *= 100
        elif self.order == "result":
            size = self._size(v, self.live[v], relation, result_only=True)
        return inexact, size, v

    def _size(self, v: int, bucket: Sequence[Operand], relation: Sum | None = None, result_only: bool = False) -> int:
        scope = {u for s in bucket for u in s.scope} | {v}
        size = self.entries(scope - {v} if result_only else scope)
        if relation is not None:
            size = max(size, self.entries((scope | {relation.left, relation.right, relation.total}) - {v}))
        return size

    def _split(self, v: int, operands: list[Operand]) -> list[list[Operand]]:
        """First-fit the tables into buckets whose sum stays within the cap, the largest first."""
        buckets: list[list[Operand]] = []
        for operand in sorted(operands, key=lambda s: -self.entries(s.scope)):
            for bucket in buckets:
                if self._size(v, [*bucket, operand]) <= self.cap:
                    bucket.append(operand)
                    break
            else:
                buckets.append([operand])
        self.exact &= len(buckets) <= 1
        return buckets or [[]]

    def _bucket_for_sum(self, v: int, buckets: list[list[Operand]], relation: Sum) -> int | None:
        """The bucket whose result stays smallest when v is eliminated through the sum; None if none fits."""
        sizes = [self._size(v, bucket, relation) for bucket in buckets]
        best = int(np.argmin(sizes))
        self.exact &= sizes[best] <= self.cap
        return best if sizes[best] <= self.cap else None

    def _add_step(self, v: int, bucket: list[Operand], relation: Sum | None) -> Operand:
        rest = tuple(sorted({u for s in bucket for u in s.scope} - {v}))
        scope = (v, *rest)
        number = len(self.steps)
        for operand in bucket:
            operand.pick = tuple(scope.index(u) for u in operand.scope)
            operand.order = tuple(sorted(range(len(operand.pick)), key=operand.pick.__getitem__))
            operand.spread = tuple(slice(None) if u in operand.scope else None for u in scope)
            if operand.step is not None:
                self.steps[operand.step].consumer = number
                self.steps[operand.step].place = operand.pick
        step = Step(v, scope, tuple(self.sizes[u] for u in scope), bucket, rest)
        self.work += math.prod(step.shape)
        if relation is not None:
            step.relation = relation
            first, second = (u for u in (relation.left, relation.right, relation.total) if u != v)
            step.result = (first, second, *(u for u in rest if u not in (first, second)))
            self.work += self.entries(step.result)
        self.steps.append(step)
        return Operand(step.result, step=number)


def _by_sum(step: Step, sizes: Sequence[int]) -> BySum:
    """The index arrays of eliminating a step's variable through its sum."""
    assert step.relation is not None
    relation, scope, result = step.relation, step.scope, step.result
    v, (first, second) = step.variable, result[:2]
    option = _solve(relation, (first, second), v, sizes)
    shared = tuple(i for i, u in enumerate((first, second)) if u in scope)
    inner, outer = (second, first) if shared == (1,) else (first, second)
    other = _solve(relation, (v, inner), outer, sizes)
    gather: list[Ints | slice] = [np.maximum(option, 0)]
    for u in scope[1:]:
        if u == first:
            gather.append(np.arange(sizes[first])[:, None])
        elif u == second:
            gather.append(np.arange(sizes[second])[None, :])
        else:
            gather.append(slice(None))
    penalty = np.where(option < 0, -np.inf, 0.0).reshape(*option.shape, *[1] * (len(result) - 2))
    other_penalty = np.where(other < 0, -np.inf, 0.0)
    return BySum(np.maximum(option, 0), penalty, tuple(gather), shared, np.maximum(other, 0), other_penalty)


def _solve(relation: Sum, known: tuple[int, int], wanted: int, sizes: Sequence[int]) -> Ints:
    """(K_a, K_b) option of the wanted variable for each of the two known ones', -1 where there is none."""
    left, right = np.nonzero(relation.index >= 0)
    options = {relation.left: left, relation.right: right, relation.total: relation.index[left, right]}
    table = np.full((sizes[known[0]], sizes[known[1]]), -1, np.int64)
    table[options[known[0]], options[known[1]]] = options[wanted]
    return table
