"""HALP's solver as published, for comparison: a knapsack over linearised latencies, in 30 steps.

Source: Shen et al., "HALP: Hardware-Aware Latency Pruning", arXiv 2110.10811, section 3 and algorithm 1
(NeurIPS 2022 version: arXiv 2210.06659), written from the paper's description. What was compared with
the text, and what differs from it: `docs/solver.md`.

* A group's channels are ranked; keeping one more step of them is an item, worth its saliency. Its weight is
  what it adds to the layers that *produce* the group while their input width stays as it is now. What a
  wider group costs the layers that read it is not seen: that is what the coupled problem has and this
  method lacks.
* The knapsack's dynamic program goes through the items in rank order and may take an item only where it took
  all earlier ones of the group (algorithm 1's `keep[l, c - c_j] == j - 1`). It is greedy: of two ways to
  fill a capacity it remembers the better one, even if only the other could go on.
* The budget shrinks over T = 30 steps as C_t = C_0 (C / C_0)^(t/T); after each, pruned channels stay pruned
  and the input widths are updated. The paper also re-scores saliency; here it is held fixed.

Choices that the paper leaves open: capacities are cells of 1/10,000 of the dense latency; weights of a
group are the increments of its running maximum, rounded up (no item weighs less than nothing); the smallest
width is always kept. Branches are kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import ProblemError
from .baselines import full_state
from .local import Incumbent, Neighbourhood, repair
from .model import Model
from .problem import WidthProblem
from .tables import Floats, Ints

STEPS = 30
CELLS = 10_000

Items = list[tuple[list[float], list[int]]]
"""For each group, the value and weight (in cells) of every item in rank order."""

Knapsack = Callable[[Items, int], list[int]]
"""(items, capacity in cells) -> number of items taken of each group."""


def solve_halp(problem: WidthProblem, model: Model, incumbent: Incumbent) -> None:
    """Offer the choice that the published method ends at; if noisy tables leave it over the budget, repaired.

    Raises:
        ProblemError: more than one budget, which the method does not know.
    """
    if len(problem.budgets) != 1:
        raise ProblemError(f"method 'halp' knows one budget, the problem has {len(problem.budgets)}")
    options = halp_options(problem)
    state = full_state(model)
    state[: len(options)] = options
    state = model.complete(state[:, None])[:, 0]
    repair(incumbent, Neighbourhood(model, len(options)), state)


def halp_options(problem: WidthProblem, steps: int = STEPS, knapsack: Knapsack | None = None) -> Ints:
    """(G,) options that the published method chooses, whether they meet the budget or not.

    Args:
        knapsack: the dynamic program to run in each step (default: `greedy_knapsack`).
    """
    ((resource, budget),) = problem.budgets.items()
    options = np.array([len(group.widths) - 1 for group in problem.groups.values()])
    dense = _cost(problem, options, resource)
    cell = max(abs(dense), 1e-300) / CELLS
    for step in range(1, steps + 1):
        target = dense * (budget / dense) ** (step / steps) if dense > 0 < budget else budget
        if _cost(problem, options, resource) <= target:
            continue
        items, base = _items(problem, options, resource, cell)
        taken = (knapsack or greedy_knapsack)(items, int((target - base) / cell) if target > base else 0)
        options = np.array(taken)
    return options


def greedy_knapsack(items: Items, capacity: int) -> list[int]:
    """Algorithm 1, each item's loop over capacities as one numpy operation.

    Args:
        items: see `Items`. capacity: in cells.

    Returns:
        How many items of each group are taken.
    """
    best = np.zeros(capacity + 1)
    kept = []
    for values, weights in items:
        count = np.zeros(capacity + 1, np.int32)
        for rank, (value, weight) in enumerate(zip(values, weights, strict=True)):
            if weight > capacity:
                break
            with_item = best[: capacity + 1 - weight] + value
            take = (with_item > best[weight:]) & (count[: capacity + 1 - weight] == rank)
            best[weight:] = np.where(take, with_item, best[weight:])
            count[weight:] = np.where(take, rank + 1, count[weight:])
        kept.append(count)
    taken = [0] * len(items)
    for group in range(len(items) - 1, -1, -1):
        taken[group] = int(kept[group][capacity])
        capacity -= sum(items[group][1][: taken[group]])
    return taken


def _items(problem: WidthProblem, options: Ints, resource: str, cell: float) -> tuple[Items, float]:
    """Items of every group up to its current option, and the cost that remains with all at their smallest."""
    widths = _widths(problem, options)
    items: Items = []
    base = _cost(problem, options, resource)
    for (name, group), top in zip(problem.groups.items(), options, strict=True):
        cost = produced(problem, name, group.widths[: top + 1], widths, resource)
        # Non-monotone tables: an item that costs nothing more has weight 0.
        cost = np.maximum.accumulate(cost)
        cells = np.ceil((cost - cost[0]) / cell - 1e-9).astype(int)
        items.append((np.diff(group.value[: top + 1]).tolist(), np.diff(cells).tolist()))
        base -= float(cost[-1] - cost[0])
    return items, base


def produced(problem: WidthProblem, name: str, options: Ints, widths: dict[str, int], resource: str) -> Floats:
    """(K,) cost of the layers that produce a group (or that only pass it on: norm, activation) at its options."""
    total = np.zeros(len(options))
    for cost in problem.costs:
        terms = cost.output or cost.inputs
        scale = sum(term.scale for term in terms if term.group == name)
        if cost.resource != resource or not scale:
            continue
        into, out = problem.in_width(cost, widths), problem.out_width(cost, widths)
        moved = scale * (options - widths[name])
        if not cost.output:
            total += cost.at(out, into + moved)[0]
        elif cost.inputs == cost.output:
            total += np.diagonal(cost.at(out + moved, into + moved))
        else:
            total += cost.at(out + moved, into)[:, 0]
    return total


def _widths(problem: WidthProblem, options: Ints) -> dict[str, int]:
    return {name: int(group.widths[k]) for (name, group), k in zip(problem.groups.items(), options, strict=True)}


def _cost(problem: WidthProblem, options: Ints, resource: str) -> float:
    widths = _widths(problem, options)
    return sum(
        float(cost.at(problem.out_width(cost, widths), problem.in_width(cost, widths))[0, 0])
        for cost in problem.costs
        if cost.resource == resource
    )
