"""Search around known choices: the best feasible state seen so far, repairs, and moves of one or two variables.

States are (V,) option indices as in `Model`; batches are (V, M). Only groups and branches move, sums follow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .model import Model
from .tables import Floats, Ints
from .work import LOOK_UP, PAIR, Work

MAX_MOVES = 700
"""Single moves that are paired with each other (700^2 / 2 pairs take about 10 ms), and widths that a branch returns
at."""

VERIFIED = 256
"""Most promising pairs whose true effect is computed: pairs that share a table are not additive."""


ROUNDING = 1e-13
"""Values (between 0 and about 1) that differ by less are equal."""


class Incumbent:
    """The best feasible state offered so far.

    Attributes:
        state: (V,) options, or None.
        value: its value, -inf while there is none.
        work: what was done to find it, and how much may be.
    """

    def __init__(self, model: Model, work: Work) -> None:
        self.model = model
        self.work = work
        self.state: Ints | None = None
        self.value = -np.inf

    def offer(self, states: Ints) -> tuple[Floats, Floats]:
        """Evaluate complete (V, M) states, keep the best feasible one; returns their values and costs."""
        value, cost = self.model.evaluate(states)
        self.work.done += LOOK_UP * len(self.model.factors) * states.shape[1]
        allowed = np.where(self.model.feasible(cost), value, -np.inf)
        best = int(np.argmax(allowed))
        if allowed[best] > self.value:
            self.state, self.value = states[:, best].copy(), float(allowed[best])
        return value, cost


class Neighbourhood:
    """All states that differ from another in one group or branch, restricted to options worth trying.

    A move changes the few tables that its variable, or a sum with it, is in: only these are looked up for it.
    """

    def __init__(self, model: Model, free: int, worth: Sequence[Ints] | None = None) -> None:
        """`free`: the first `free` variables move. `worth[v]`: the options of v to try, ascending (all by default)."""
        self.model = model
        options = [np.arange(size) for size in model.sizes[:free]] if worth is None else worth
        count = np.array([len(own) for own in options], np.int64)
        self.variable = np.repeat(np.arange(free), count)
        self.option = np.concatenate([np.zeros(0, np.int64), *options])
        # One entry for each table that each move changes: those of its variable.
        touched = model.touched(free)
        length = np.array([len(rows) for rows in touched], np.int64)
        each = length[self.variable]
        self._move = np.repeat(np.arange(len(each)), each)
        within = np.arange(len(self._move)) - np.repeat(np.cumsum(each) - each, each)
        self._factor = np.concatenate([np.zeros(0, np.int64), *touched])[
            within + np.repeat((np.cumsum(length) - length)[self.variable], each)
        ]

    def around(self, incumbent: Incumbent, state: Ints) -> tuple[Ints, Ints, Ints, Ints, Floats, Floats]:
        """(M,) variables and options of the moves from a complete state; complete states, and (M,) which of them they
        lead to; and the (M,) values and (R, M) costs there. The best one within the limits is offered."""
        model = self.model
        states = np.repeat(state[:, None], len(self.variable), axis=1)
        states[self.variable, np.arange(len(self.variable))] = self.option
        states = model.complete(states)
        (value,), cost = model.evaluate(state[:, None])
        where = model.entries_at(self._factor, np.maximum(states, 0) if model.sums else states, self._move)
        before = model.entries(state[:, None])[self._factor, 0]

        def changed(table: Floats) -> Floats:
            apart = table[where] - table[before]
            return np.bincount(self._move, weights=apart, minlength=len(self.variable)).astype(np.float64)

        values = value + changed(model.flat_value)
        costs = cost + np.stack([changed(row) for row in model.flat_cost]) if len(cost) else cost.repeat(len(values), 1)
        if model.sums:  # Else nothing is impossible.
            costs[:, (states < 0).any(axis=0)] = np.inf
        incumbent.work.done += LOOK_UP * len(self._move)
        moving = np.flatnonzero(self.option != state[self.variable])
        values, costs = values[moving], costs[:, moving]
        allowed = np.where(model.feasible(costs), values, -np.inf)
        if allowed.max(initial=-np.inf) > incumbent.value:
            incumbent.offer(states[:, [moving[np.argmax(allowed)]]])
        return self.variable[moving], self.option[moving], states, moving, values, costs


def repair(incumbent: Incumbent, moves: Neighbourhood, state: Ints) -> Ints | None:
    """Make single moves, least value lost for each unit of overrun saved, until every limit is met. The limit on work
    ends the search for something better, not that for anything at all."""
    model = incumbent.model
    value, cost = (x[..., 0] for x in incumbent.offer(state[:, None]))
    while not model.feasible(cost[:, None])[0]:
        if incumbent.state is not None and incumbent.work.spent:
            return None
        variable, _, states, where, values, costs = moves.around(incumbent, state)
        if len(variable) == 0:
            return None
        over = np.maximum(cost - model.limit, 0.0).sum()
        saved = over - np.maximum(costs - model.limit[:, None], 0.0).sum(axis=0)
        lost = value - values
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(lost > 0, lost / saved, lost * np.maximum(saved, 1e-12))
        rate[~(saved > 1e-12)] = np.inf
        best = int(np.argmin(rate))
        if rate[best] == np.inf:
            return None
        state, value, cost = states[:, where[best]].copy(), values[best], costs[:, best]
    return state


def climb(
    incumbent: Incumbent, moves: Neighbourhood, state: Ints, multipliers: Floats, known: set[bytes] | None = None
) -> Ints:
    """From a feasible state, make the best move of one or two variables until none gains, or the state is known.

    Args:
        multipliers: (R,) price of each resource; the moves that lose least at these prices are paired.
        known: states that a climb with these moves and prices passed, as bytes; those that this one passes are added.
    """
    known = set() if known is None else known
    values, costs = incumbent.offer(state[:, None])
    value, cost = float(values[0]), costs[:, 0]
    while not incumbent.work.spent and state.tobytes() not in known:
        known.add(state.tobytes())
        found = _best_move(incumbent, moves, state, value, cost, multipliers)
        if found is None:
            break
        state, value, cost = found
    return state


def _best_move(
    incumbent: Incumbent, moves: Neighbourhood, state: Ints, value: float, cost: Floats, multipliers: Floats
) -> tuple[Ints, float, Floats] | None:
    model = incumbent.model
    variable, option, states, where, values, costs = moves.around(incumbent, state)
    if len(variable) == 0:
        return None
    tiny = 1e-12 * max(1.0, abs(value))
    gain = np.where(model.feasible(costs), values - value, -np.inf)
    best = int(np.argmax(gain))
    single = (states[:, where[best]], values[best], costs[:, best]) if gain[best] > tiny else None
    found = _best_pair(incumbent, state, value, cost, multipliers, variable, option, values, costs)
    if found is None or (single is not None and single[1] >= found[1]):
        return single
    return found


def _best_pair(
    incumbent: Incumbent,
    state: Ints,
    value: float,
    cost: Floats,
    multipliers: Floats,
    variable: Ints,
    option: Ints,
    values: Floats,
    costs: Floats,
) -> tuple[Ints, float, Floats] | None:
    """Two moves at once: pick pairs as if their effects added up, then evaluate the most promising."""
    model = incumbent.model
    priced = values - value - multipliers @ (costs - cost[:, None])
    use = np.argsort(-priced, kind="stable")[:MAX_MOVES]
    use = use[np.isfinite(priced[use])]
    if len(use) < 2:
        return None
    gain = (values[use] - value)[:, None] + (values[use] - value)
    promising = (gain > 1e-12 * max(1.0, abs(value))) & (variable[use][:, None] < variable[use])
    incumbent.work.done += PAIR * promising.size
    at = np.flatnonzero(promising)  # A fifth of the time of both numbers at once.
    first = at // len(use)
    second = at - first * len(use)
    after = costs[:, use[first]] + costs[:, use[second]] - cost[:, None]
    over = np.maximum(after - model.limit[:, None], 0.0).sum(axis=0)
    # Where two moves share a table their effects do not add up: let slightly infeasible ones compete, too.
    rank = gain[first, second] - 4 * float(np.max(multipliers, initial=0.0)) * over
    top = np.argsort(-rank, kind="stable")[:VERIFIED] if len(rank) <= 4 * VERIFIED else _largest(rank)
    if len(top) == 0:
        return None
    one, two = use[first[top]], use[second[top]]
    states = np.repeat(state[:, None], len(top), axis=1)
    columns = np.arange(len(top))
    states[variable[one], columns] = option[one]
    states[variable[two], columns] = option[two]
    states = model.complete(states)
    values, costs = incumbent.offer(states)
    gains = np.where(model.feasible(costs), values - value, -np.inf)
    best = int(np.argmax(gains))
    if gains[best] <= 1e-12 * max(1.0, abs(value)):
        return None
    return states[:, best], float(values[best]), costs[:, best]


def _largest(rank: Floats) -> Ints:
    return np.argpartition(-rank, VERIFIED)[:VERIFIED]


def widen(incumbent: Incumbent, groups: int, inside: Mapping[int, Sequence[int]]) -> None:
    """Spend what the best state leaves of the budgets: as long as a group can take a larger width or a dropped branch
    can return, within every limit and for no less value, do what gains most for its cost. No such step is left in the
    end (of branches with very many widths, such that are about as far from the smallest in each of its groups).

    Args:
        groups: how many variables are groups.
        inside: variable of each branch -> those of its groups.
    """
    model, state = incumbent.model, incumbent.state
    assert state is not None
    # The next width of each group, and branches at their smallest widths, are tried first: there are fewer of them.
    reach = 0
    while True:
        most = [model.sizes[v] if reach else min(int(state[v]) + 2, model.sizes[v]) for v in range(groups)]
        moves = [(v, k) for v in range(groups) for k in range(int(state[v]) + 1, most[v])]
        gone = [b for b in inside if state[b] == 0]
        back = [(b, at) for b in gone for at in _widths([model.sizes[v] for v in inside[b]], reach > 1)]
        states = np.repeat(state[:, None], 1 + len(moves) + len(back), axis=1)
        for column, (v, k) in enumerate(moves, 1):
            states[v, column] = k
        for column, (b, at) in enumerate(back, 1 + len(moves)):
            states[[b, *inside[b]], column] = [1, *at]
        states = model.complete(states)
        value, cost = model.evaluate(states)
        gain, more = value - value[0], (cost - cost[:, :1]).sum(axis=0)
        # A group of a dropped branch has no width: whatever it is set to, nothing changes.
        idle = np.isin([0, *(v for v, _ in moves)], [g for b in gone for g in inside[b]])
        allowed = model.feasible(cost) & (gain >= -ROUNDING)
        allowed[: len(idle)] &= ~idle
        allowed[0] = False
        if allowed.any():
            with np.errstate(divide="ignore", invalid="ignore"):
                rate = np.where(more > 0, gain / more, np.inf)
            state = states[:, int(np.lexsort((gain, np.where(allowed, rate, -np.inf)))[-1])]
        elif reach < (2 if gone else 1):
            reach += 1
        else:
            break
    incumbent.state = state.copy()
    incumbent.value = float(value[0])


def _widths(sizes: Sequence[int], all_of_them: bool) -> Iterable[tuple[int, ...]]:
    """Options at which a branch may return, of groups that have so many: the first ones, or all that there are."""
    if not all_of_them:
        return [(0,) * len(sizes)]
    if math.prod(sizes) <= MAX_MOVES:
        return itertools.product(*map(range, sizes))
    shares = np.linspace(0, 1, max(sizes))
    return [tuple(int(s) for s in np.rint(share * (np.array(sizes) - 1))) for share in shares]
