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

from ..coupling.branches import output_groups
from ..coupling.residual import find_branches
from ..errors import InfeasibleError, RewriteError
from ..rewriting.applying import rewrite
from ..scoring.recalibrating import recalibrate
from ..scoring.saliency import Saliency, score
from ..solver import Solution, WidthProblem, solve
from ..trials.trials import channel_groups
from ..types import Coupling, Plan
from .goals import EXACT
from .outcome import out_of_reach
from .request import Request
from .widths import COARSE, FINE, build_problem, compose, plan_from, width_options
from .yardstick import Yardstick

logger = logging.getLogger("halp_fx")

MAX_ROUNDS = 4
"""Candidates that are measured while closing in on the budget."""

STEP_FACTOR = 0.85
"""With data, one step stops at about this share of the cost: saliency is a local model. In four steps instead of twelve
to 20 % of the MACs, inverted residuals lost 7 points (docs/benchmarks_accuracy.md)."""


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
    sum of its layers' costs in the unit of the cost. `busy` and `scatter` are of its measurement (`Yardstick`)."""

    network: Network
    total: float
    predicted: float
    measured: float
    choice: Choice
    busy: str = ""
    scatter: float = 0.0

    @property
    def smallest(self) -> bool:
        """Whether it is the smallest network because by the prediction none meets the budget."""
        return self.choice.refused is not None

    def deviation(self, fraction: float) -> float:
        """From a budget that is this share of dense, relative to it; positive: over it."""
        return self.measured / fraction - 1

    def keeps(self, fraction: float, slack: float) -> bool:
        """Whether it meets a budget that is this share of dense; what is slower than the dense network never does."""
        return self.deviation(fraction) <= slack and self.measured <= 1.0


def step(network: Network, request: Request, yardstick: Yardstick, way: float, clock: Clock) -> Network:
    """One step of several: stop at `way` of the way."""
    network = _scored(network, yardstick, request, clock)
    smaller, _ = _within_reach(network, request, yardstick, way, clock, floor=STEP_FLOOR)
    return smaller


def close(network: Network, request: Request, yardstick: Yardstick, clock: Clock) -> list[Candidate]:
    """The last step: solve, rewrite, measure; correct the calibration and repeat while the budget is missed.

    Raises:
        InfeasibleError: the smallest network is above the budget.
    """
    if yardstick.met_already and not network.plan:
        return [_unchanged(network, request, yardstick, clock)]
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
        if any(smaller.plan == known.network.plan for known in candidates):
            break  # No finer choice of widths.
        total = _predicted_total(smaller.plan, choice, yardstick)
        with clock("measure"):
            measured = yardstick.measure(smaller.plan, smaller.model)
        if yardstick.met_already and not network.plan:
            # It was disturbed when it was first timed.
            return [_unchanged(network, request, yardstick, clock)]
        predicted = yardstick.predict(total)
        candidate = Candidate(smaller, total, predicted, measured, choice, yardstick.busy, yardstick.scatter)
        candidates.append(candidate)
        logger.info(
            "budget %.1f %% of dense, predicted %.1f %%, measured %.1f %%",
            *(100 * share for share in (yardstick.fraction, candidate.predicted, measured)),
        )
        if _settled(candidate, request, yardstick):
            break
        yardstick.learn(total, measured)
    _check_reach(candidates, request, yardstick)
    return candidates


def best_of(candidates: Sequence[Candidate], fraction: float, slack: float) -> Candidate:
    """The candidate closest to the budget; one that keeps it (within the slack) before one that does not."""
    return min(candidates, key=lambda c: (not c.keeps(fraction, slack), abs(c.deviation(fraction))))


def _settled(candidate: Candidate, request: Request, yardstick: Yardstick) -> bool:
    """Whether another round would be in vain."""
    deviation = candidate.deviation(yardstick.fraction)
    if yardstick.goals.measured:
        return abs(deviation) <= request.tolerance
    # Where the tables add up to the cost, what the solver leaves of the budget is less than its next step.
    exact = abs(candidate.predicted / candidate.measured - 1) <= EXACT
    return deviation <= EXACT and (exact or deviation >= -request.tolerance)


def _predicted_total(plan: Plan, choice: Choice, yardstick: Yardstick) -> float:
    """The sum of the layers' costs as the solver's tables have it: for a counted cost that need not be the cost."""
    cost = yardstick.goals.cost
    if yardstick.goals.measured or cost.resource not in choice.solution.costs:
        return yardstick.total(plan)
    return choice.solution.costs[cost.resource]


