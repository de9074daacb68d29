"""End-to-end cost as a share of the dense network's, and the calibration that predicts it from layer costs.

Everything is kept relative to the dense network timed in the same run: a machine that changes speed changes both. The
dense network's own cost is the lowest that was seen, the machine undisturbed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from .goals import Goals
from .latency import Calibration
from .solver import CostTable
from .types import Coupling, Inputs

logger = logging.getLogger("halp_fx")

DISTURBED = 1.05
"""A run in which the dense network took this much longer than at best is repeated."""

MAX_TRIES = 3


@dataclass(slots=True)
class Yardstick:
    """Measures networks against the dense one, and learns from what it measured.

    Attributes:
        goals, coupling, model, inputs: what is to be met, and the dense network.
        dense: its lowest end-to-end cost so far, in the unit of the steering cost.
        calibration: sum of layer costs -> share of the dense network's end-to-end cost.
        tables: what each layer costs over all widths that its groups may take; they serve every step.
    """

    goals: Goals
    coupling: Coupling
    model: nn.Module
    inputs: Inputs
    dense: float
    calibration: Calibration
    tables: Sequence[CostTable]

    @classmethod
    def start(
        cls, goals: Goals, coupling: Coupling, options: Mapping[str, Sequence[int]], model: nn.Module, inputs: Inputs
    ) -> Yardstick:
        """Measure the layers over the widths that the groups may take, and the dense network as the first point."""
        tables = goals.tables(coupling, options)
        (dense,) = goals.measure(coupling, [(model, None)], inputs)
        first = Calibration().with_point(goals.cost.total(coupling), 1.0)
        return cls(goals, coupling, model, inputs, dense, first, tables)

    @property
    def fraction(self) -> float:
        """The budget as a share of the dense cost."""
        return self.goals.budget.target(self.dense) / self.dense

    def spend(self, way: float = 1.0) -> dict[str, float]:
        """Sums of layer costs per resource that may be spent, for a step that stops at `way` of the way (0: dense,
        1: the end), in the logarithm of the cost."""
        steering = self.calibration.budget_for(min(self.fraction, 1.0) ** way)
        return self.goals.spend(self.coupling, steering, way)

    def predict(self, total: float) -> float:
        """Share of the dense end-to-end cost of a network whose layers sum up to `total`."""
        return self.calibration.predict(total)

    def measure(self, widths: Mapping[str, int], small: nn.Module) -> float:
        """Share of the dense end-to-end cost, both timed in turn; repeated while something disturbs the machine."""
        for _ in range(MAX_TRIES):
            networks = ((self.model, None), (small, widths))
            dense, measured = self.goals.measure(self.coupling, networks, self.inputs)
            self.dense = min(self.dense, dense)
            if dense <= DISTURBED * self.dense:
                break
            logger.info("dense took %.4g, at best %.4g: measuring again", dense, self.dense)
        return measured / dense

    def learn(self, total: float, share: float) -> None:
        """Take a measured network into the calibration."""
        self.calibration = self.calibration.with_point(total, share)
