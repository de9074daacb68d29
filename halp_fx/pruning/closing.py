"""Where to look when the calibration asks for a network that was measured already.

The solver's answers are steps: it is given a sum of layer costs, and finds the widths that spend most of it. Where
layers timed alone do not add up to the network (compiled code), what is 1 % of the sum can be 5 % when it is measured,
and the calibration, a line through what was measured, then asks for the same network again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

from .networks import Candidate

_STEPS = (0.25, 0.5, 1.0, 2.0)
"""How much more than the calibration's sum is asked for, in terms of what the network is off by. Each costs a solution,
and what is measured is the first network that is new."""


def sums_beside(asked: float, known: Candidate, candidates: Sequence[Candidate], budget: float) -> Iterator[float]:
    """Sums of layer costs to ask for instead of one that led to a network that is known: more if that is too small,
    less if it is too large, and never beyond a network on the other side of the budget.

    Args:
        asked: the sum that led there.
        known: what it led to.
        budget: as a share of the dense network's cost.
    """
    off = budget / known.measured - 1
    other_side = [c.total for c in candidates if (c.measured > budget) != (known.measured > budget)]
    above = min((total for total in other_side if total > asked), default=inf)
    below = max((total for total in other_side if total < asked), default=0.0)
    sums = (asked * (1 + step * off) for step in _STEPS)
    return (total for total in sums if below < total < above)
