"""Residual branches that may be dropped whole: the value that finding, scoring, solving and rewriting share.

A branch is what is computed between a value (the shortcut) and an add of that value: `out = shortcut + branch`.
Dropped, it leaves `out = shortcut`. `residual` finds them, `rewriting.dropping` drops them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import PlanError
from ..types import ChannelGroup, Member, Step


@dataclass(frozen=True, slots=True)
class Replacement:
    """What takes the place of a module.

    Attributes:
        module: qualified name.
        kind: "shortcut" (its input, through `steps`), "zeros" (zeros of its input's shape), or "input" (its input).
        steps: what remains of the forward, for "shortcut".
        results: number of results and position of the tensor among them, None where the result is a tensor.
    """

    module: str
    kind: str
    steps: tuple[Step, ...] = ()
    results: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Branch:
    """A residual branch that may be dropped whole.

    Attributes:
        name: the module that stands for it.
        add: node of the add. `side` is the argument that the branch is.
        shortcut: node of the value that stays.
        replacements: what is done to the modules.
        nodes: nodes that vanish.
        tensors: parameters and buffers that go.
        groups: channel groups that exist only in it.
        output: the axes that make the channels it adds: its last layer's and those of the norms behind it.
    """

    name: str
    add: str
    side: int
    shortcut: str
    replacements: tuple[Replacement, ...]
    nodes: frozenset[str]
    tensors: frozenset[str]
    groups: tuple[str, ...] = ()
    output: tuple[Member, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(r.module for r in self.replacements)


@dataclass(frozen=True, slots=True)
class Branches:
    """The branches of a network in the order of the forward, and for other residual adds why they must stay."""

    removable: tuple[Branch, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def named(self, names: Iterable[str]) -> tuple[Branch, ...]:
        """The branches with these names.

        Raises:
            PlanError: there is no such branch, or it may not go.
        """
        known = {b.name: b for b in self.removable}
        found = []
        for name in names:
            if name not in known:
                why = self.refused.get(name)
                some = ", ".join(list(known)[:6]) or "none"
                raise PlanError(f"branch {name!r} may not be dropped: {why or f'not found; there are {some}'}")
            found.append(known[name])
        return tuple(found)

    def without(self, reasons: Mapping[str, str]) -> Branches:
        """The same with some branches refused."""
        stay = tuple(b for b in self.removable if b.name not in reasons)
        return Branches(stay, {**self.refused, **reasons})


def output_groups(branches: Sequence[Branch]) -> tuple[ChannelGroup, ...]:
    """The channels that each branch adds, as groups that can be scored; see `scored_name`."""
    return tuple(ChannelGroup(scored_name(b.name), b.output[0].slots.shape[0], b.output) for b in branches)


def scored_name(branch: str) -> str:
    """The name under which a branch's channels are scored: no group is called so."""
    return f"branch {branch}"