def _unchanged(network: Network, request: Request, yardstick: Yardstick, clock: Clock) -> Candidate:
    """A copy of the dense network, which meets the budget as it is."""
    with clock("rewrite"):
        copy = rewrite(network.model, Plan(), request.examples, coupling=yardstick.coupling)
    solution = Solution(yardstick.coupling.widths(), 0.0, {}, 0.0, 0.0, 0.0, request.solver, (), "optimal")
    yardstick.tables = None
    dense, busy, scatter = yardstick.dense, yardstick.busy, yardstick.scatter
    return Candidate(Network(copy, Plan()), dense, 1.0, 1.0, Choice(solution), busy, scatter)


def _check_reach(candidates: Sequence[Candidate], request: Request, yardstick: Yardstick) -> None:
    """Raises InfeasibleError if the smallest network is above the budget, and so are the others."""
    fraction, slack = yardstick.fraction, yardstick.goals.slack(request.tolerance)
    least = min(candidates, key=lambda c: c.measured)
    refused = next((c.choice.refused for c in candidates if c.choice.refused is not None), None)
    if refused is not None and not any(c.keeps(fraction, slack) for c in candidates):
        raise _refusal(least.network, refused, yardstick, request, least.measured) from refused


def _refusal(
    network: Network, refused: InfeasibleError, yardstick: Yardstick, request: Request, share: float
) -> InfeasibleError:
    """The error for a budget below what the smallest network takes, with that network."""
    error = out_of_reach(refused, yardstick, request, share)
    error.network, error.plan = network.model, network.plan
    return error


def _scored(network: Network, yardstick: Yardstick, request: Request, clock: Clock) -> Network:
    """Score the network as it stands: its groups, and the channels that its removable branches add."""
    settle(network, request, clock)
    with clock("score"):
        left, _, branches = yardstick.left(network.plan)
        scored = now = _present(network, left, request)
        if branches:
            here = find_branches(now).named(b.name for b in branches)
            scored = replace(now, groups=(*now.groups, *output_groups(here)))
        saliency = _score(network.model, scored, request)
    return replace(network, coupling=now, saliency=saliency)


def _score(model: nn.Module, coupling: Coupling, request: Request) -> Saliency:
    """As asked for. Where nothing was and there is no data, magnitudes say which channels go, and not how many."""
    saliency = score(model, coupling, request.data, request.loss_fn, request.importance, loss=request.loss)
    return replace(saliency, uniform=True) if request.blind else saliency


def settle(network: Network, request: Request, clock: Clock) -> None:
    """Re-estimate the batch norms of a network that was cut, where there is data."""
    if network.plan and request.data is not None and request.recalibrate:
        with clock("recalibrate"):
            recalibrate(network.model, request.data, loss=request.loss)


def _present(network: Network, left: Coupling, request: Request) -> Coupling:
    """The coupling of the network as it stands. Groups are frozen that the original coupling does not let shrink
    (ignored by the caller), or that a dropped branch held together and are other groups now."""
    if not network.plan:
        return left
    now = channel_groups(network.model, request.examples, like=left)
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
    if measured > yardstick.fraction * (1 + yardstick.goals.slack(request.tolerance)):
        raise _refusal(smaller, choice.refused, yardstick, request, measured) from choice.refused
    yardstick.learn(_predicted_total(smaller.plan, choice, yardstick), measured)
    return _solve_and_rewrite(network, request, yardstick, way, clock, floor)


def _solve_and_rewrite(
    network: Network, request: Request, yardstick: Yardstick, way: float, clock: Clock, floor: float = 0.0
) -> tuple[Network, Choice]:
    """Widths for a step that stops at `way` of the way, and the network that has them. Groups of which it shows only
    at these widths that they cannot shrink so keep theirs from then on.

    Args:
        floor: no group loses more than this share of its present channels, as long as that can be met.
    """
    assert network.saliency is not None
    assert network.coupling is not None
    while True:
        with clock("solve"):
            choice = _choose(network, request, yardstick, way, floor)
        with clock("rewrite"):
            solution = choice.solution
            step = plan_from(network.coupling, network.saliency.known, solution.widths, solution.dropped)
            try:
                small = rewrite(network.model, step, request.examples, coupling=network.coupling)
            except RewriteError as error:
                _hold(error, network.coupling, step, yardstick)
                continue
        return Network(small, compose(network.plan, step), saliency=network.saliency), choice


