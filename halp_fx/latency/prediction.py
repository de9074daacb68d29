"""What the tables predict, beside what is timed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerError:
    """One layer of the pruned network: the table's prediction, and its time measured at exactly these widths.

    Attributes:
        name, op: which operator.
        widths: (n_in, n_out) after pruning; n_out is 0 for an operator with one width.
        predicted_ms, timed_ms: both 0 for a layer that cannot be timed on its own.
    """

    name: str
    op: str
    widths: tuple[int, int]
    predicted_ms: float
    timed_ms: float

    @property
    def error(self) -> float:
        """Prediction relative to the time; positive: predicted too slow."""
        return self.predicted_ms / self.timed_ms - 1 if self.timed_ms else 0.0
