"""Cutter: a scored network and how far to go -> the network of the widths that the solver chooses, or why there is
none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InfeasibleError, RewriteError
from ..rewriting.applying import rewrite
from ..types import Plan
from .choosing import Question
from .clock import Clock
from .networks import Candidate, Choice, Network
from .outcome import out_of_reach
from .request import Request
from .widths import compose, plan_from
from .yardstick import Yardstick

_NOTHING = 1e-9
"""Share of the dense network's layers that no network is within."""


@dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts networks of one session; attributes as there."""

    request: Request
    yardstick: Yardstick
    clock: Clock
    planned: bool = False

    def within_reach(self, network: Network, way: float, floor: float = 0.0) -> tuple[Network, Choice]:
        """As `cut`; where the tables say that no network meets the budget, the smallest is measured first: the
        calibration learns from it, and whoever trains between steps hears in time that the budget is out of reach.

        Raises:
            InfeasibleError: the smallest network is above the budget.
        """
        smaller, choice = self.cut(network, way, floor)
        if choice.refused is None:
            return smaller, choice
        with self.clock("measure"):
            measured = self.yardstick.measure(smaller.plan, smaller.model)
        if measured > self.yardstick.budget * (1 + self.slack):
            raise self._refusal(smaller, choice.refused, measured) from choice.refused
        self.yardstick.learn(self.total(smaller.plan, choice), measured)
        return self.cut(network, way, floor)

    def cut(
        self, network: Network, way: float, floor: float = 0.0, asked: float | None = None
    ) -> tuple[Network, Choice]:
        """Widths for a step that stops at `way` of the way, and the network that has them. Groups of which it shows
        only at these widths that they cannot shrink so keep theirs from then on.

        Args:
            network: as it stands, scored.
            floor: no group loses more than this share of its present channels, as long as that can be met.
            asked: the sum of layer costs to spend; None: what the calibration says.
        """
        assert network.saliency is not None
        assert network.coupling is not None
        while True:
            with self.clock("solve"):
                choice = Question(self.request, self.yardstick, network, way, asked).choose(floor)
            with self.clock("rewrite"):
                solution = choice.solution
                step = plan_from(network.coupling, network.saliency.known, solution.widths, solution.dropped)
                try:
                    small = network.model
                    if not self.planned:
                        small = rewrite(small, step, self.request.examples, coupling=network.coupling)
                except RewriteError as error:
                    self.yardstick.hold(error, network.coupling, step)
                    continue
            return Network(small, compose(network.plan, step), saliency=network.saliency, step=step), choice

    def check_possible(self, network: Network) -> None:
        """See that the budget can be met at all, before anything is spent on the way to it: what channels are worth
        does not matter for that. Where the cost is a time the smallest network is timed, whatever the tables say: of a
        network of many small layers they said a third where the clock said two thirds.

        Args:
            network: the dense one, scored by anything.

        Raises:
            InfeasibleError: the smallest network is above the budget.
        """
        yardstick = self.yardstick
        asked = _NOTHING * yardstick.scale if yardstick.goals.measured else None
        with self.clock("solve"):
            if Question(self.request, yardstick, network, 1.0).choose(0.0).refused is None and asked is None:
                return
        known = set(yardstick.held), set(yardstick.several), yardstick.notes
        smallest, choice = self.cut(network, 1.0, asked=asked)
        sure = (yardstick.held, yardstick.several) == known[:2]
        yardstick.held, yardstick.several, yardstick.notes = known  # What cannot go so far may go less far.
        if choice.refused is None or not sure:
            return
        with self.clock("measure"):
            measured = yardstick.measure(smallest.plan, smallest.model)
        if measured > yardstick.budget * (1 + self.slack):
            raise self._refusal(smallest, choice.refused, measured) from choice.refused

    def total(self, plan: Plan, choice: Choice) -> float:
        """The sum of the layers' costs as the solver's tables have it: for a counted cost that need not be the cost."""
        goals = self.yardstick.goals
        if goals.measured or goals.cost.resource not in choice.solution.costs:
            return self.yardstick.total(plan)
        return choice.solution.costs[goals.cost.resource]

    def check_reach(self, candidates: Sequence[Candidate]) -> None:
        """Raises InfeasibleError if the smallest network is above the budget, and so are the others."""
        least = min(candidates, key=lambda c: c.measured)
        refused = next((c.choice.refused for c in candidates if c.choice.refused is not None), None)
        if refused is not None and not any(c.keeps(self.yardstick.budget, self.slack) for c in candidates):
            raise self._refusal(least.network, refused, least.measured) from refused

    def _refusal(self, network: Network, refused: InfeasibleError, share: float) -> InfeasibleError:
        """The error for a budget below what the smallest network takes, with that network."""
        error = out_of_reach(refused, self.yardstick, self.request, share)
        error.network, error.plan = network.model, network.plan
        return error

    @property
    def slack(self) -> float:
        """Relative deviation from the budget at which it counts as met."""
        return self.yardstick.goals.slack(self.request.tolerance)
