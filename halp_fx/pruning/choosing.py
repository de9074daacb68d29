"""What a step asks the solver, and what the solver chose."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

from ..coupling.residual import find_branches
from ..errors import InfeasibleError
from ..solver import Method, Solution, WidthProblem, restrict, solve
from ..solver.solution import BASELINES
from ..types import ChannelGroup, Coupling, Plan, scored_name
from .blocks import in_blocks
from .limits import Limit, limit_of
from .networks import Choice, Network
from .outcome import out_of_reach
from .published import RECIPES, published_problem, stem
from .request import Request
from .widths import COARSE, FINE, build_problem, width_options
from .yardstick import Yardstick

WORK, EXACT_WORK = 2.0, 10.0
"""Limits of a solution in a round, in about CPU seconds; the second where the caller asks for a proven one."""


@dataclass(frozen=True, slots=True)
class Question:
    """Which widths a scored network gets in a step that stops at `way` of the way, for a sum of layer costs that is
    `asked` for (None: what the calibration says)."""

    request: Request
    yardstick: Yardstick
    network: Network
    way: float
    asked: float | None = None

    def choose(self, floor: float) -> Choice:
        """The best widths within the budget, each at least `floor` of what is there if that can be.

        What layers add up to is not the network's cost, so nothing is said to be out of reach before the smallest
        network was tried: that is then the choice.

        Raises:
            InfeasibleError: several budgets, each of which can be met, but not together, or one of the further ones.
        """
        recipe = RECIPES.get(self.request.solver)
        method = cast(Method, self.request.solver) if recipe is None else recipe.method
        end = self._whole_way() if recipe is None and method not in BASELINES and self.way < 1 else None
        shares = dict.fromkeys((floor, 0.0) if recipe is None else (0.0,))
        tries = [(share, end) for share in shares] + ([] if end is None else [(0.0, None)])
        for share, within in tries:
            problem = self.problem(share)
            part = problem if within is None else _part_of(within, problem)
            try:
                work = EXACT_WORK if method == "exact" else WORK
                return Choice(solve(part, method, work, shared=self.yardstick.shared))
            except InfeasibleError as error:
                refused = error
        return Choice(self._smallest(problem, refused), refused)

    def _whole_way(self) -> Solution | None:
        """The widths for the whole budget by what is known now; None where it cannot be met."""
        problem = replace(self, way=1.0).problem(0.0)
        try:
            return solve(problem, "lagrangian", WORK, shared=self.yardstick.shared)
        except InfeasibleError:
            return None

    def _smallest(self, problem: WidthProblem, refused: InfeasibleError) -> Solution:
        """The widths that cost least of the steering resource, whatever the other budgets.

        Raises:
            InfeasibleError: it is another budget that cannot be met, or several together.
        """
        steering = {r: b for r, b in problem.budgets.items() if r in self.yardstick.steering}
        alone = replace(problem, budgets=steering)
        try:
            solve(alone, "lagrangian", WORK)
        except InfeasibleError as error:
            least = error.minimum
        else:
            raise out_of_reach(refused, self.yardstick, self.request) from refused
        if len(steering) == 1:
            try:
                return solve(replace(alone, budgets=dict.fromkeys(steering, least)), work_limit=WORK)
            except InfeasibleError:
                pass  # A hair below what can be reached: the bound of a relaxed problem.
        # A peak of memory, the largest of several moments, is smallest where every width is.
        widths = {name: int(group.widths[0]) for name, group in problem.groups.items()}
        value, costs = problem.evaluate(widths)
        return Solution(widths, value, costs, value, 0.0, 0.0, self.request.solver)

    def problem(self, floor: float) -> WidthProblem:
        """What the solver is asked; a group without scores keeps its width, and so does one that is held."""
        yardstick, saliency = self.yardstick, self.network.saliency
        assert saliency is not None
        values, recipe = saliency.known, RECIPES.get(self.request.solver)
        left, tables, branches = yardstick.left(self.network.plan)
        if recipe is None:  # What was not found again is not valued.
            branches = [b for b in branches if scored_name(b.name) in values]
        elif branches and self.network.coupling is not None:
            branches = list(find_branches(self.network.coupling).among(b.name for b in branches))
        options = in_blocks(options_of(left, self.network.plan, self.request, floor), yardstick.blocks)
        held = {name for name in options if name not in values or name in yardstick.held}
        if recipe is not None:
            first = stem(yardstick.coupling)
            held |= {first} if recipe.stem_stays and first in options else set()
        options |= {n: tuple(w for w in options[n] if w > 1) or options[n] for n in yardstick.several if n in options}
        options |= {name: options[name][-1:] for name in held}
        unit, limits = yardstick.goals.cost.unit, yardstick.limits(self.way, self.asked)
        if recipe is not None:
            return published_problem(left, saliency, options, tables, limits, unit, branches)
        return build_problem(
            left, values, options, tables, limits, unit, branches,
            silent=saliency.silent, evenness=saliency.evenness, uniform=saliency.uniform,
            dropping={} if saliency.uniform else saliency.without,
            prices=yardstick.prices(self.network.plan) if saliency.uniform else None,
        )  # fmt: skip


def _part_of(end: Solution, problem: WidthProblem) -> WidthProblem:
    """The problem of a step that takes nothing that stays at the end, as that is seen now. Narrow steps would otherwise
    spend on widths what branches, which go whole or not at all, give back later."""
    part = restrict(problem, minimum=end.widths)
    return replace(part, branches=tuple(b for b in part.branches if b.name in end.dropped))


def options_of(coupling: Coupling, plan: Plan, request: Request, floor: float = 0.0) -> dict[str, tuple[int, ...]]:
    """Widths per group, none wider than what is left of it."""
    left = coupling.widths(plan)
    options = {}
    steps = COARSE if request.goals.measured else FINE
    for group in coupling.prunable:
        now = left[group.name]
        least = math.ceil(now * floor)
        limit = limit_of(group, request.limits)
        if limit is not None:
            options[group.name] = _limited(group, limit, now, least, request.round_to, steps)
            continue
        widths = width_options(group, request.round_to, request.min_keep, floor=least, steps=steps)
        options[group.name] = tuple(sorted({w for w in widths if w <= now} | {now}))
    return options


def _limited(
    group: ChannelGroup, limit: Limit, now: int, floor: int, round_to: int | None, steps: int
) -> tuple[int, ...]:
    """Widths that the caller allows, from the first step on; those above a floor, where there are any."""
    least, most = limit.bounds(group)
    if least == most:
        return (min(least, now),)
    widths = limit.widths(group, [w for w in width_options(group, round_to, least, steps=steps) if w <= now])
    # Where no multiple lies between the bounds, they are the choice.
    found = widths or tuple(sorted({min(least, now), min(most, now)}))
    return tuple(w for w in found if w >= floor) or found[-1:]
