"""One step of HALP as its authors released it: a knapsack over blocks of channels, inputs as wide as they are now.

Written from a description of the released code (docs/solver.md has the table); the code itself was not used. Beside
`halp`, which follows the text of the paper on one problem in 30 steps: items go in by their importance over all groups,
an increment that is negative stays so, and a layer may vanish where its branch may be dropped. `prune(solver="halp")`
asks for one such step after each scoring.
"""

from __future__ import annotations

import numpy as np

from ..errors import ProblemError
from .baselines import full_state
from .halp import CELLS, Items, produced
from .local import Incumbent, Neighbourhood, repair
from .model import Model
from .problem import WidthProblem
from .tables import Ints


def solve_released(problem: WidthProblem, model: Model, incumbent: Incumbent) -> None:
    """Offer the choice that one step ends at; if what items do not see leaves it over the budget, repaired.

    Raises:
        ProblemError: more than one budget, which the method does not know.
    """
    if len(problem.budgets) != 1:
        raise ProblemError(f"the published knapsack knows one budget, the problem has {len(problem.budgets)}")
    options, kept = released_options(problem)
    state = full_state(model)
    state[: len(options)] = options
    state[len(options) : len(options) + len(kept)] = kept
    state = model.complete(state[:, None])[:, 0]
    repair(incumbent, Neighbourhood(model, len(options) + len(kept)), state)


def released_options(problem: WidthProblem) -> tuple[Ints, Ints]:
    """(G,) options of the groups and (B,) 1 for a branch that stays, whether they meet the budget or not. A branch goes
    if one of its groups vanishes."""
    ((resource, budget),) = problem.budgets.items()
    widths = {name: int(group.widths[-1]) for name, group in problem.groups.items()}
    base = problem.evaluate(widths)[1][resource]
    cell = max(abs(base), 1e-300) / CELLS
    home = {name: b.name for b in problem.branches for name in b.groups}
    items: Items = []
    for name, group in problem.groups.items():
        cost = produced(problem, name, group.widths, widths, resource)
        value = group.value
        if name in home:  # Its first block is an item, too.
            cost, value = np.append(0.0, cost), np.append(0.0, value)
        cells = np.ceil((cost - cost[0]) / cell - 1e-9).astype(int)
        items.append((np.diff(value).tolist(), np.diff(cells).tolist()))
        base -= float(cost[-1] - cost[0])
    taken = released_knapsack(items, int((budget - base) / cell) if budget > base else 0)
    options = np.array([n - (name in home) for n, name in zip(taken, problem.groups, strict=True)])
    gone = {home[name] for name, option in zip(problem.groups, options, strict=True) if option < 0}
    return np.maximum(options, 0), np.array([int(b.name not in gone) for b in problem.branches], np.int64)


def released_knapsack(items: Items, capacity: int) -> list[int]:
    """The dynamic program: items of all groups, the most important first, each taken at a capacity only where that is
    worth more than leaving it and where the item before it in its group was taken. It is greedy: of two ways to fill a
    capacity it remembers the better one, even if only the other could go on.

    Weights may be negative. The table of capacities is wider by their sum at both ends, so that what lies over the
    capacity, or under nothing, on the way may still end within it.

    Args:
        items: see `halp.Items`; within a group they are in the order in which they may be taken.
        capacity: in cells, at least 0.

    Returns:
        How many items of each group are taken.
    """
    spare = -sum(min(weight, 0) for _, weights in items for weight in weights)
    cells = capacity + 2 * spare + 1
    # best[i]: the greatest value of a weight of at most i - spare.
    best = np.full(cells, -np.inf)
    best[spare:] = 0.0
    count = np.zeros((len(items), cells), np.int32)
    for group, rank in _by_importance(items):
        value, weight = items[group][0][rank], items[group][1][rank]
        before = np.arange(cells) - weight
        without = np.clip(before, 0, cells - 1)
        with_item = np.where(before >= 0, best[without] + value, -np.inf)
        take = (with_item > best) & (count[group, without] == rank)
        best = np.where(take, with_item, best)
        count[:, take] = count[:, without[take]]
        count[group, take] = rank + 1
    return [int(n) for n in count[:, capacity + spare]]


def _by_importance(items: Items) -> list[tuple[int, int]]:
    """(group, rank) of all items, the most valuable first, none before another that it needs."""
    keys = []
    for group, (values, _) in enumerate(items):
        for rank, value in enumerate(np.minimum.accumulate(values) if values else ()):
            keys.append((-float(value), group, rank))
    return [(group, rank) for _, group, rank in sorted(keys)]
