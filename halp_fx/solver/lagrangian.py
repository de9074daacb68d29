"""The Lagrangian method: a certified upper bound and, from the same runs, very good choices.

Pricing the budgets with multipliers lambda >= 0 leaves a problem without budgets, which elimination solves:

    phi(lambda) = max over widths of  V - lambda . (C - B)   >=   optimum of the budgeted problem.

phi is convex and piecewise linear. `minimise_dual` finds its minimum by cutting planes; every maximiser on
the way is a choice, the best of them is repaired and improved by `local`. An option whose max-marginal at
lambda is below the value in hand can stand in no better choice: `shrink` removes it. On what is left the
bound is tighter, so the three are repeated while they help (Held and Karp 1970 for the bound; "problem
reduction", Geoffrion 1974).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from .elimination import DEFAULT_CAP, Elimination
from .local import Incumbent, Neighbourhood, climb, repair
from .model import Floats, Ints, Model

ROUNDS = 6
STARTS = 4
MAX_CUTS = 120


@dataclass(frozen=True, slots=True, eq=False)
class Dual:
    """Outcome of minimising phi.

    Attributes:
        bound: smallest phi found. multipliers: (R,) where, per unit of `Model.limit`.
        states: (V, M) the maximisers seen, most recent last.
        exact: whether phi was exact; then a maximiser that is feasible at lambda = 0 is optimal.
        infeasible: the budgets provably cannot be met.
    """

    bound: float
    multipliers: Floats
    states: Ints
    exact: bool
    infeasible: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Bounded:
    """What the Lagrangian method leaves: the best state, the bound, and the options that may still improve
    on it.

    Attributes:
        upper: upper bound of the problem. state: (V,) in the options of the full model, or None if none is
        known.
        reduced: the model restricted to the options in any better choice; None when there is none.
        infeasible: the budgets provably cannot be met.
    """

    upper: float
    value: float
    state: Ints | None
    multipliers: Floats
    reduced: Model | None
    infeasible: bool = False


def smallest_costs(model: Model, plan: Elimination) -> tuple[Floats, Ints]:
    """(R,) smallest cost of each resource by itself (a lower bound if the plan is not exact), and (V, R) where."""
    runs = [plan.maximise(-row) for row in model.flat_cost]
    states = (
        np.stack([state for _, state, _ in runs], axis=1) if runs else np.zeros((len(model.sizes), 0), int)
    )
    return np.array([-bound for bound, _, _ in runs]), model.complete(states)


def minimise_dual(model: Model, plan: Elimination, incumbent: Incumbent) -> Dual:
    """Minimise phi over lambda >= 0 by cutting planes (for one budget: the secant method on its two slopes)."""
    resources = len(model.limit)
    best, best_at = np.inf, np.zeros(resources)
    cuts: list[tuple[float, Floats]] = []
    states: list[Ints] = []
    worst = -plan.maximise(-model.flat_value)[0]

    def cut(flat: Floats) -> float:
        phi, state, entries = plan.maximise(flat)
        cuts.append(
            (float(model.flat_value[entries].sum()), model.flat_cost[:, entries].sum(axis=1) - model.limit)
        )
        states.append(state)
        return phi

    for row in model.flat_cost:
        cut(-row)
    multipliers = np.zeros(resources)
    for _ in range(MAX_CUTS):
        phi = cut(model.flat_value - multipliers @ model.flat_cost) + float(multipliers @ model.limit)
        if phi < best:
            best, best_at = phi, multipliers
        if best < worst - 1e-9 * max(1.0, abs(worst)):
            break
        multipliers, lower = _next_multipliers(cuts, best_at, worst)
        if best - lower <= 1e-9 * max(1.0, abs(best)) or incumbent.late:
            break
    everything = model.complete(np.stack(states, axis=1))
    infeasible = best < worst - 1e-9 * max(1.0, abs(worst))
    return Dual(best, best_at, everything, plan.exact, infeasible)


def _next_multipliers(
    cuts: list[tuple[float, Floats]], best_at: Floats, worst: float
) -> tuple[Floats, float]:
    """Minimiser and minimum of the cuts' maximum: the next multipliers to try and a lower bound of phi."""
    value = np.array([v for v, _ in cuts])
    over = np.stack([c for _, c in cuts])
    if over.shape[1] == 0:
        return best_at, float(value.max())
    if over.shape[1] == 1:
        return _lowest_crossing(value, over[:, 0])
    box = 1e4 * (1.0 + float(value.max()) - worst)
    rows = np.concatenate([-over, -np.ones((len(cuts), 1))], axis=1)
    found = linprog(
        [*np.zeros(over.shape[1]), 1.0], rows, -value, bounds=[*[(0.0, box)] * over.shape[1], (None, None)]
    )
    if found.x is None:
        return best_at, np.inf
    return found.x[:-1], float(found.fun)


