"""The Lagrangian method: a certified upper bound and, from the same runs, very good choices.

Each round minimises the dual (`dual`), improves the best choice seen (`local`), and shrinks the problem: an
option whose max-marginal at the best multipliers is below the value in hand stands in no better choice
("problem reduction", Geoffrion 1974). On what is left the bound is tighter, so the rounds go on while they
help. What is left in the end is small enough for a MILP to finish.

A problem whose tables are large is first solved with fewer options a group: its best choice and its
multipliers are so close that the large tables are only needed once or twice, before most options are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .baselines import solve_greedy
from .dual import Dual, minimise_dual
from .elimination import DEFAULT_CAP, Elimination
from .local import Incumbent, Neighbourhood, climb, repair
from .model import Model, relative_gap
from .tables import Floats, Ints

MAX_ROUNDS = 8
STARTS = 4
IN_VAIN = 2
"""Starts in a row that lead to nothing better before the others are left out: they end where these did."""

FAR = 0.5
"""Choices that are over the budgets by more than this share are no starts: repairs of hundreds of moves led to nothing
better."""

LARGE = 3_000_000
"""Entries of all tables of one elimination, above which (about 20 ms) a coarse problem goes first."""

COARSE_OPTIONS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Bounded:
    """What the Lagrangian method leaves, beside the incumbent.

    Attributes:
        upper: upper bound of the problem that it was started on; -inf if it is provably infeasible.
        reduced: that model restricted to options that may stand in a choice better than the incumbent; None
            when there are none.
        states: (V, M) maximisers seen, in the full model's options.
    """

    upper: float
    reduced: Model | None
    states: Ints


def bound_and_search(
    model: Model,
    incumbent: Incumbent,
    free: int,
    target: float,
    cap: int = DEFAULT_CAP,
    plan: Elimination | None = None,
) -> Bounded:
    """Bound, search and shrink until the relative gap is at most `target`, nothing helps, or the work is spent.

    Args:
        model: `incumbent.model` or a restriction of it.
        free: how many variables are groups or branches (the others are sums).
        cap: see `Elimination`.
        plan: the elimination of the model, if it is at hand.
    """
    current, upper = model, np.inf
    plan = Elimination(current, cap) if plan is None else plan
    seen = np.zeros((len(model.sizes), 0), np.int64)
    if plan.work > LARGE:
        coarse = _coarsen(model, free)
        if sum(coarse.sizes) < 0.7 * sum(model.sizes):
            seen = bound_and_search(coarse, incumbent, free, target, cap).states
    if not plan.exact:
        # Maximisers of relaxed tables are no good starts.
        solve_greedy(incumbent.model, free, incumbent)
    for _ in range(MAX_ROUNDS):
        dual = minimise_dual(current, plan, incumbent, _seeds(current, incumbent, seen))
        if incumbent.state is None and dual.bound == -np.inf:
            return Bounded(-np.inf, None, seen)
        # No choice that an earlier round removed is worth more than the incumbent.
        upper = min(upper, max(dual.bound, incumbent.value))
        seen = np.concatenate([seen, _lift(current, dual.states)], axis=1)
        if incumbent.state is None:
            _repair_nearest(current, dual, incumbent, free)
        prices = current.flat_value - dual.multipliers @ current.flat_cost
        done = relative_gap(incumbent.value, upper) <= target / 3 or dual.bound <= incumbent.value
        marginals = []
        if not (done or incumbent.work.spent):
            marginals = plan.max_marginals(prices)
            incumbent.work.done += 2 * plan.effort
        at_limit = float(dual.multipliers @ current.limit)
        if marginals:
            kept = _worth(marginals, incumbent.value - at_limit)
            _improve(current, kept, dual, incumbent, free, upper, target)
        upper = max(upper, incumbent.value)
        if not marginals or relative_gap(incumbent.value, upper) <= target or incumbent.work.spent:
            break
        kept = _worth(marginals, incumbent.value - at_limit)
        if any(len(options) == 0 for options in kept):
            return Bounded(incumbent.value, None, seen)
        before = sum(current.sizes)
        current = current.keep(kept)
        if sum(current.sizes) > 0.95 * before:
            break
        plan = Elimination(current, cap)
    return Bounded(upper, None if upper <= incumbent.value else current, seen)


def _coarsen(model: Model, free: int) -> Model:
    """About `COARSE_OPTIONS` options of each variable, counted from the largest so that sums stay regular."""
    kept = []
    for size in model.sizes[:free]:
        step = -(-size // COARSE_OPTIONS)
        kept.append(np.arange(size - 1, -1, -step)[::-1])
    kept += [np.zeros(0, np.int64)] * (len(model.sizes) - free)
    for s in model.sums:
        reached = np.unique(s.index[np.ix_(kept[s.left], kept[s.right])])
        kept[s.total] = reached[reached >= 0]
    return model.keep(kept)


def _worth(marginals: Sequence[Floats], needed: float) -> list[Ints]:
    """Options whose max-marginal reaches `needed`, up to rounding."""
    if not np.isfinite(needed):
        return [np.arange(len(marginal)) for marginal in marginals]
    slack = 1e-9 * max(1.0, abs(needed))
    return [np.flatnonzero(marginal >= needed - slack) for marginal in marginals]


def _lift(current: Model, states: Ints) -> Ints:
    """Options of a restricted model -> options of the full one."""
    return np.stack([options[row] for options, row in zip(current.options, states, strict=True)])


def _seeds(current: Model, incumbent: Incumbent, seen: Ints) -> Ints:
    """States seen before (the incumbent, too) that consist of options still there, in the current options."""
    if incumbent.state is not None:
        seen = np.concatenate([seen, incumbent.state[:, None]], axis=1)
    seen = np.unique(incumbent.model.complete(seen.copy()), axis=1)
    found = np.stack([np.searchsorted(options, row) for options, row in zip(current.options, seen, strict=True)])
    there = np.stack(
        [
            options[np.minimum(spot, len(options) - 1)] == row
            for options, spot, row in zip(current.options, found, seen, strict=True)
        ]
    )
    return found[:, there.all(axis=0)]


def _repair_nearest(current: Model, dual: Dual, incumbent: Incumbent, free: int) -> None:
    """Repair the maximisers that are least over the budgets, until one gives a feasible state."""
    full = incumbent.model
    moves = Neighbourhood(full, free)
    states = full.complete(_lift(current, dual.states))
    _, cost = full.evaluate(states)
    over = np.maximum(cost - full.limit[:, None], 0.0).sum(axis=0)
    for i in np.argsort(over, kind="stable")[: 2 * STARTS]:
        if repair(incumbent, moves, states[:, i]) is not None:
            return


def _improve(
    current: Model,
    kept: list[Ints],
    dual: Dual,
    incumbent: Incumbent,
    free: int,
    upper: float,
    target: float,
) -> None:
    """Climb from the incumbent and the best maximisers among the options that are worth it."""
    full = incumbent.model
    worth = [options[keep] for options, keep in zip(current.options[:free], kept, strict=False)]
    moves = Neighbourhood(full, free, worth)
    states = full.complete(np.unique(_lift(current, dual.states), axis=1))
    value, cost = full.evaluate(states)
    over = np.maximum(cost - full.limit[:, None], 0.0).sum(axis=0)
    feasible = full.feasible(cost)
    # Both ends of the dual's last interval: the best within the budgets, and the least above them.
    inside = np.flatnonzero(feasible)[np.argsort(-value[feasible], kind="stable")][:STARTS]
    outside = np.flatnonzero(~feasible)[np.argsort(over[~feasible], kind="stable")][:STARTS]
    outside = outside[over[outside] <= FAR * len(full.limit)]
    starts = [states[:, i] for pair in zip(outside, inside, strict=False) for i in pair]
    if incumbent.state is not None:
        starts.insert(0, incumbent.state)
    in_vain = 0
    known: set[bytes] = set()
    for start in starts:
        if relative_gap(incumbent.value, upper) <= target / 3 or in_vain == IN_VAIN or incumbent.work.spent:
            return
        before = incumbent.value
        feasible_start = repair(incumbent, moves, start)
        if feasible_start is not None:
            climb(incumbent, moves, feasible_start, dual.multipliers, known)
        in_vain = 0 if incumbent.value > before else in_vain + 1
