"""The error for budgets that cannot be met: what can be reached, and which groups stand in the way."""

from __future__ import annotations

import numpy as np

from ..errors import InfeasibleError
from .elimination import Elimination
from .model import Model
from .problem import WidthProblem
from .tables import Ints


def infeasible(problem: WidthProblem, model: Model, proven: bool) -> InfeasibleError:
    """Explain why no choice was found. `minimum` is in the unit of the budget that the message names.

    If one budget by itself is too small, the minimum is the smallest cost that any choice has. If only
    together they cannot be met, it is what the second resource costs where the first is smallest.
    """
    plan = Elimination(model)
    runs = [plan.maximise(-row) for row in model.flat_cost]
    states = model.complete(np.stack([state for _, state, _ in runs], axis=1))
    _, costs = model.evaluate(states)
    for r, (resource, budget) in enumerate(problem.budgets.items()):
        bound = -runs[r][0]
        if bound > model.limit[r] + 1e-9 * max(1.0, abs(model.limit[r])):
            reached = float(costs[r, r] * model.scale[r])
            groups = _costly_groups(problem, resource, states[:, r])
            unit = f" {problem.unit}" if resource == "latency" else ""
            smallest = "the smallest is" if plan.exact else "the smallest found is"
            return InfeasibleError(
                f"no choice of widths has a {resource} within the budget of {_written(budget)}{unit}: {smallest} "
                f"{_written(reached)}, bounded by {', '.join(groups[:5])}; raise the budget, or allow smaller widths "
                "there",
                reached,
                groups,
            )
    over = np.maximum(costs - model.limit[:, None], 0.0)
    nearest = int(np.argmin(over.max(axis=0)))
    worst = int(np.argmax(over[:, nearest]))
    names = list(problem.budgets)
    reached = float(costs[worst, nearest] * model.scale[worst])
    groups = _costly_groups(problem, names[worst], states[:, nearest])
    budgets = ", ".join(f"{r} {_written(b)}" for r, b in problem.budgets.items())
    what = "no choice of widths meets" if proven else "no choice of widths was found, with the work allowed, to meet"
    return InfeasibleError(
        f"{what} the budgets ({budgets}) together: where {names[nearest]} is smallest, {names[worst]} is "
        f"{_written(reached)}; raise one of them, or allow smaller widths in {', '.join(groups[:5])}",
        reached,
        groups,
    )


def _written(amount: float) -> str:
    """Without an exponent where a reader would count: 46,160 and 4.0231."""
    return f"{amount:,.0f}" if 1000 <= abs(amount) < 1e15 else f"{amount:g}"


def _costly_groups(problem: WidthProblem, resource: str, state: Ints) -> tuple[str, ...]:
    """Groups by what the layers that produce them cost in a state, the most costly first."""
    widths = {name: int(g.widths[k]) for (name, g), k in zip(problem.groups.items(), state, strict=False)}
    home = problem.branch_of_cost()
    kept = {b.name for b, k in zip(problem.branches, state[len(widths) :], strict=False) if k == 1}
    share = dict.fromkeys(widths, 0.0)
    for index, cost in enumerate(problem.costs):
        if cost.resource == resource and (index not in home or home[index] in kept):
            there = float(cost.at(problem.out_width(cost, widths), problem.in_width(cost, widths))[0, 0])
            terms = cost.output or cost.inputs
            for term in terms:
                share[term.group] += there / len(terms)
    return tuple(sorted((g for g in share if share[g] > 0), key=lambda g: -share[g]))