def _lowest_crossing(value: Floats, over: Floats) -> tuple[Floats, float]:
    """Minimum over lambda >= 0 of max_i value_i - lambda * over_i."""
    at = 0.0
    while True:
        heights = value - at * over
        top = float(heights.max())
        active = heights >= top - 1e-12 * max(1.0, abs(top))
        falling = over[active].min()
        if falling <= 0:
            return np.array([at]), top
        # Follow the flattest active line down to where a line that falls less, or rises, takes over.
        line = int(np.flatnonzero(active & (over == falling))[0])
        slower = over < falling
        if not slower.any():
            return np.array([at]), -np.inf
        crossing = (value[line] - value[slower]) / (over[line] - over[slower])
        at = max(float(crossing.min()), np.nextafter(at, np.inf))


def bound_and_search(
    model: Model, incumbent: Incumbent, free: int, target: float, cap: int = DEFAULT_CAP
) -> Bounded:
    """Bound, search and shrink until the relative gap is at most `target`, nothing helps any more, or time
    is up.

    Args:
        free: how many variables are groups or branches (the others are sums).
        target: relative gap at which to stop.
        cap: see `Elimination`.
    """
    current = model
    upper, multipliers, infeasible = np.inf, np.zeros(len(model.limit)), False
    for _ in range(ROUNDS):
        plan = Elimination(current, cap)
        dual = minimise_dual(current, plan, incumbent)
        infeasible = dual.infeasible and incumbent.state is None
        # Every choice that was removed is worth no more than the incumbent.
        upper = min(upper, max(dual.bound, incumbent.value))
        multipliers = dual.multipliers
        if infeasible:
            return Bounded(-np.inf, -np.inf, None, multipliers, None, infeasible=True)
        if dual.infeasible:
            return Bounded(incumbent.value, incumbent.value, incumbent.state, multipliers, None)
        _search(current, dual, incumbent, free)
        upper = max(upper, incumbent.value)
        if upper - incumbent.value <= target * abs(upper) or incumbent.late:
            break
        kept = shrink(current, plan, dual.multipliers, incumbent.value)
        if kept is None:
            return Bounded(incumbent.value, incumbent.value, incumbent.state, multipliers, None)
        before = sum(current.sizes)
        current = current.keep(kept)
        if sum(current.sizes) > 0.9 * before:
            break
    return Bounded(upper, incumbent.value, incumbent.state, multipliers, current)


def _search(current: Model, dual: Dual, incumbent: Incumbent, free: int) -> None:
    """Repair and improve the most promising maximisers, in the options that are left."""
    full = incumbent.model
    states = np.unique(_lift(current, dual.states), axis=1)
    states = full.complete(states)
    value, cost = incumbent.offer(states)
    over = np.maximum(cost - full.limit[:, None], 0.0).sum(axis=0)
    feasible = full.feasible(cost)
    worth = [np.isin(np.arange(size), kept) for size, kept in zip(full.sizes, current.options, strict=True)]
    moves = Neighbourhood(full, free, worth)
    order = np.argsort(np.where(feasible, -np.inf, over), kind="stable")
    best = np.flatnonzero(feasible)[np.argsort(-value[feasible], kind="stable")]
    near = [i for i in order if not feasible[i]]
    for i in [*best[:STARTS], *near[:STARTS]]:
        start = repair(incumbent, moves, states[:, i])
        if start is not None:
            climb(incumbent, moves, start, dual.multipliers)
    if incumbent.state is not None:
        climb(incumbent, moves, incumbent.state, dual.multipliers)


def _lift(current: Model, states: Ints) -> Ints:
    """Options of a restricted model -> options of the full one."""
    return np.stack([options[row] for options, row in zip(current.options, states, strict=True)])


def shrink(model: Model, plan: Elimination, multipliers: Floats, value: float) -> list[Ints] | None:
    """Options that may stand in a choice better than `value`; None if some variable has none left."""
    if not np.isfinite(value):
        return [np.arange(size) for size in model.sizes]
    marginals = plan.max_marginals(model.flat_value - multipliers @ model.flat_cost)
    needed = value - float(multipliers @ model.limit)
    slack = 1e-9 * max(1.0, abs(value))
    kept = [np.flatnonzero(marginal >= needed - slack) for marginal in marginals]
    return None if any(len(options) == 0 for options in kept) else kept
