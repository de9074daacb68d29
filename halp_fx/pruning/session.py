"""A session of pruning: the steps that shrink a network, and the closing loop that meets the budget when measured.

The solver always works on the channel groups of the *original* network, with options no wider than what earlier
steps left: so one set of latency tables serves every step. Saliency is scored on the network as it stands.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from functools import partial

from torch import nn

from ..coupling.branches import Branches
from ..errors import InfeasibleError
from ..model.checks import check_prunable
from ..model.preserving import unsynchronised
from ..model.tensors import parameter_count
from ..rewriting.applying import rewrite
from ..rewriting.compensating import SAMPLES, Compensation
from ..scoring.recalibrating import renew
from ..scoring.saliency import scored as magnitude_of
from ..solver import Solution
from ..trials.branches import tried
from ..trials.trials import channel_groups
from ..types import Plan
from .blocks import block_sizes
from .choosing import options_of
from .clock import Clock
from .closing import sums_beside
from .cutting import Cutter
from .distributed import Team, changed
from .goals import EXACT
from .healing import STEPS, Healing, healed
from .judging import Judgement
from .limits import check_limits, limited
from .networks import Candidate, Choice, Contest, Network, Stop, best_of, with_plan
from .request import Request
from .restoring import compensated
from .standing import Scorer, reads_statistics, scored
from .yardstick import Learned, Yardstick

logger = logging.getLogger("halp_fx")

MAX_ROUNDS = 6
"""Candidates that are measured while closing in on the budget: compiled ones take half a minute each."""

STEP_FACTOR, LARGE_STEP = 0.85, 0.6
"""With data, one step stops at about this share of the cost: saliency is a local model. In four steps instead of twelve
to 20 % of the MACs, inverted residuals lost 7 points (docs/benchmarks_accuracy.md). The second is for effort="fast"."""


STEP_FLOOR = 0.5
"""An early step leaves each group at least this share of its channels, where the budget allows it."""


@dataclass(slots=True)
class Session:
    """One network on its way to its budget: `start`, then for each of `ways` but the last a `step`, then `close`.

    A step scores the network as it stands (or takes a saliency from elsewhere), solves, and rewrites.

    Attributes:
        request: what was asked for.
        yardstick: measures and predicts; it holds the dense network and its coupling.
        branches: that may be dropped, and why others may not.
        network: as it stands.
        candidates: that `close` made.
        judgement: what the caller's `score_fn` said, if there is one.
        clock: seconds per stage.
        compensation: the last one, if it was asked for.
        healing: what training the best network brought (`heal`), if it was asked for.
        trail: where the steps so far left the network.
        planned: candidates are plans alone, and their networks not made: for one step to a counted cost.
        passed_by: networks that are closed in on are compensated when they are asked for (`Frontier.network`), unless
            what follows is compensated on the way, too.
        contest: that its best network won (`contest`), if there was one.
        lost: batches that batch norms were last re-estimated without.
    """

    request: Request
    yardstick: Yardstick
    branches: Branches
    network: Network
    candidates: list[Candidate] = field(default_factory=list)
    judgement: Judgement | None = None
    clock: Clock = field(default_factory=Clock)
    compensation: Compensation | None = None
    healing: Healing | None = None
    trail: list[Stop] = field(default_factory=list)
    planned: bool = False
    passed_by: bool = False
    contest: Contest | None = None
    lost: tuple[int, ...] = ()

    @classmethod
    def start(cls, model: nn.Module, request: Request, known: Learned | None = None) -> Session:
        """Trace and couple the network, try its branches, and time its layers.

        Args:
            known: what an earlier session's yardstick has learned; the dense network was then judged, too.

        Raises:
            ModelError: nothing in the network can shrink.
        """
        clock = Clock()
        with clock("trace + couple"):
            coupling = channel_groups(model, request.examples, request.ignore)
        check_prunable(coupling)
        check_limits(request.limits, coupling)
        branches = Branches()
        if request.branches:
            with clock("try branches"):
                branches = tried(model, coupling, request.examples, request.ignore)
            if request.branches == "auto":
                branches = branches.without(limited(branches, coupling, request.limits))
        with clock("time layers"):
            # Limits may not allow the dense width, at which everything begins.
            allowed = options_of(coupling, Plan(), request)
            options = {g.name: tuple(sorted({*allowed[g.name], g.size})) for g in coupling.prunable}
            yardstick = Yardstick.start(
                *(request.goals, coupling, options, model, request.inputs, branches.removable),
                sizes=lambda: block_sizes(request, coupling, options),
                known=known,
            )
        session = cls(request, yardstick, branches, Network(model, Plan()), clock=clock)
        if request.score_fn is not None:
            session.judgement = Judgement(request.score_fn, request.max_drop)
        if known is None and not yardstick.met_already:
            session._judged(session.network, 1.0)
        return session

    @property
    def ways(self) -> list[float]:
        """Shares of the way (in the logarithm of the cost) at which the steps stop, from where the network stands; the
        last is 1."""
        yardstick, steps, here = self.yardstick, self.request.steps, 0.0
        if yardstick.met_already:
            return [1.0]
        end = math.log(min(yardstick.budget, 1.0))
        if self.network.plan and end:
            here = math.log(yardstick.predict(yardstick.total(self.network.plan))) / end
        if steps is None:
            renewed = self.request.data is not None or self.request.train_between is not None
            factor = LARGE_STEP if self.request.effort == "fast" else STEP_FACTOR
            wanted = math.ceil((1 - here) * end / math.log(factor))
            steps = max(1, wanted) if renewed else 1
        else:
            steps = max(1, round((1 - here) * steps))
        return [here + (1 - here) * (i + 1) / steps for i in range(steps)]

    @property
    def slack(self) -> float:
        """As `Cutter.slack`."""
        return self._cutter.slack

    @property
    def best(self) -> Candidate:
        """Of those that `close` made."""
        return best_of(self.candidates, self.yardstick.budget, self.slack)

    @property
    def stopped(self) -> str:
        """Why the budget was given up for the caller's score; "" if it was not."""
        return self.judgement.stopped if self.judgement is not None else ""

    @property
    def _cutter(self) -> Cutter:
        return Cutter(self.request, self.yardstick, self.clock, self.planned)

    def step(self, way: float, scorer: Scorer = None) -> None:
        """One step of several: stop at `way` of the way.

        Args:
            scorer: what the network as it stands is worth, given it and its coupling; None: score it as was asked for.

        Raises:
            InfeasibleError: the smallest network is above the budget.
        """
        self.score(scorer)
        if self.network.spent:
            return
        whole = self.network
        self.network, _ = self._cutter.within_reach(self.network, way, floor=STEP_FLOOR)
        aim = min(self.yardstick.budget, 1.0) ** way
        self.trail.append(Stop(aim, self.network.plan, parameter_count(self.network.model)))
        if self.request.on_the_way:
            self._compensate(self.network, whole, self.request.on_the_way)

    def check_possible(self) -> None:
        """See that the budget can be met at all, before the network is trained on the way to it.

        Raises:
            InfeasibleError: the smallest network is above the budget; it says what that takes.
        """
        if not self.yardstick.met_already:
            by_size = scored(self.network, self.request, self.yardstick, partial(magnitude_of, importance="magnitude"))
            self._cutter.check_possible(by_size)

    def train(self, team: Team) -> None:
        """Let the caller train the network as it stands."""
        if self.request.train_between is not None:
            tensors = changed(self.network.model, self.request) if self.request.compensate else {}
            with self.clock("train_between"), team.training(self.network.plan, tensors):
                self.request.train_between(self.network.model)

    def judge(self) -> bool:
        """Ask the caller's `score_fn` what the network as it stands is worth; whether it lost no more than it may.

        Raises:
            SaliencyError: it did not return a number.
        """
        return self._judged(self.network, self.yardstick.predict(self.yardstick.total(self.network.plan)))

    def close(self, scorer: Scorer = None) -> None:
        """The last step: solve, rewrite, measure; correct the calibration and repeat while the budget is missed. Where
        the score fell by more than it may, the last network before that is measured instead.

        Args:
            scorer: as for `step`.

        Raises:
            InfeasibleError: the smallest network is above the budget.
        """
        if not (self._met_as_it_is or self.stopped):
            self.score(scorer)
            if self.network.spent:
                self.candidates = [self._all_there_is()]
            else:
                while len(self.candidates) < MAX_ROUNDS and self._round():
                    pass
            if not self._met_as_it_is:
                self._cutter.check_reach(self.candidates)
                self.finish()
                self._judged(self.best.network, self.best.measured)
        if self._met_as_it_is:  # Also if it was disturbed when it was first timed.
            self.candidates = [self.as_it_is(self.network)]
        elif self.stopped and self.judgement is not None and self.judgement.sound is not None:
            self.candidates = [self.as_it_is(self.judgement.sound)]

    def finish(self) -> None:
        """Let the best network make up for what it lost, by the network that it was cut out of."""
        if not self.passed_by or self.request.on_the_way:
            self._compensate(self.best.network, self.network)
        self.settle(self.best.network)

    def heal(self) -> None:
        """Train the best network for a while to do what the dense one does, if that was asked for."""
        request, best = self.request, self.best
        if request.heal and request.data is not None and best.network.plan:
            steps = STEPS if request.heal is True else int(request.heal)
            with self.clock("heal"):
                self.healing = healed(best.network.model, self.yardstick.model, request.data, steps, request.loss)
            if self.judgement is not None and self.healing.taken:
                with self.clock("score_fn"):
                    self.judgement.hears(best.network, best.measured)

    def _all_there_is(self) -> Candidate:
        """The candidate of a network of which nothing more can go. Above the budget it is the smallest one."""
        candidate = self.as_it_is(self.network)
        refused = InfeasibleError("nothing is left to remove", candidate.total)
        return replace(candidate, choice=replace(candidate.choice, refused=refused))

    def settle(self, network: Network) -> None:
        """Re-estimate the batch norms of a network that was cut, where there is data."""
        if network.plan and self.request.data is not None and self.request.recalibrate:
            with self.clock("recalibrate"), unsynchronised(network.model):
                self.lost = renew(network.model, self.request.data, loss=self.request.loss)

    def _compensate(self, cut: Network, whole: Network, samples: int = SAMPLES) -> None:
        """Let a network that was cut out of another make up for it, where that was asked for and there is one."""
        if self.request.compensate and cut.plan and cut is not whole and not self.planned:
            with self.clock("compensate"):
                self.compensation = compensated(cut, whole, self.request, self.yardstick, samples)

    @property
    def _met_as_it_is(self) -> bool:
        """Whether the dense network meets the budget and nothing was removed yet."""
        return self.yardstick.met_already and not self.network.plan

    def score(self, scorer: Scorer = None) -> None:
        """Score the network as it stands, unless it is scored, or the budget is met as it is, or was given up.

        Args:
            scorer: as for `step`.
        """
        network = self.network
        if self._met_as_it_is or self.stopped or (scorer is None and network.coupling is not None):
            return
        settled = self.judgement is not None and self.judgement.sound is network  # To be judged.
        if not settled and (scorer is not None or reads_statistics(network, self.request)):
            self.settle(network)
        with self.clock("score"):
            self.network = scored(network, self.request, self.yardstick, scorer, len(self.trail))

    def _round(self) -> bool:
        """One candidate more; whether another may be better."""
        try:
            found = self._next() if self.candidates else self._cutter.within_reach(self.network, 1.0)
        except InfeasibleError:
            if self.candidates:  # Several budgets, within reach by the first calibration: keep what was found.
                return False
            raise
        if found is None:
            return False  # No finer choice of widths.
        candidate = self._measured(*found)
        if self._met_as_it_is or self._closed_in(candidate):
            return False
        self.yardstick.learn(candidate.total, candidate.measured)
        return True

    def _measured(self, smaller: Network, choice: Choice) -> Candidate:
        """A network that was cut is a candidate, measured."""
        yardstick, total = self.yardstick, self._cutter.total(smaller.plan, choice)
        with self.clock("measure"):
            measured = yardstick.measure(smaller.plan, smaller.model)
        predicted = yardstick.predict(total)
        candidate = Candidate(smaller, total, predicted, measured, choice, yardstick.busy, yardstick.scatter)
        self.candidates.append(candidate)
        logger.info(
            "budget %.1f %% of dense, predicted %.1f %%, measured %.1f %%",
            *(100 * share for share in (yardstick.budget, predicted, measured)),
        )
        return candidate

    def _next(self) -> tuple[Network, Choice] | None:
        """What the calibration asks for; where that was measured, a network beside it, None if there is none."""
        found = self._cutter.cut(self.network, 1.0)
        again = with_plan(self.candidates, found[0].plan)
        if again is None:
            return found
        if self.yardstick.goals.measured:  # Else the tables add up to the cost.
            for total in sums_beside(self.yardstick.asked(), again, self.candidates, self.yardstick.budget):
                found = self._cutter.cut(self.network, 1.0, asked=total)
                if with_plan(self.candidates, found[0].plan) is None:
                    return found
        return None

    def _closed_in(self, candidate: Candidate) -> bool:
        """Whether another round would be in vain."""
        deviation = candidate.deviation(self.yardstick.budget)
        if self.yardstick.goals.measured:
            return abs(deviation) <= self.request.tolerance
        # Where the tables add up to the cost, what the solver leaves of the budget is less than its next step.
        exact = abs(candidate.predicted / candidate.measured - 1) <= EXACT
        return deviation <= EXACT and (exact or deviation >= -self.request.tolerance)

    def _judged(self, network: Network, share: float) -> bool:
        """Whether a network of this share of the dense cost lost no more of the caller's score than it may."""
        if self.judgement is None:
            return True
        self.settle(network)
        with self.clock("score_fn"):
            return self.judgement.holds(network, share)

    def as_it_is(self, network: Network) -> Candidate:
        """A candidate without another step: the dense network (its copy), or one that a step left."""
        yardstick = self.yardstick
        if not network.plan:
            with self.clock("rewrite"):
                copy = rewrite(network.model, Plan(), self.request.examples, coupling=yardstick.coupling)
            yardstick.tables = None
            return self.unsolved(Network(copy, Plan()), yardstick.dense, 1.0, 1.0)
        total = yardstick.total(network.plan)
        with self.clock("measure"):
            measured = yardstick.measure(network.plan, network.model)
        return self.unsolved(network, total, yardstick.predict(total), measured)

    def unsolved(self, network: Network, total: float, predicted: float, measured: float) -> Candidate:
        """A candidate that the solver was not asked for; figures as in `Candidate`."""
        yardstick = self.yardstick
        left, _, _ = yardstick.left(network.plan)
        solution = Solution(left.widths(network.plan), 0.0, {}, 0.0, 0.0, 0.0, self.request.solver, (), "optimal")
        return Candidate(network, total, predicted, measured, Choice(solution), yardstick.busy, yardstick.scatter)
