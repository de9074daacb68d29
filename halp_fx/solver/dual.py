"""The Lagrangian dual: prices for the budgets that make the bound as small as it gets.

Pricing the budgets with multipliers lambda >= 0 leaves a problem without budgets, which elimination solves:

    phi(lambda) = max over widths of  V - lambda . (C - B)   >=   optimum of the budgeted problem.

phi is convex and piecewise linear, and every choice seen is a line below it. `minimise_dual` walks to the
lowest point of these lines, evaluates phi there, and adds the new line (Kelley's cutting planes, J. SIAM 8,
1960; with one budget it is the secant method and needs about ten evaluations).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # `scipy.optimize` is imported when it is first used: that takes a quarter of a second

from .elimination import Elimination
from .local import Incumbent
from .model import Model
from .tables import Floats, Ints

MAX_EVALUATIONS = 120
CLOSE_ENOUGH = 0.02
"""Stop when so small a part of the gap is due to the multipliers: the rest needs another method anyway."""


@dataclass(frozen=True, slots=True, eq=False)
class Dual:
    """Outcome of minimising phi.

    Attributes:
        bound: smallest phi found; -inf if the budgets provably cannot be met.
        multipliers: (R,) where, per unit of `Model.limit`.
        states: (V, M) the maximisers seen, in the model's options.
    """

    bound: float
    multipliers: Floats
    states: Ints


def minimise_dual(model: Model, plan: Elimination, incumbent: Incumbent, seeds: Ints) -> Dual:
    """Minimise phi over lambda >= 0.

    Args:
        incumbent: told of every maximiser. The search ends once phi is no better than its value.
        seeds: (V, M) complete states of the model whose lines are known without evaluating phi.
    """
    search = _Search(model, plan, incumbent, seeds)
    known_feasible = bool(model.feasible(search.over + model.limit[:, None]).any())
    if not known_feasible:
        for row, limit in zip(model.flat_cost, model.limit, strict=True):
            smallest = -search.evaluate(-row)
            if smallest > limit + 1e-9 * max(1.0, abs(limit)):
                return Dual(-np.inf, np.zeros(len(model.limit)), search.seen())
    worst = incumbent.value
    if not np.isfinite(worst):
        # What the budgets leave is at least this good: a smaller bound proves that they leave nothing.
        worst = -plan.maximise(-model.flat_value)[0]
    multipliers = np.zeros(len(model.limit))
    if known_feasible and seeds.shape[1] > 1:
        multipliers, _ = search.lowest_point(multipliers, worst)
    best, best_at = np.inf, multipliers
    for _ in range(MAX_EVALUATIONS):
        prices = model.flat_value - multipliers @ model.flat_cost
        phi = search.evaluate(prices) + float(multipliers @ model.limit)
        if phi < best:
            best, best_at = phi, multipliers
        if best < worst - 1e-9 * max(1.0, abs(worst)):
            return Dual(-np.inf if incumbent.state is None else best, best_at, search.seen())
        before = multipliers
        multipliers, lower = search.lowest_point(best_at, worst)
        settled = max(1e-10 * max(1.0, abs(best)), CLOSE_ENOUGH * (best - incumbent.value))
        if best - lower <= (settled if np.isfinite(settled) else 0.0) or incumbent.work.spent:
            break
        if (multipliers == before).all():
            break
    return Dual(best, best_at, search.seen())


class _Search:
    """The lines known so far: `value - lambda . over` for each choice seen."""

    def __init__(self, model: Model, plan: Elimination, incumbent: Incumbent, seeds: Ints) -> None:
        self.model = model
        self.plan = plan
        self.incumbent = incumbent
        self.states: list[Ints] = []
        self.value, cost = model.evaluate(seeds)
        self.over = cost - model.limit[:, None]

    def evaluate(self, prices: Floats) -> float:
        """Maximum of the priced tables; keeps the maximiser and its line."""
        bound, state, entries = self.plan.maximise(prices)
        self.incumbent.work.done += self.plan.effort
        over = self.model.flat_cost[:, entries].sum(axis=1) - self.model.limit
        self.value = np.append(self.value, self.model.flat_value[entries].sum())
        self.over = np.append(self.over, over[:, None], axis=1)
        self.states.append(state)
        options = np.array([kept[k] for kept, k in zip(self.model.options, state, strict=True)])
        self.incumbent.offer(self.incumbent.model.complete(options[:, None]))
        return bound

    def seen(self) -> Ints:
        if not self.states:
            return np.zeros((len(self.model.sizes), 0), np.int64)
        return np.stack(self.states, axis=1)

    def lowest_point(self, at: Floats, worst: float) -> tuple[Floats, float]:
        """Minimiser and minimum over lambda >= 0 of the lines' maximum; `at` and -inf if there is none."""
        if len(at) == 0:
            return at, float(self.value.max())
        if len(at) == 1:
            return _lowest_crossing(self.value, self.over[0])
        box = 1e4 * (1.0 + abs(float(self.value.max()) - worst))
        rows = np.concatenate([-self.over.T, -np.ones((len(self.value), 1))], axis=1)
        objective = [*np.zeros(len(at)), 1.0]
        found = scipy.optimize.linprog(objective, rows, -self.value, bounds=[*[(0.0, box)] * len(at), (None, None)])
        if found.x is None:
            return at, -np.inf
        return np.maximum(found.x[:-1], 0.0), float(found.fun)


def _lowest_crossing(value: Floats, over: Floats) -> tuple[Floats, float]:
    """Minimum over lambda >= 0 of max_i value_i - lambda * over_i, walking down from lambda = 0."""
    at = 0.0
    while True:
        heights = value - at * over
        top = float(heights.max())
        active = heights >= top - 1e-12 * max(1.0, abs(top))
        # Of the lines that are highest here, the one that is highest just beyond.
        line = int(np.argmin(np.where(active, over, np.inf)))
        slower = over < over[line]
        if over[line] <= 0:
            return np.array([at]), top
        if not slower.any():
            # Every line falls for ever: go where the highest of them is below all that can be reached.
            return np.array([2.0 * at + 1.0]), -np.inf
        crossing = (value[line] - value[slower]) / (over[line] - over[slower])
        at = max(float(crossing.min()), float(np.nextafter(at, np.inf)))
