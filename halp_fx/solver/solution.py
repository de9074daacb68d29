"""`solve`: a width problem in, a certified choice out."""

from __future__ import annotations

import time
from typing import Literal, get_args

import numpy as np

from ..errors import InfeasibleError, ProblemError
from .baselines import solve_greedy, solve_uniform
from .exact import solve_exact
from .halp import solve_halp
from .infeasible import infeasible
from .lagrangian import bound_and_search
from .local import Incumbent
from .model import Model, compile_problem
from .problem import Solution, WidthProblem

Method = Literal["auto", "exact", "lagrangian", "halp", "uniform", "greedy"]

OPTIMAL = 1e-6
"""Relative gap called optimal: what HiGHS and sums of rounded numbers can tell apart."""


def solve(problem: WidthProblem, method: Method = "auto", time_limit: float = 10.0, gap: float = 1e-3) -> Solution:
    """Choose the widths of greatest value that meet every budget.

    Args:
        problem: see `WidthProblem`.
        method: "lagrangian" (bound, local search), "exact" (that, then a MILP to the end), "auto" (the MILP
            only while the gap is above `gap`), or a baseline: "halp" (the published dynamic program),
            "uniform", "greedy". Baselines report the Lagrangian bound too.
        time_limit: seconds; the best choice found by then is returned with its gap. It is looked at between
            steps, the longest of which (one elimination) takes about a second.
        gap: relative gap at which "auto" and "lagrangian" are content.

    Returns:
        A choice that meets every budget, with an upper bound that holds for all choices.

    Raises:
        InfeasibleError: no choice meets the budgets (or, if the message says so, none was found in time).
        ProblemError: unknown method, unusable time limit or gap, or several budgets with "halp". Malformed
            problems are refused on construction.
    """
    if method not in get_args(Method):
        raise ProblemError(f"method {method!r} is not one of {', '.join(get_args(Method))}")
    if not time_limit > 0 or not gap >= 0:
        raise ProblemError(f"time_limit is {time_limit} and gap {gap}: give seconds > 0 and a gap >= 0")
    start = time.perf_counter()
    model = compile_problem(problem)
    free = len(problem.groups) + len(problem.branches)
    incumbent = Incumbent(model, start + time_limit)
    if method in ("uniform", "greedy", "halp"):
        _baseline(problem, model, method, incumbent)
        # The bound is searched for apart, or it would improve the baseline's answer.
        searched = Incumbent(model, incumbent.stop_at)
    else:
        searched = incumbent
    found = bound_and_search(model, searched, free, OPTIMAL / 10 if method == "exact" else gap)
    upper = found.upper
    wanted = OPTIMAL if method == "exact" else gap
    more = method in ("auto", "exact") and _gap(searched.value, upper) > wanted
    if found.reduced is not None and (more or searched.state is None):
        upper = solve_exact(found.reduced, free, searched, min(wanted, 1e-3) / 10, upper)
    if searched.state is None:
        raise infeasible(problem, model, proven=upper == -np.inf)
    if incumbent.state is None:
        raise InfeasibleError(
            f"method {method!r} found no choice within the budgets, though there is one: use 'auto'", np.nan
        )
    return _solution(problem, incumbent, upper, method, gap, time.perf_counter() - start)


def _baseline(problem: WidthProblem, model: Model, method: Method, incumbent: Incumbent) -> None:
    if method == "uniform":
        solve_uniform(model, [group.widths for group in problem.groups.values()], incumbent)
    elif method == "greedy":
        solve_greedy(model, len(problem.groups), incumbent)
    else:
        solve_halp(problem, model, incumbent)


def _gap(value: float, upper: float) -> float:
    if upper <= value:
        return 0.0
    return float((upper - value) / max(abs(upper), 1e-300))


def _solution(
    problem: WidthProblem, incumbent: Incumbent, upper: float, method: str, wanted: float, seconds: float
) -> Solution:
    assert incumbent.state is not None
    groups = len(problem.groups)
    dropped = tuple(b.name for b, k in zip(problem.branches, incumbent.state[groups:], strict=False) if k == 0)
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
