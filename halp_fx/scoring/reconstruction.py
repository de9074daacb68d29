"""reconstruction: what is lost at every width when the layers behind a group make the best of what is left.

Fine-tuning lets the layers that read a group (its consumers) compute from the kept channels what they had from the
removed ones, as far as those can be told from these. For a consumer y = W a the best affine prediction of the removed
channels leaves the error W_R Sigma_R|K W_R', Sigma the covariance of its input, which counts by the Fisher information
of y. Channels go one by one, by the least increase (optimal brain surgeon), so that one elimination gives the error at
every width (ZipLM, arXiv 2302.04089; OSSCAR, arXiv 2403.12983, for the elimination; the weighting is our own).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RIDGE = 1e-2
"""Added to the covariance, as a share of its mean diagonal: with few samples, chance would predict anything."""


@dataclass(frozen=True, slots=True, eq=False)
class Consumer:
    """One layer that reads a group.

    Attributes:
        covariance: float64, (size, size): of its input, over samples and places.
        weights: float64, (outputs and taps, size), each row scaled by the root of the Fisher information of its output.
    """

    covariance: np.ndarray
    weights: np.ndarray


def reconstruction(consumers: Sequence[Consumer]) -> tuple[np.ndarray, np.ndarray]:
    """Remove channels one by one, each time the one without which the consumers lose least.

    Returns:
        The channels, the last removed first, and the loss at each width, of shape (size + 1,): 0 at the full width.
    """
    size = len(consumers[0].covariance)
    inverses, weights = [], []
    for consumer in consumers:
        cov = consumer.covariance
        ridge = RIDGE * max(float(np.trace(cov)) / size, 1e-30)
        inverses.append(np.linalg.inv(cov + ridge * np.eye(size)))
        weights.append(consumer.weights.copy())
    left = np.ones(size, bool)
    order, loss = np.empty(size, np.int64), np.zeros(size + 1)
    total = 0.0
    for width in range(size - 1, -1, -1):
        adds = np.zeros(size)
        for inverse, weight in zip(inverses, weights, strict=True):
            adds += (weight**2).sum(0) / np.maximum(np.diagonal(inverse), 1e-30) / 2
        adds[~left] = np.inf
        channel = int(np.argmin(adds))
        total += adds[channel]
        order[width], loss[width] = channel, total
        left[channel] = False
        for inverse, weight in zip(inverses, weights, strict=True):
            column = inverse[:, channel] / inverse[channel, channel]
            weight -= np.outer(weight[:, channel], column)
            inverse -= np.outer(column, inverse[channel])
            weight[:, channel] = 0
            inverse[channel], inverse[:, channel] = 0, 0
            inverse[channel, channel] = 1
    return order, loss
