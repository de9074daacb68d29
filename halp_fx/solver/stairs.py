"""stairs: what layers cost at each width -> blocks of channels that go together, because a part of one saves nothing.

Hardware runs channels in tiles, so a layer's latency is a staircase of its output width. HALP (arXiv 2110.10811,
section 3.3) cuts the channels of a group into blocks as large as the largest tread among the layers that make it.
"""

from __future__ import annotations

import numpy as np

from .problem import WidthProblem
from .tables import Floats, Ints

WITHIN = 0.25
"""A staircase rises by no more than this share between the ends of its treads. A straight line rises by at least half
of it within the smallest tread that has an inside, so noise of some percent makes no stairs, and takes none away."""

RISES = 0.05
"""A layer that costs hardly less when it is narrow (by this share) has no stairs to find."""

BLOCKS = 8
"""Blocks of a group whose layers have no stairs. The released table of ResNet-50 has 2 to 16, most of them 4 to 8."""


def tread(widths: Ints, costs: Floats) -> int | None:
    """The width of a staircase's treads, None where a cost rises evenly, or hardly.

    Args:
        widths: ascending; all but the last are multiples of their spacing.
        costs: (K,) at these widths, the input as wide as it is.

    Returns:
        The largest multiple of the spacing, at most half of the last width, such that the cost rises between blocks of
        so many channels, counted from the first, and not within them (it may fall there).
    """
    whole = float(costs[-1] - costs[0])
    if len(widths) < 3 or whole <= RISES * abs(float(costs[-1])):
        return None
    spacing = _spacing(widths)
    for size in range(int(widths[-1]) // 2 // spacing * spacing, spacing, -spacing):
        block = (widths - 1) // size
        first = np.flatnonzero(np.diff(block, prepend=-1))
        last = np.append(first[1:], len(widths)) - 1
        # Where every block is seen at one width only, nothing is known of its inside.
        rises = np.maximum(costs[last] - costs[first], 0.0)
        if (last > first).any() and float(rises.sum()) <= WITHIN * whole:
            return size
    return None


def blocks(problem: WidthProblem) -> dict[str, int]:
    """Channels in a block of each group: the largest tread among the layers that produce it, everything else as wide as
    the problem allows; where none of them has stairs, about an eighth of the group.

    Args:
        problem: offers the widths at which the tables are looked at.
    """
    full = {name: int(group.widths[-1]) for name, group in problem.groups.items()}
    found: dict[str, int] = {}
    for name, group in problem.groups.items():
        treads = []
        for cost in problem.costs:
            scale = sum(term.scale for term in cost.output if term.group == name)
            if not scale or any(term.group == name for term in cost.inputs):
                continue
            out = problem.out_width(cost, full) + scale * (group.widths - full[name])
            treads.append(tread(group.widths, cost.at(out, problem.in_width(cost, full))[:, 0]))
        spacing = _spacing(group.widths)
        eighth = -(-full[name] // (BLOCKS * spacing)) * spacing
        found[name] = max((t for t in treads if t is not None), default=eighth)
    return found


def _spacing(widths: Ints) -> int:
    return int(np.gcd.reduce(widths[:-1])) if len(widths) > 1 else int(widths[0])
