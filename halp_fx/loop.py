"""The steps that shrink a network, and the closing loop that meets the budget when measured.

The solver always works on the channel groups of the *original* network, with options no wider than what earlier
steps left: so one set of latency tables serves every step. Saliency is scored on the network as it stands.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import nn

from .analysis import channel_groups
from .branches import output_groups
from .errors import InfeasibleError
from .request import Request
from .residual import find_branches
from .rewriting import rewrite
from .saliency import Saliency, score
from .solver import Solution, WidthProblem, solve
from .types import Coupling, Plan
from .widths import build_problem, compose, plan_from, width_options
from .yardstick import Yardstick

logger = logging.getLogger("halp_fx")

MAX_ROUNDS = 3
"""Candidates that are measured while closing in on the budget."""

STEP_FACTOR = 0.7
"""With data, one step stops at about this share of the cost: additive saliency is a local model."""

STEP_FLOOR = 0.5
"""An early step leaves each group at least this share of its channels, where the budget allows it."""


@dataclass(slots=True)
class Clock:
    """Wall-clock seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Network:
    """A network on its way: the model, and the plan that leads to it from the original; when it has been scored,
    its own coupling and saliency."""

    model: nn.Module
    plan: Plan
    coupling: Coupling | None = None
    saliency: Saliency | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What the solver chose. If by the prediction no network meets the budget that is the smallest, and `refused` says
    why."""

    solution: Solution
    refused: InfeasibleError | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rewritten network; predicted and measured are shares of the dense network's end-to-end cost, `total` is the
    sum of its layers' costs in the unit of the cost."""

    network: Network
    total: float
    predicted: float
    measured: float
    choice: Choice

    @property
    def smallest(self) -> bool:
        """Whether it is the smallest network because by the prediction none meets the budget."""
        return self.choice.refused is not None

    def deviation(self, fraction: float) -> float:
        """From a budget that is this share of dense, relative to it; positive: over it."""
        return self.measured / fraction - 1


def step(network: Network, request: Request, yardstick: Yardstick, way: float, clock: Clock) -> Network:
    """One step of several: stop at `way` of the way."""
    network = _scored(network, yardstick, request, clock)
    smaller, _ = _within_reach(network, request, yardstick, way, clock, floor=STEP_FLOOR)
    return smaller


def close(network: Network, request: Request, yardstick: Yardstick, clock: Clock) -> list[Candidate]:
    """The last step: solve, rewrite, measure; correct the calibration and repeat while the budget is missed."""
    network = _scored(network, yardstick, request, clock)
    candidates: list[Candidate] = []
    while len(candidates) < MAX_ROUNDS:
        try:
            shrink = _solve_and_rewrite if candidates else _within_reach
            smaller, choice = shrink(network, request, yardstick, 1.0, clock)
        except InfeasibleError:
            if candidates:  # Several budgets, within reach by the first calibration: keep what was found.
                break
            raise
        if candidates and smaller.plan == candidates[-1].network.plan:
            break  # No finer choice of widths.
        total = yardstick.total(smaller.plan)
        with clock("measure"):
            measured = yardstick.measure(smaller.plan, smaller.model)
        candidate = Candidate(smaller, total, yardstick.predict(total), measured, choice)
        candidates.append(candidate)
        logger.info(
            "budget %.1f %% of dense, predicted %.1f %%, measured %.1f %%",
            *(100 * share for share in (yardstick.fraction, candidate.predicted, measured)),
        )
        if not yardstick.goals.measured or abs(candidate.deviation(yardstick.fraction)) <= request.tolerance:
            break
        yardstick.learn(total, measured)
    return candidates


def best_of(candidates: Sequence[Candidate], fraction: float, tolerance: float) -> Candidate:
    """The candidate closest to the budget; one that keeps it (within the tolerance) before one that does not."""
    return min(candidates, key=lambda c: (c.deviation(fraction) > tolerance, abs(c.deviation(fraction))))


def _scored(network: Network, yardstick: Yardstick, request: Request, clock: Clock) -> Network:
    """Score the network as it stands: its groups, and the channels that its removable branches add."""
    with clock("score"):
        left, _, branches = yardstick.left(network.plan)
        scored = now = _present(network, left, request)
        if branches:
            here = find_branches(now).named(b.name for b in branches)
            scored = replace(now, groups=(*now.groups, *output_groups(here)))
        saliency = score(network.model, scored, request.data, request.loss_fn, request.importance, loss=request.loss)
    return replace(network, coupling=now, saliency=saliency)


def _present(network: Network, left: Coupling, request: Request) -> Coupling:
    """The coupling of the network as it stands. Groups are frozen that the original coupling does not let shrink
    (ignored by the caller), or that a dropped branch held together and are other groups now."""
    if not network.plan:
        return left
    now = channel_groups(network.model, request.example, like=left)
    widths = left.widths(network.plan)
    known = {(g.name, widths[g.name]) for g in left.prunable}
    groups = tuple(
        g if g.frozen or (g.name, g.size) in known else replace(g, frozen="frozen in the original network")
        for g in now.groups
    )
    return replace(now, groups=groups)


