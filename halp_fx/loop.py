"""The steps that shrink a network, and the closing loop that meets the budget when measured.

The solver always works on the channel groups of the *original* network, with options no wider than what earlier
steps left: so one set of latency tables serves every step. Saliency is scored on the network as it stands.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import nn

from .analysis import channel_groups
from .errors import InfeasibleError
from .goals import Goals
from .latency import Calibration
from .request import Request
from .rewriting import rewrite
from .saliency import Saliency, score
from .solver import Solution, solve
from .types import Coupling, Plan
from .widths import build_problem, compose, plan_from, width_options

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
    """A network on its way: the model, and the plan that leads to it from the original."""

    model: nn.Module
    plan: Plan
    saliency: Saliency | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rewritten network with its figures, in the unit of the steering cost."""

    network: Network
    dense: float
    budget: float
    predicted: float
    measured: float
    solution: Solution

    @property
    def deviation(self) -> float:
        """Relative to the budget; positive: over it."""
        return self.measured / self.budget - 1


def step(
    network: Network, coupling: Coupling, request: Request, calibration: Calibration, share: float, clock: Clock
) -> Network:
    """One step of several: stop at `share` of the way, then let the caller train."""
    goals = request.goals
    dense = calibration.predict(goals.cost.total(coupling))
    target = dense * (goals.budget.target(dense) / dense) ** share
    network = _scored(network, coupling, request, clock)
    spend = goals.spend(coupling, calibration.budget_for(target), share)
    smaller, _ = _solve_and_rewrite(network, coupling, request, spend, clock, floor=STEP_FLOOR)
    if request.train_between is not None:
        with clock("train_between"):
            request.train_between(smaller.model)
    return smaller


def close(
    dense_model: nn.Module,
    network: Network,
    coupling: Coupling,
    request: Request,
    calibration: Calibration,
    clock: Clock,
    share: float,
) -> list[Candidate]:
    """The last step: solve, rewrite, measure; correct the calibration and repeat while the budget is missed."""
    goals = request.goals
    network = _scored(network, coupling, request, clock)
    candidates: list[Candidate] = []
    dense = calibration.predict(goals.cost.total(coupling))
    while True:
        budget = goals.budget.target(dense)
        spend = goals.spend(coupling, calibration.budget_for(budget), share)
        try:
            smaller, solution = _solve_and_rewrite(
                network, coupling, request, spend, clock, budget=(budget, calibration)
            )
        except InfeasibleError:
            if candidates:  # Reachable by the first calibration, not by the corrected one: keep what was found.
                return candidates
            raise
        widths = coupling.widths(smaller.plan)
        total = goals.cost.total(coupling, widths)
        with clock("measure"):
            dense, measured = goals.measure(coupling, widths, dense_model, smaller.model, request.inputs)
        budget = goals.budget.target(dense)
        candidate = Candidate(smaller, dense, budget, calibration.predict(total), measured, solution)
        candidates.append(candidate)
        logger.info("budget %.4g, predicted %.4g, measured %.4g", budget, candidate.predicted, measured)
        if not goals.measured or abs(candidate.deviation) <= request.tolerance or len(candidates) == MAX_ROUNDS:
            return candidates
        calibration = calibration.with_point(total, measured, dense)


def _scored(network: Network, coupling: Coupling, request: Request, clock: Clock) -> Network:
    """Score the network as it stands."""
    with clock("score"):
        now = coupling if not network.plan else channel_groups(network.model, request.example, like=coupling)
        now = _only(now, {g.name for g in coupling.prunable})
        saliency = score(network.model, now, request.data, request.loss_fn, request.importance)
    return replace(network, saliency=saliency)


def _only(coupling: Coupling, names: set[str]) -> Coupling:
    """Freeze the groups that the original coupling does not let shrink (ignored by the caller)."""
    groups = tuple(
        g if g.name in names or g.frozen else replace(g, frozen="frozen in the original network")
        for g in coupling.groups
    )
    return replace(coupling, groups=groups)


def _solve_and_rewrite(
    network: Network,
    coupling: Coupling,
    request: Request,
    spend: Mapping[str, float],
    clock: Clock,
    floor: float = 0.0,
    budget: tuple[float, Calibration] | None = None,
) -> tuple[Network, Solution]:
    """Widths within `spend`, and the network that has them.

    Args:
        floor: no group loses more than this share of its present channels, as long as that can be met.
        budget: end-to-end budget and calibration, to say in the user's unit what the minimum is.
    """
    assert network.saliency is not None
    goals, scores = request.goals, network.saliency.scores
    with clock("time layers"):
        tables = goals.tables(coupling, _options(coupling, network.plan, request, 0.0))
    with clock("solve"):
        solution = None
        for share in dict.fromkeys((floor, 0.0)):
            options = _options(coupling, network.plan, request, share)
            problem = build_problem(coupling, scores, options, tables, spend, goals.cost.unit)
            try:
                solution = solve(problem, method=request.solver)
                break
            except InfeasibleError as error:
                if share == 0.0:
                    raise _out_of_reach(error, goals, coupling, budget) from error
    assert solution is not None
    with clock("rewrite"):
        now = coupling if not network.plan else channel_groups(network.model, request.example, like=coupling)
        step = plan_from(_only(now, set(scores)), scores, solution.widths)
        small = rewrite(network.model, step, request.example, coupling=now)
    return Network(small, compose(network.plan, step), network.saliency), solution


def _options(coupling: Coupling, plan: Plan, request: Request, floor: float) -> dict[str, tuple[int, ...]]:
    """Widths per group, none wider than what is left of it."""
    left = coupling.widths(plan)
    options = {}
    for group in coupling.prunable:
        now = left[group.name]
        least = math.ceil(now * floor)
        widths = width_options(group, request.round_to, request.min_keep, floor=least)
        options[group.name] = tuple(sorted({w for w in widths if w <= now} | {now}))
    return options


def _out_of_reach(
    error: InfeasibleError, goals: Goals, coupling: Coupling, budget: tuple[float, Calibration] | None
) -> InfeasibleError:
    if budget is None:
        return error
    target, calibration = budget
    least, dense = calibration.predict(error.minimum), calibration.predict(goals.cost.total(coupling))
    groups = f" Groups that bound it: {', '.join(error.groups[:5])}." if error.groups else ""
    return InfeasibleError(
        f"a budget of {target:.4g} {goals.cost.unit} cannot be reached: the smallest that min_keep and round_to "
        f"allow is about {least:.4g} {goals.cost.unit} ({least / dense:.1%} of dense).{groups}",
        least,
        error.groups,
    )


def schedule(request: Request, coupling: Coupling, calibration: Calibration) -> list[float]:
    """Shares of the way (in the logarithm of the cost) at which the steps stop; the last is 1."""
    dense = calibration.predict(request.goals.cost.total(coupling))
    fraction = min(request.goals.budget.target(dense) / dense, 1.0)
    steps = request.steps
    if steps is None:
        renewed = request.data is not None or request.train_between is not None
        steps = max(1, math.ceil(math.log(fraction) / math.log(STEP_FACTOR))) if renewed else 1
    return [(i + 1) / steps for i in range(steps)]
