"""Networks on their way to a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from ..errors import InfeasibleError
from ..scoring.saliency import Saliency
from ..solver import Solution
from ..types import Coupling, Plan


@dataclass(frozen=True, slots=True)
class Network:
    """A network on its way.

    Attributes:
        plan: leads to the model from the original.
        coupling: the model's own, when it has been scored.
        saliency: the model's own, when it has been scored; until then, of the network that it was cut out of.
        step: what was kept of that network.
        spent: it was to be scored, and nothing is left that may go: with a branch, all groups may have gone.
    """

    model: nn.Module
    plan: Plan
    coupling: Coupling | None = None
    saliency: Saliency | None = None
    step: Plan = field(default_factory=Plan)
    spent: bool = False

    @property
    def remembered(self) -> int:
        """Pieces of batches by which an earlier scoring still counts (`Saliency.rows`)."""
        return 0 if self.saliency is None else self.saliency.rows


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a step left the network: aimed at this share of the dense network's cost, with this plan."""

    aim: float
    plan: Plan
    parameters: int


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

    def deviation(self, budget: float) -> float:
        """From a budget that is this share of dense, relative to it; positive: over it."""
        return self.measured / budget - 1

    def keeps(self, budget: float, slack: float) -> bool:
        """Whether it meets a budget that is this share of dense; what is slower than the dense network never does."""
        return self.deviation(budget) <= slack and self.measured <= 1.0


@dataclass(frozen=True, slots=True)
class Judged:
    """A network that stood for election.

    Attributes:
        name: of the way that led to it.
        measured: its cost, of dense.
        distance: of its outputs from the dense network's.
        tuned: the same after another training, of class scores the squared Hellinger distance; None if it was not
            trained.
    """

    name: str
    measured: float
    distance: float
    tuned: float | None = None

    @property
    def last(self) -> float:
        """What was measured last: of the trained network, if there is one."""
        return self.distance if self.tuned is None else self.tuned


@dataclass(frozen=True, slots=True)
class Contest:
    """All networks that stood for election, the best first.

    Attributes:
        kind, samples: of distance, and on how many samples.
        compensated: they were compensated to be judged, though what comes out is not.
        lost: numbers of the batches that were left out, on which the dense network or the loss is not finite.
    """

    judged: tuple[Judged, ...]
    kind: str
    samples: int
    compensated: bool = False
    lost: tuple[int, ...] = ()

    @property
    def said(self) -> str:
        """What was compared, in words."""
        return f"{self.kind} on {self.samples} samples{', compensated' if self.compensated else ''}"


def best_of(candidates: Sequence[Candidate], budget: float, slack: float) -> Candidate:
    """The candidate closest to the budget; one that keeps it (within the slack) before one that does not."""
    return min(candidates, key=lambda c: (not c.keeps(budget, slack), abs(c.deviation(budget))))


def with_plan(candidates: Sequence[Candidate], plan: Plan) -> Candidate | None:
    """The candidate that this plan leads to; None if there is none."""
    return next((c for c in candidates if c.network.plan == plan), None)
