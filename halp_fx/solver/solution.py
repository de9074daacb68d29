"""`solve`: a width problem in, a certified choice out."""

from __future__ import annotations

import time
from typing import Literal, get_args

import numpy as np

from ..errors import InfeasibleError, ProblemError
from .baselines import solve_greedy, solve_uniform
from .exact import columns, solve_exact
from .halp import solve_halp
from .infeasible import infeasible
from .lagrangian import Bounded, bound_and_search
from .layout import Shared
from .local import Incumbent, widen
from .model import Model, relative_gap
from .problem import Solution, WidthProblem
from .released import solve_released
from .work import Work

Method = Literal["auto", "exact", "lagrangian", "halp", "released", "uniform", "greedy"]

BASELINES = ("halp", "released", "uniform", "greedy")
"""Methods that answer as published, whatever they leave of a budget."""

OPTIMAL = 1e-6
"""Relative gap called optimal: what HiGHS and sums of rounded numbers can tell apart."""

AT_ONCE = 2_000
"""Columns of a MILP that "auto" solves to the end, whatever the gap: mostly some tens of milliseconds. Of the five
steps of a ResNet-50 with branches two took half a second and a second and a half."""

WORTH = 4_000
"""Columns of the largest MILP that "auto" begins. Larger ones spent seconds and did not close their gap."""

NODES = 200
"""Nodes of its search tree; about a second."""

_NO_PROBLEM = (
    "solve takes a WidthProblem, not a {}: halp_fx.WidthProblem.from_json(path) reads one from a file (pathlib.Path), "
    "JSON text or a dict. To prune a network to a budget, call halp_fx.prune"
)


def solve(
    problem: WidthProblem,
    method: Method = "auto",
    work_limit: float = 10.0,
    gap: float = 1e-3,
    shared: Shared | None = None,
) -> Solution:
    """Choose the widths of greatest value that meet every budget.

    Args:
        problem: see `WidthProblem`.
        method: "lagrangian" (bound, local search), "exact" (that, then a MILP to the end), "auto" (the MILP where it
            is small, or the gap is above `gap` and it can be expected to help), or a baseline: "halp" (the published
            dynamic program in 30 steps), "released" (one step of it, as its authors' code takes it), "uniform",
            "greedy". Baselines report the Lagrangian bound too.
        work_limit: in units of about a CPU second each, counted in tables and nodes (`work`): the answer is the same on
            every machine, however busy. The best choice found by then is returned with its gap. It is looked at
            between steps, of which the longest (an elimination, the root of a MILP) takes about a second.
        gap: at which "auto" and "lagrangian" are content, relative as `Solution.gap` is.
        shared: what was made for the problem before, which this one may differ from in budgets and values; it is kept
            there for the next. The answer is the same without.

    Returns:
        A choice that meets every budget, with an upper bound that holds for all choices. Unless a baseline made it,
        nothing more fits: no group can be widened, and no branch return, within the budgets and for no less value.

    Raises:
        InfeasibleError: no choice meets the budgets (or, if the message says so, none was found within the limit).
        ProblemError: `problem` is none; unknown method, unusable limit or gap, or several budgets with "halp" or
            "released". Malformed problems are refused on construction.
    """
    if not isinstance(problem, WidthProblem):
        raise ProblemError(_NO_PROBLEM.format(type(problem).__name__))
    if method not in get_args(Method):
        raise ProblemError(f"method {method!r} is not one of {', '.join(get_args(Method))}")
    if not work_limit > 0 or not gap >= 0:
        raise ProblemError(f"work_limit is {work_limit} and gap {gap}: give a limit > 0 and a gap >= 0")
    start = time.perf_counter()
    shared = Shared() if shared is None else shared
    model = shared.compiled(problem)
    free = len(problem.groups) + len(problem.branches)
    work = Work(work_limit)
    incumbent = Incumbent(model, work)
    if method in BASELINES:
        _baseline(problem, model, method, incumbent)
        # The bound is searched for apart, or it would improve the baseline's answer.
        searched = Incumbent(model, work)
    else:
        searched = incumbent
    wanted = OPTIMAL / 10 if method == "exact" else gap
    found = bound_and_search(model, searched, free, wanted, plan=shared.steps(model))
    upper, cut = _finish(found, searched, free, method, gap)
    if searched.state is None:
        raise infeasible(problem, model, proven=upper == -np.inf)
    if incumbent.state is None:
        raise InfeasibleError(
            f"method {method!r} found no choice within the budgets, though there is one: use 'auto'", np.nan
        )
    if incumbent is searched:
        number = {name: v for v, name in enumerate(problem.groups)}
        inside = {len(number) + i: [number[g] for g in b.groups] for i, b in enumerate(problem.branches)}
        widen(incumbent, len(number), inside)
    return _solution(problem, incumbent, upper, method, gap, time.perf_counter() - start, cut)


def _finish(found: Bounded, incumbent: Incumbent, free: int, method: str, gap: float) -> tuple[float, bool]:
    """The MILP on what the Lagrangian method left, where the method asks for it; returns the upper bound, and whether
    a limit ended the search."""
    cut = incumbent.work.spent
    if found.reduced is None:
        return found.upper, cut
    unsolved, size = incumbent.state is None, columns(found.reduced)
    wanted = OPTIMAL if method == "exact" or (method == "auto" and size <= AT_ONCE) else gap
    begin = method == "exact" or (method == "auto" and size <= WORTH)
    if not unsolved and not (begin and relative_gap(incumbent.value, found.upper) > wanted):
        return found.upper, cut
    most = np.inf if method == "exact" else NODES
    return solve_exact(found.reduced, free, incumbent, wanted / 2, found.upper, most)


def _baseline(problem: WidthProblem, model: Model, method: Method, incumbent: Incumbent) -> None:
    if method == "uniform":
        solve_uniform(model, [group.widths for group in problem.groups.values()], incumbent)
    elif method == "greedy":
        solve_greedy(model, len(problem.groups), incumbent)
    elif method == "halp":
        solve_halp(problem, model, incumbent)
    else:
        solve_released(problem, model, incumbent)


def _solution(
    problem: WidthProblem, incumbent: Incumbent, upper: float, method: str, wanted: float, seconds: float, cut: bool
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
    model = incumbent.model
    gap = relative_gap(incumbent.value, upper)
    upper = max(model.least + model.span * upper, value)
    status = "optimal" if gap <= OPTIMAL else "within_gap" if gap <= wanted else "feasible"
    limited = cut and gap > (OPTIMAL if method == "exact" else wanted)
    return Solution(widths, value, costs, upper, gap, seconds, method, dropped, status, incumbent.work.done, limited)
