"""`solve`: a width problem in, a certified choice out."""

from __future__ import annotations

import time
from typing import Literal, get_args

import numpy as np

from ..errors import InfeasibleError, ProblemError
from .baselines import solve_greedy, solve_uniform
from .elimination import Elimination
from .exact import solve_exact
from .halp import solve_halp
from .lagrangian import Bounded, bound_and_search, smallest_costs
from .local import Incumbent
from .model import Model, compile_problem
from .problem import Solution, WidthProblem

Method = Literal["auto", "exact", "lagrangian", "halp", "uniform", "greedy"]

OPTIMAL = 1e-6
"""Relative gap called optimal: what HiGHS and sums of rounded numbers can tell apart."""


def solve(
    problem: WidthProblem, method: Method = "auto", time_limit: float = 10.0, gap: float = 1e-3
) -> Solution:
    """Choose the widths of greatest value that meet every budget.

    Args:
        problem: see `WidthProblem`.
        method: "lagrangian" (bound, local search), "exact" (that, then a MILP to the end), "auto" (the MILP
            only while the gap is above `gap`), or a baseline: "halp" (the published dynamic program),
            "uniform", "greedy". Baselines report the Lagrangian bound too. time_limit: seconds; the best
            choice found by then is returned with its gap. gap: relative gap at which "auto" and
            "lagrangian" are content.

    Returns:
        A choice that meets every budget, with an upper bound that holds for all choices.

    Raises:
        InfeasibleError: no choice meets the budgets (or, if the message says so, none was found in time).
        ProblemError: unknown method or unusable time limit or gap; malformed problems are refused on
        construction.
    """
    if method not in get_args(Method):
        raise ProblemError(f"method {method!r} is not one of {', '.join(get_args(Method))}")
    if not time_limit > 0 or not gap >= 0:
        raise ProblemError(f"time_limit is {time_limit} and gap {gap}: give seconds > 0 and a gap >= 0")
    start = time.perf_counter()
    model = compile_problem(problem)
    free = len(problem.groups) + len(problem.branches)
    incumbent = Incumbent(model, start + time_limit)
    plan = Elimination(model)
    _check_each_budget(problem, model, plan, incumbent)
    if method in ("uniform", "greedy", "halp"):
        found = _baseline(problem, model, method, incumbent, free)
    else:
        found = bound_and_search(model, incumbent, free, gap if method != "exact" else OPTIMAL / 10)
    upper = found.upper
    wanted = OPTIMAL if method == "exact" else gap
    if method in ("auto", "exact") and found.reduced is not None and _gap(incumbent.value, upper) > wanted:
        upper = max(
            solve_exact(found.reduced, free, incumbent, min(wanted, 1e-3) / 10, upper), incumbent.value
        )
    if incumbent.state is None:
        raise _none_found(problem, model, free, incumbent, proven=found.infeasible or upper == -np.inf)
    return _solution(problem, incumbent, upper, method, gap, time.perf_counter() - start)


def _baseline(
    problem: WidthProblem, model: Model, method: Method, incumbent: Incumbent, free: int
) -> Bounded:
    """Run a baseline; the bound comes from a search of its own, which must not improve the baseline's answer."""
    if method == "uniform":
        solve_uniform(model, [group.widths for group in problem.groups.values()], incumbent)
    elif method == "greedy":
        solve_greedy(model, len(problem.groups), incumbent)
    else:
        solve_halp(problem, model, incumbent)
    other = Incumbent(model, incumbent.stop_at)
    return bound_and_search(model, other, free, 1e-3)


def _gap(value: float, upper: float) -> float:
    if upper <= value:
        return 0.0
    return float((upper - value) / max(abs(upper), 1e-300))


def _solution(
    problem: WidthProblem, incumbent: Incumbent, upper: float, method: str, wanted: float, seconds: float
) -> Solution:
    assert incumbent.state is not None
    groups = len(problem.groups)
    dropped = tuple(
        b.name for b, k in zip(problem.branches, incumbent.state[groups:], strict=False) if k == 0
    )
    gone = {name for b in problem.branches if b.name in dropped for name in b.groups}
    widths = {
        name: 0 if name in gone else int(group.widths[k])
        for (name, group), k in zip(problem.groups.items(), incumbent.state, strict=False)
    }
    value, costs = problem.evaluate(widths, dropped)
    upper = max(upper, value)
    gap = _gap(value, upper)
    status = "optimal" if gap <= OPTIMAL else "within_gap" if gap <= wanted else "feasible"
    return Solution(widths, value, costs, upper, gap, seconds, method, dropped, status)


def _check_each_budget(problem: WidthProblem, model: Model, plan: Elimination, incumbent: Incumbent) -> None:
    """Refuse a budget below the smallest cost that any choice has, and offer the cheapest choices."""
    smallest, states = smallest_costs(model, plan)
    _, costs = incumbent.offer(states) if states.shape[1] else (None, smallest[None])
    slack = 1e-9 * np.maximum(1.0, np.abs(model.limit))
    for r, (resource, budget) in enumerate(problem.budgets.items()):
        if smallest[r] > model.limit[r] + slack[r]:
            # Without an exact plan the bound proves that the budget is too small, the choice says what is
            # reached.
            reached = float((smallest if plan.exact else costs[:, r])[r] * model.scale[r])
            groups = _costly_groups(problem, resource, states[:, r])
            raise InfeasibleError(
                f"no choice of widths has a {resource} within the budget of {budget:g}{_unit(problem, resource)}: "
                f"the smallest is {reached:g}, bounded by {', '.join(groups[:5])}; raise the budget, or allow "
                "smaller widths there",
                reached,
                groups,
            )


def _none_found(
    problem: WidthProblem, model: Model, free: int, incumbent: Incumbent, proven: bool
) -> InfeasibleError:
    """The error for budgets that each can be met but, it seems, not together."""
    budgets = ", ".join(f"{r} {b:g}" for r, b in problem.budgets.items())
    states = smallest_costs(model, Elimination(model))[1]
    _, costs = model.evaluate(states)
    over = np.maximum(costs - model.limit[:, None], 0.0)
    nearest = int(np.argmin(over.max(axis=0)))
    resource_index = int(np.argmax(over[:, nearest]))
    resource = list(problem.budgets)[resource_index]
    reached = float(costs[resource_index, nearest] * model.scale[resource_index])
    groups = _costly_groups(problem, resource, states[:, nearest])
    what = (
        "no choice of widths meets"
        if proven
        else "within the time limit no choice of widths was found to meet"
    )
    return InfeasibleError(
        f"{what} the budgets ({budgets}) together, though each alone can be met: with the smallest "
        f"{list(problem.budgets)[nearest]} the {resource} is {reached:g}",
        reached,
        groups,
    )


def _costly_groups(problem: WidthProblem, resource: str, state: np.ndarray) -> tuple[str, ...]:
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


def _unit(problem: WidthProblem, resource: str) -> str:
    return f" {problem.unit}" if resource == "latency" else ""
