"""How many elements values picked, before and after pruning: shapes and numbers that are made of such counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..types import Extent


@dataclass(slots=True)
class Counts:
    """Counts of elements, before and after: sizes that follow no width, and differ.

    Features of other widths pick other elements, or more of them. What was picked is a factor of the sizes of all that
    is made of it (`boxes.flatten()`), and a mean over it divides by it.
    """

    seen: set[tuple[int, int]] = field(default_factory=set)

    def allow(self, extents: Sequence[Extent], expected: Sequence[int], shape: Sequence[int]) -> bool:
        """Whether a shape is right but for counts; those that are met here for the first time are noted."""
        if len(shape) != len(expected):
            return False
        sizes = list(zip(extents, expected, shape, strict=True))
        self.seen |= {(then, now) for extent, then, now in sizes if not extent.terms and then != now}
        return all(not extent.terms or self._explains(then, now) for extent, then, now in sizes)

    def explain(self, expected: Sequence[float], given: Sequence[float]) -> bool:
        """Whether numbers are the same but for counts, or roots of counts, in them."""
        return len(expected) == len(given) and all(map(self._close, expected, given))

    def _explains(self, then: int, now: int) -> bool:
        return then == now or any(now * before == then * after for before, after in self.seen)

    def _close(self, then: float, now: float) -> bool:
        ratios = [after / before for before, after in self.seen if before and after]
        factors = [f for ratio in ratios for f in (ratio, 1 / ratio, math.sqrt(ratio), 1 / math.sqrt(ratio))]
        return then == now or any(math.isclose(then * factor, now, rel_tol=1e-9) for factor in factors)
