"""From the sum of layer times to the time of the network, and back.

A sum of tables leaves out launch and interpreter overhead and what caches do between layers; published end-to-end
times follow 32.4 ms + 220.2 ms * r for a nominal ratio r. So measured networks correct it: the first point, the dense
network, gives a straight line; every further one a piece of a rising curve through the points, straight between them.

With the dense network alone it is not known how much of what the sum leaves out stays when the network shrinks. A
third of it is taken to stay. On one CPU core (batch 1, uniform and random widths), 40-50 % of it stayed for MobileNetV2
and nothing for ResNet-18; a third predicts both within 5 %, nothing is up to 18 % off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from ..errors import LatencyError

_LEAST_SLOPE = 0.3
"""Below the smallest measured network, the curve falls at least at this share of the ratio there: two points near
each other give a slope that is mostly noise, and a flat curve would ask for a network of nothing."""

_STAYS = 1 / 3
"""Share of what the dense network takes beyond its layers' sum that does not shrink: see above."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A rising map from predicted sums to end-to-end times.

    Attributes:
        points: (predicted, measured) in the order in which they were measured, the dense network first.
    """

    points: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for predicted, measured in self.points:
            if not (isfinite(predicted) and isfinite(measured) and predicted > 0 and measured > 0):
                raise LatencyError(f"calibration point ({predicted}, {measured}): both must be positive numbers")

    def with_point(self, predicted: float, measured: float, dense: float | None = None) -> Calibration:
        """This calibration and one more measured network.

        Args:
            predicted: its sum of layer costs.
            measured: its end-to-end cost.
            dense: the dense network's end-to-end cost measured alongside; given, `measured` is scaled by how much
                the machine has changed speed since the first point.
        """
        if dense is not None and self.points:
            measured *= self.measured_dense / dense
        return Calibration((*self.points, (float(predicted), float(measured))))

    @property
    def measured_dense(self) -> float:
        """End-to-end cost of the dense network.

        Raises:
            LatencyError: no point yet.
        """
        return self._first()[1]

    def predict(self, total: float) -> float:
        """End-to-end cost of a network whose layers sum up to `total`."""
        xs, ys = self._curve()
        if total <= xs[0]:
            return float(ys[0] - self._slope(xs, ys) * (xs[0] - total))
        if total >= xs[-1]:
            return float(ys[-1] * total / xs[-1])
        return float(np.interp(total, xs, ys))

    def budget_for(self, cost: float) -> float:
        """The sum of layer costs to solve for, so that the network takes `cost` end to end.

        Where that lies below the overhead, no network meets it: the answer is then tiny and the solver says
        what the smallest network costs.
        """
        xs, ys = self._curve()
        if cost <= ys[0]:
            return max(float(xs[0] - (ys[0] - cost) / self._slope(xs, ys)), 1e-6 * float(xs[0]))
        if cost >= ys[-1]:
            return float(xs[-1] * cost / ys[-1])
        return float(np.interp(cost, ys, xs))

    def _first(self) -> tuple[float, float]:
        if not self.points:
            raise LatencyError("this calibration has no points: add the dense network's with with_point()")
        return self.points[0]

    def _curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Strictly rising xs and ys: points at equal sums, or that fall where sums rise, are averaged."""
        self._first()
        blocks: list[tuple[float, float, int]] = []
        for x, y in sorted(self.points):
            blocks.append((x, y, 1))
            while len(blocks) > 1 and (blocks[-2][1] >= blocks[-1][1] or blocks[-2][0] == blocks[-1][0]):
                blocks[-2:] = [_merged(blocks[-2:])]
        return np.array([b[0] for b in blocks]), np.array([b[1] for b in blocks])

    @staticmethod
    def _slope(xs: np.ndarray, ys: np.ndarray) -> float:
        """Slope below the first point: towards the last one, between `_LEAST_SLOPE` and 1 times the first's ratio."""
        ratio = ys[0] / xs[0]
        stays = _STAYS * max(ys[0] - xs[0], 0.0)
        secant = (ys[-1] - ys[0]) / (xs[-1] - xs[0]) if len(xs) > 1 else (ys[0] - stays) / xs[0]
        return float(np.clip(secant, _LEAST_SLOPE * ratio, ratio))


def _merged(blocks: Sequence[tuple[float, float, int]]) -> tuple[float, float, int]:
    count = sum(n for *_, n in blocks)
    return sum(x * n for x, _, n in blocks) / count, sum(y * n for _, y, n in blocks) / count, count
