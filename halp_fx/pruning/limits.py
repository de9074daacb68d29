"""What the caller allows single groups: by module, parameter, group or pattern -> the widths that a group may take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..arguments import is_count, is_share
from ..coupling.branches import Branches
from ..errors import BudgetError, ModelError
from ..model.naming import names_of
from ..types import ChannelGroup, Coupling

Bound = float | int
"""A share of a group's channels (a float), or a number of them (an int)."""

LimitLike = Bound | tuple[Bound, Bound]


@dataclass(frozen=True, slots=True)
class Limit:
    """The smallest and the largest width of the groups that something produces.

    Attributes:
        asked: the entry, as the caller wrote it.
        names: modules, parameters and groups that it means.
        low, high: the bounds; equal ones hold the width.
    """

    asked: str
    names: tuple[str, ...]
    low: Bound
    high: Bound

    def covers(self, group: ChannelGroup) -> bool:
        """Whether a layer that produces the group is meant, or the group itself."""
        made = {m.axis.tensor for m in group.members if m.role == "producer"} | {group.name}
        return any(tensor == name or tensor.startswith(f"{name}.") for tensor in made for name in self.names)

    def widths(self, group: ChannelGroup, offered: Sequence[int]) -> tuple[int, ...]:
        """Those of the widths that are offered that are allowed."""
        least, most = self.bounds(group)
        return tuple(w for w in offered if least <= w <= most)

    def bounds(self, group: ChannelGroup) -> tuple[int, int]:
        """The smallest and the largest number of channels."""
        least, most = self.raw(group)
        return least, max(least, most)

    def raw(self, group: ChannelGroup) -> tuple[int, int]:
        """The same, where shares that no number of channels lies between may leave the one above the other."""
        return _channels(self.low, group.size, up=True), _channels(self.high, group.size, up=False)


def named_limits(model: nn.Module, limits: Mapping[str, LimitLike]) -> tuple[Limit, ...]:
    """Limits with the names that their entries mean, checked.

    Raises:
        ModelError: an entry matches nothing in this model.
        BudgetError: bounds that are none.
    """
    if not isinstance(limits, Mapping):
        raise BudgetError(
            f'limits={limits!r} must be a mapping such as {{"layer1.*": (0.5, 1.0), "layer4.0.conv1": 256}}'
        )
    found = []
    for asked, bounds in limits.items():
        low, high = bounds if isinstance(bounds, tuple | list) and len(bounds) == 2 else (bounds, bounds)
        for bound in (low, high):
            _check(asked, bound)
        if is_share(low) == is_share(high) and low > high:
            raise BudgetError(f"limits of {asked!r}: the smallest width {low!r} is above the largest {high!r}")
        found.append(Limit(asked, tuple(names_of(model, asked, "limits")), low, high))
    return tuple(found)


def check_limits(limits: Sequence[Limit], coupling: Coupling) -> None:
    """Whether limits can hold in a network.

    Raises:
        ModelError: a limit is for no group that may shrink.
        BudgetError: its bounds contradict each other for a group, one a share and the other a number; or the smallest
            width is a number that none of its groups has.
    """
    for limit in limits:
        covered = [group for group in coupling.prunable if limit.covers(group)]
        # Of a group that is narrower than the others of a pattern it means all.
        widest = max(covered, key=lambda group: group.size, default=None)
        if widest is not None and is_count(limit.low) and limit.low > widest.size:
            channels = widest.channels
            has = f"{widest.size} channels" if channels.outputs == channels.number else str(channels)
            raise BudgetError(
                f"limits of {limit.asked!r}: {limit.low!r} channels are to stay, and {widest.name!r}"
                f"{', the widest that is meant,' if len(covered) > 1 else ''} has {has}: write at most {widest.size}, "
                f"or 1.0 to keep all"
            )
        for group in (g for g in covered if limit_of(g, limits) is limit):
            least, most = limit.raw(group)
            if least > most and is_share(limit.low) != is_share(limit.high):
                raise BudgetError(
                    f"limits of {limit.asked!r}: of the {group.size} channels of {group.name!r} the smallest width "
                    f"{limit.low!r} is {least} and the largest {limit.high!r} is {most}: write bounds that leave some"
                )
        if covered:
            continue
        frozen = [f"{g.name} may not shrink: {g.frozen}" for g in coupling.groups if g.frozen and limit.covers(g)]
        why = frozen[0] if frozen else "no layer in it produces channels"
        raise ModelError(f"limits: {limit.asked!r} has no channels whose number may change ({why})")


def limit_of(group: ChannelGroup, limits: Sequence[Limit]) -> Limit | None:
    """The last one that is for a group."""
    return next((limit for limit in reversed(limits) if limit.covers(group)), None)


def limited(branches: Branches, coupling: Coupling, limits: Sequence[Limit]) -> dict[str, str]:
    """Branches in which a group has a smallest width by the caller's word, and why they stay."""
    groups = {g.name: g for g in coupling.groups}
    return {
        branch.name: f"limits: {limit.asked!r} has a smallest width"
        for branch in branches.removable
        for name in branch.groups
        if (limit := limit_of(groups[name], limits)) is not None
    }


def _check(asked: str, bound: Any) -> None:
    if not (is_share(bound) or is_count(bound)):
        raise BudgetError(
            f"limits of {asked!r}: {bound!r} is neither a share of the channels (a float in (0, 1]) nor a number of "
            "them (an int of at least 1); write one of them, or (smallest, largest)"
        )


def _channels(bound: Bound, size: int, up: bool) -> int:
    if is_count(bound):
        return min(int(bound), size)
    # 0.3 * 10 is a hair above 3.
    return math.ceil(bound * size - 1e-9) if up else max(1, math.floor(bound * size + 1e-9))
