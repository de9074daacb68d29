"""What a caller's own score says of a network."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from ..errors import SaliencyError


def scored_by(score_fn: Callable[[nn.Module], float], model: nn.Module, share: float) -> float:
    """The score, as a plain number.

    Args:
        share: of the dense network's cost; for messages.

    Raises:
        SaliencyError: it is not a finite number. What `score_fn` itself raises goes through, with a note.
    """
    try:
        score = float(score_fn(model))
    except Exception as error:
        error.add_note(f"raised by score_fn, given the network at {share:.1%} of the dense cost")
        raise
    if not math.isfinite(score):
        raise SaliencyError(
            f"score_fn returned {score} for the network at {share:.1%} of the dense cost: it must return a finite "
            "number, larger for a better network"
        )
    return score
