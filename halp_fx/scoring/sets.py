"""sets: per-sample gate derivatives -> the loss of removing sets of channels, by the Fisher information.

A gate multiplies one channel; s[x, c] is the derivative of the loss of sample x by the gate of channel c. Closing the
gates of a set R changes the loss by about 1/2 E_x[(sum of s[x, c] over R)^2] (labels drawn from the network, where the
first-order term vanishes: Group Fisher, arXiv 2108.00708; the set form: Optimal Brain Connection, arXiv 2508.05521).
Unlike a sum of scores it knows that channels repeat each other, and rises faster the more is gone.
"""

from __future__ import annotations

import numpy as np


def elimination(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remove channels one by one, each time the one that adds least to 1/2 sum of the removed set's block of `gram`.

    Args:
        gram: float64, shape (size, size): E_x[s s'].

    Returns:
        The channels, the last removed first, and the loss at each width, of shape (size + 1,): 0 at the full width.
    """
    size = len(gram)
    # Of each channel left: what its removal adds. Removing r adds gram[:, r] to the others; what is gone is infinite.
    adds = np.diagonal(gram) / 2
    order = np.empty(size, np.int64)
    loss = np.zeros(size + 1)
    total = 0.0
    for width in range(size - 1, -1, -1):
        channel = int(np.argmin(adds))
        total += adds[channel]
        order[width], loss[width] = channel, total
        adds += gram[channel]
        adds[channel] = np.inf
    return order, loss