def _within_reach(
    network: Network, request: Request, yardstick: Yardstick, way: float, clock: Clock, floor: float = 0.0
) -> tuple[Network, Choice]:
    """As `_solve_and_rewrite`; where the tables say that no network meets the budget, the smallest is measured first:
    the calibration learns from it, and whoever trains between steps hears in time that the budget is out of reach.

    Raises:
        InfeasibleError: the smallest network is above the budget.
    """
    smaller, choice = _solve_and_rewrite(network, request, yardstick, way, clock, floor)
    if choice.refused is None:
        return smaller, choice
    with clock("measure"):
        measured = yardstick.measure(smaller.plan, smaller.model)
    if measured > yardstick.fraction * (1 + request.tolerance):
        raise _out_of_reach(choice.refused, yardstick, measured) from choice.refused
    yardstick.learn(yardstick.total(smaller.plan), measured)
    return _solve_and_rewrite(network, request, yardstick, way, clock, floor)


def _solve_and_rewrite(
    network: Network, request: Request, yardstick: Yardstick, way: float, clock: Clock, floor: float = 0.0
) -> tuple[Network, Choice]:
    """Widths for a step that stops at `way` of the way, and the network that has them.

    Args:
        floor: no group loses more than this share of its present channels, as long as that can be met.
    """
    assert network.saliency is not None
    assert network.coupling is not None
    with clock("solve"):
        choice = _choose(network, request, yardstick, way, floor)
    with clock("rewrite"):
        solution = choice.solution
        step = plan_from(network.coupling, network.saliency.scores, solution.widths, solution.dropped)
        small = rewrite(network.model, step, request.example, coupling=network.coupling)
    return Network(small, compose(network.plan, step), saliency=network.saliency), choice


def _choose(network: Network, request: Request, yardstick: Yardstick, way: float, floor: float) -> Choice:
    """The best widths within the budget, each at least `floor` of what is there if that can be.

    What layers add up to is not the network's time, so no time is said to be out of reach before the smallest network
    was tried: that is then the choice.

    Raises:
        InfeasibleError: no widths meet the budgets, and they are counted and not measured, or several.
    """
    for share in dict.fromkeys((floor, 0.0)):
        problem = _problem(network, request, yardstick, way, share)
        try:
            return Choice(solve(problem, method=request.solver))
        except InfeasibleError as error:
            refused = error
    if not yardstick.goals.measured or len(problem.budgets) > 1 or not math.isfinite(refused.minimum):
        raise _out_of_reach(refused, yardstick) from refused
    least = replace(problem, budgets=dict.fromkeys(problem.budgets, refused.minimum))
    try:
        return Choice(solve(least), refused)
    except InfeasibleError:
        raise _out_of_reach(refused, yardstick) from refused


def _problem(network: Network, request: Request, yardstick: Yardstick, way: float, floor: float) -> WidthProblem:
    """What the solver is asked; a group without scores keeps its width."""
    assert network.saliency is not None
    scores = network.saliency.scores
    left, tables, branches = yardstick.left(network.plan)
    options = options_of(left, network.plan, request, floor)
    options |= {name: widths[-1:] for name, widths in options.items() if name not in scores}
    unit = yardstick.goals.cost.unit
    return build_problem(
        left, scores, options, tables, yardstick.spend(way), unit, branches, silent=network.saliency.silent
    )


def options_of(coupling: Coupling, plan: Plan, request: Request, floor: float = 0.0) -> dict[str, tuple[int, ...]]:
    """Widths per group, none wider than what is left of it."""
    left = coupling.widths(plan)
    options = {}
    for group in coupling.prunable:
        now = left[group.name]
        least = math.ceil(now * floor)
        widths = width_options(group, request.round_to, request.min_keep, floor=least)
        options[group.name] = tuple(sorted({w for w in widths if w <= now} | {now}))
    return options


def _out_of_reach(error: InfeasibleError, yardstick: Yardstick, measured: float | None = None) -> InfeasibleError:
    """The error in the user's unit.

    Args:
        measured: share of dense that the smallest network was found to take.
    """
    if len(yardstick.goals.further) or not math.isfinite(error.minimum):
        return error  # Which of several budgets it is, or that the method found nothing, the solver says itself.
    unit, share = yardstick.goals.cost.unit, yardstick.predict(error.minimum) if measured is None else measured
    least = share * yardstick.dense
    how = f"is about {least:.4g} {unit}" if measured is None else f"takes {least:.4g} {unit}, measured"
    groups = f" Groups that bound it: {', '.join(error.groups[:5])}." if error.groups else ""
    return InfeasibleError(
        f"a budget of {yardstick.fraction * yardstick.dense:.4g} {unit} cannot be reached: the smallest that min_keep "
        f"and round_to allow {how} ({share:.1%} of dense).{groups}",
        least,
        error.groups,
    )


def schedule(request: Request, yardstick: Yardstick) -> list[float]:
    """Shares of the way (in the logarithm of the cost) at which the steps stop; the last is 1."""
    steps = request.steps
    if steps is None:
        renewed = request.data is not None or request.train_between is not None
        wanted = math.ceil(math.log(min(yardstick.fraction, 1.0)) / math.log(STEP_FACTOR))
        steps = max(1, wanted) if renewed else 1
    return [(i + 1) / steps for i in range(steps)]
