"""`restrict`: the same problem with fewer widths to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..errors import ProblemError
from .problem import WidthProblem
from .tables import WidthGroup

Limit = int | Mapping[str, int]


def restrict(
    problem: WidthProblem,
    minimum: Limit | None = None,
    maximum: Limit | None = None,
    multiple: Limit | None = None,
) -> WidthProblem:
    """Keep only widths within limits, given for all groups (an int) or by group name.

    Args:
        problem: left as it is.
        minimum, maximum: channels, inclusive.
        multiple: only widths divisible by it. A group's largest width always passes this one (not `maximum`):
            leaving a layer as it is needs no alignment.

    Raises:
        ProblemError: an unknown group, a multiple below 1, or a group with no width left; the message names it.
    """
    for name in {key for limit in (minimum, maximum, multiple) if isinstance(limit, Mapping) for key in limit}:
        if name not in problem.groups:
            raise ProblemError(f"a limit is given for group {name!r}, which the problem does not have")
    groups, kept = {}, {}
    for name, group in problem.groups.items():
        low, high, step = (_of(limit, name) for limit in (minimum, maximum, multiple))
        keep = np.ones(len(group.widths), bool)
        if step is not None:
            if step < 1:
                raise ProblemError(f"multiple of group {name!r} is {step}: it must be at least 1")
            keep &= (group.widths % step == 0) | (group.widths == group.widths[-1])
        if low is not None:
            keep &= group.widths >= low
        if high is not None:
            keep &= group.widths <= high
        if not keep.any():
            raise ProblemError(
                f"group {name!r} has widths {group.widths[0]} to {group.widths[-1]}, none of which is within "
                f"minimum {low}, maximum {high}, multiple {step}"
            )
        groups[name], kept[name] = WidthGroup(group.widths[keep], group.value[keep]), keep
    branches = tuple(
        replace(b, adds={g: np.asarray(value)[kept[g]].tolist() for g, value in b.adds.items()})
        for b in problem.branches
    )
    return replace(problem, groups=groups, branches=branches)


def _of(limit: Limit | None, name: str) -> int | None:
    return limit.get(name) if isinstance(limit, Mapping) else limit