def _hold(error: RewriteError, coupling: Coupling, step: Plan, yardstick: Yardstick) -> None:
    """Let a group that a failed rewrite names keep its width, what leads to the failing operator before what it makes.

    Raises:
        RewriteError: the step takes nothing from any of them.
    """
    sizes = {g.name: g.size for g in coupling.prunable if g.name not in yardstick.held}
    found = [name for name in error.groups if name in sizes and len(step.get(name, ())) not in (0, sizes[name])]
    if not found:
        raise error
    yardstick.held.add(found[-1])
    yardstick.notes = (*yardstick.notes, f"{found[-1]} shrank no further: {str(error).splitlines()[0]}")


def _choose(network: Network, request: Request, yardstick: Yardstick, way: float, floor: float) -> Choice:
    """The best widths within the budget, each at least `floor` of what is there if that can be.

    What layers add up to is not the network's cost, so nothing is said to be out of reach before the smallest network
    was tried: that is then the choice.

    Raises:
        InfeasibleError: several budgets, each of which can be met, but not together, or one of the further ones.
    """
    for share in dict.fromkeys((floor, 0.0)):
        problem = _problem(network, request, yardstick, way, share)
        try:
            return Choice(solve(problem, method=request.solver))
        except InfeasibleError as error:
            refused = error
    return Choice(_smallest(problem, refused, yardstick, request), refused)


def _smallest(problem: WidthProblem, refused: InfeasibleError, yardstick: Yardstick, request: Request) -> Solution:
    """The widths that cost least of the steering resource, whatever the other budgets.

    Raises:
        InfeasibleError: it is another budget that cannot be met, or several together.
    """
    steering = {r: b for r, b in problem.budgets.items() if r in yardstick.steering}
    alone = replace(problem, budgets=steering)
    try:
        solve(alone, "lagrangian")
    except InfeasibleError as error:
        least = error.minimum
    else:
        raise out_of_reach(refused, yardstick, request) from refused
    if len(steering) == 1:
        try:
            return solve(replace(alone, budgets=dict.fromkeys(steering, least)))
        except InfeasibleError:
            pass  # A hair below what can be reached: the bound of a relaxed problem.
    # A peak of memory, the largest of several moments, is smallest where every width is.
    widths = {name: int(group.widths[0]) for name, group in problem.groups.items()}
    value, costs = problem.evaluate(widths)
    return Solution(widths, value, costs, value, 0.0, 0.0, request.solver)


def _problem(network: Network, request: Request, yardstick: Yardstick, way: float, floor: float) -> WidthProblem:
    """What the solver is asked; a group without scores keeps its width, and so does one that is held."""
    assert network.saliency is not None
    values = network.saliency.known
    left, tables, branches = yardstick.left(network.plan)
    options = options_of(left, network.plan, request, floor)
    options |= {name: widths[-1:] for name, widths in options.items() if name not in values or name in yardstick.held}
    unit = yardstick.goals.cost.unit
    return build_problem(
        left, values, options, tables, yardstick.spend(way), unit, branches,
        silent=network.saliency.silent, evenness=network.saliency.evenness, uniform=network.saliency.uniform,
    )  # fmt: skip


def options_of(coupling: Coupling, plan: Plan, request: Request, floor: float = 0.0) -> dict[str, tuple[int, ...]]:
    """Widths per group, none wider than what is left of it."""
    left = coupling.widths(plan)
    options = {}
    steps = COARSE if request.goals.measured else FINE
    for group in coupling.prunable:
        now = left[group.name]
        least = math.ceil(now * floor)
        widths = width_options(group, request.round_to, request.min_keep, floor=least, steps=steps)
        options[group.name] = tuple(sorted({w for w in widths if w <= now} | {now}))
    return options


def schedule(request: Request, yardstick: Yardstick) -> list[float]:
    """Shares of the way (in the logarithm of the cost) at which the steps stop; the last is 1."""
    steps = 1 if yardstick.met_already else request.steps
    if steps is None:
        renewed = request.data is not None or request.train_between is not None
        wanted = math.ceil(math.log(min(yardstick.fraction, 1.0)) / math.log(STEP_FACTOR))
        steps = max(1, wanted) if renewed else 1
    return [(i + 1) / steps for i in range(steps)]
