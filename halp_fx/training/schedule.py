"""schedule: how far on the way each of several steps stops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from ..arguments import check_called
from ..errors import BudgetError

Schedule = Literal["exponential", "linear"] | Callable[[float], float]


def ways_of(schedule: Schedule, steps: int, budget: float) -> list[float]:
    """Shares of the way, in the logarithm of the cost, at which the steps stop; the last is 1.

    Args:
        schedule: "exponential": every step leaves the same share of the cost (HALP, arXiv 2110.10811, after FORCE,
            arXiv 2006.09081); "linear": every step takes the same cost away; or a rising function from the share of the
            steps that were taken to the share of the way.
        budget: the budget, as a share of the dense cost.

    Raises:
        BudgetError: another schedule, or a function that falls or leaves 0 to 1.
    """
    done = [(step + 1) / steps for step in range(steps)]
    if schedule == "exponential":
        return done
    if schedule == "linear":
        whole = math.log(budget) if budget < 1 else 1.0
        return [math.log(1 - (1 - budget) * share) / whole if budget < 1 else 1.0 for share in done[:-1]] + [1.0]
    if not callable(schedule):
        raise BudgetError(f'schedule={schedule!r}: write "exponential", "linear", or pass a function')
    check_called("schedule", schedule, BudgetError, ("a share of the steps",))
    try:
        ways = [float(schedule(share)) for share in done[:-1]] + [1.0]
    except (TypeError, ValueError) as error:
        raise BudgetError(f"schedule must return shares of the way, numbers from 0 to 1: {error}") from error
    if any(not 0 <= a <= b <= 1 for a, b in zip(ways, [*ways[1:], 1.0], strict=True)):
        raise BudgetError(f"schedule must rise from 0 to 1: over {steps} steps it gave {ways}")
    return ways
