"""values: what every width of a group is worth, and which channels stay at it.

The solver asks for a value at each width, not for scores of channels: what a channel is worth depends on what else is
gone. A `WidthValues` says both for one group; scores that add up are the special case `of_scores`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arguments import shown
from ..errors import SaliencyError


@dataclass(frozen=True, slots=True, eq=False)
class WidthValues:
    """One group's channels in the order of their worth, and what it is worth at each width.

    Attributes:
        order: int array of shape (size,): the channels, those that stay longest first. At width w, `order[:w]` stay.
        value: float64 array of shape (size + 1,): value[w] for w channels; value[0] = 0, rising.
    """

    order: np.ndarray
    value: np.ndarray

    @property
    def size(self) -> int:
        return len(self.order)

    @classmethod
    def of_scores(cls, scores: np.ndarray) -> WidthValues:
        """Channels by their scores, ties by the lower index; the value is the sum of the scores that stay.

        Equal scores say what a group is worth, not that its last channel is worth as much as its first, which would
        leave it whole or at its floor: they count as scores of the same sum that fall evenly to nearly nothing.

        Raises:
            SaliencyError: they are no row of finite numbers of at least 0.
        """
        try:
            row = np.asarray(scores, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise SaliencyError(f"scores={shown(scores)} are no numbers: {error}") from error
        if row.ndim != 1 or not (np.isfinite(row) & (row >= 0)).all():
            raise SaliencyError(f"scores={shown(scores)} must be a row of finite numbers of at least 0")
        scores, size = row, len(row)
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        if size > 1 and scores.min() == scores.max():
            falling = scores * (2 * np.arange(size, 0, -1) - 1) / size
        return cls(order, np.concatenate([[0.0], np.cumsum(falling)]))

    @classmethod
    def of_losses(cls, order: np.ndarray, loss: np.ndarray) -> WidthValues:
        """From the loss at each width, 0 at the full one; where it does not fall with the width it is made to: what a
        narrow group can do, a wider one can."""
        falling = np.maximum.accumulate(loss[::-1])[::-1]
        return cls(order, falling[0] - falling)

    def kept(self, width: int) -> tuple[int, ...]:
        """The channels that stay at this width, ascending."""
        return tuple(np.sort(self.order[:width]).tolist())
