"""blocks: which widths of a group are offered: whole blocks of channels, as large as the steps of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..solver import WidthGroup, WidthProblem
from ..solver.stairs import blocks
from ..types import Coupling
from .published import RECIPES
from .request import Request

Options = Mapping[str, Sequence[int]]


def block_sizes(request: Request, coupling: Coupling, options: Options) -> dict[str, int]:
    """Channels that go together in each group of the original network, for a published method; none where the caller
    says how widths are rounded."""
    if request.solver not in RECIPES or request.round_to is not None:
        return {}
    groups = {name: WidthGroup(np.asarray(widths), np.zeros(len(widths))) for name, widths in options.items()}
    problem = WidthProblem("staircases", groups, tuple(request.goals.staircases(coupling, options)), {})
    return blocks(problem)


def in_blocks(options: Options, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Of the widths that each group may take those that are whole blocks, and the last, which is what it has now."""
    if not sizes:
        return {name: tuple(own) for name, own in options.items()}
    return {name: tuple(w for w in own if w % sizes.get(name, 1) == 0 or w == own[-1]) for name, own in options.items()}
