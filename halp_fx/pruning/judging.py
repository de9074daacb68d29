"""What a caller's own score says of networks, and when it stops their shrinking."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import SaliencyError
from ..model.copying import lent
from .networks import Network


@dataclass(frozen=True, slots=True)
class Scored:
    """What the caller's `score_fn` says of a network, and its predicted share of the dense network's cost."""

    share: float
    score: float


@dataclass(slots=True)
class Judgement:
    """What `score_fn` said so far.

    Attributes:
        score_fn, max_drop: as `prune` documents them.
        scores: the dense network's first.
        sound: the last network that lost no more of its score than it may.
        stopped: why the budget is given up for the score; "" if it is not.
    """

    score_fn: Callable[[nn.Module], float]
    max_drop: float | None
    scores: list[Scored] = field(default_factory=list)
    sound: Network | None = None
    stopped: str = ""

    def hears(self, network: Network, share: float) -> None:
        """Ask for the score of a network of this share of the dense cost.

        Raises:
            SaliencyError: the score is no number.
        """
        self.scores.append(Scored(share, scored_by(self.score_fn, network.model, share)))

    def holds(self, network: Network, share: float) -> bool:
        """Whether a network of this share of the dense cost lost no more of its score than it may.

        Raises:
            SaliencyError: the score is no number.
        """
        self.hears(network, share)
        dense, now, most = self.scores[0].score, self.scores[-1].score, self.max_drop
        if most is not None and now < dense - most:
            self.stopped = (
                f"stopped before the budget: at {share:.1%} of dense the score is {now:.4g}, {dense - now:.4g} below "
                f"the dense network's, and max_drop is {most:.4g}; this is the network of the step before. More steps "
                "(steps), training between them (train_between), or a larger max_drop may help"
            )
            return False
        self.sound = network
        return True


def scored_by(score_fn: Callable[[nn.Module], float], model: nn.Module, share: float) -> float:
    """The score of a copy, as a plain number: what a `score_fn` does to a network (`half()`, fused layers, another
    device) is done neither to the caller's nor to the one that is pruned further.

    Args:
        share: of the dense network's cost; for messages.

    Raises:
        ModelError: the network cannot be copied.
        SaliencyError: it is not a finite number. What `score_fn` itself raises goes through, with a note.
    """
    try:
        found: Any = score_fn(lent(model))
    except Exception as error:
        error.add_note(f"raised by score_fn, given the network at {share:.1%} of the dense cost")
        raise
    try:
        score = float(found)  # Also of a tensor or an array with one element.
    except (TypeError, ValueError, RuntimeError):
        score = math.nan
    if not math.isfinite(score):
        said = f"a {type(found).__name__} of shape {tuple(found.shape)}" if getattr(found, "ndim", 0) else repr(found)
        raise SaliencyError(
            f"score_fn returned {said:.100} for the network at {share:.1%} of the dense cost: it must return a finite "
            "number, larger for a better network"
        )
    return score
