"""Two plain methods to compare with: one common share of every group, and greedy removal.

Neither bounds the optimum.
"""

from __future__ import annotations

import numpy as np

from .local import Incumbent
from .model import Model
from .tables import Floats, Ints


def full_state(model: Model) -> Ints:
    """(V,) every group at its largest width and every branch kept."""
    state = np.array(model.sizes)[:, None] - 1
    return model.complete(state)[:, 0]


def solve_uniform(model: Model, widths: list[Ints], incumbent: Incumbent) -> None:
    """Offer the largest common share r that fits: each group takes its largest width <= r * its full
    width.

    Args:
        widths: for each group, its (K,) widths.
    """
    shares = np.unique(np.concatenate([[1.0], *(w / w[-1] for w in widths)]))
    states = np.repeat(full_state(model)[:, None], len(shares), axis=1)
    for v, w in enumerate(widths):
        states[v] = np.maximum(np.searchsorted(w / w[-1], shares + 1e-12, side="right") - 1, 0)
    incumbent.offer(model.complete(states))


def solve_greedy(model: Model, free: int, incumbent: Incumbent) -> None:
    """From the dense network, take the step that loses least value per cost saved until the budgets are met.

    A step lowers one of the first `free` variables (groups, then branches) to any smaller option; its true
    effect on every layer counts. Cost is what is above the budgets, relative to them.
    """
    state = full_state(model)
    value, cost = (x[..., 0] for x in incumbent.offer(state[:, None]))
    while not model.feasible(cost[:, None])[0]:
        states = _smaller(model, free, state)
        if states.shape[1] == 0:
            return
        values, costs = incumbent.offer(states)
        saved = _over(model, cost[:, None]) - _over(model, costs)
        rate = np.where(saved > 0, (value - values) / np.maximum(saved, 1e-300), np.inf)
        best = int(np.argmin(rate))
        if not np.isfinite(rate[best]):
            # A plateau: no single step saves anything. Take the one that loses least and look again from there.
            best = int(np.argmin(value - values))
        state, value, cost = states[:, best].copy(), values[best], costs[:, best]


def _smaller(model: Model, free: int, state: Ints) -> Ints:
    """(V, M) all states with one group at a smaller width."""
    moves = [(v, k) for v in range(free) for k in range(state[v])]
    states = np.repeat(state[:, None], len(moves), axis=1)
    for column, (v, k) in enumerate(moves):
        states[v, column] = k
    return model.complete(states)


def _over(model: Model, cost: Floats) -> Floats:
    return np.asarray(np.maximum(cost - model.limit[:, None], 0.0).sum(axis=0))
