"""Residual branches that may be dropped whole: the value that finding, scoring, solving and rewriting share.

A branch is what is computed between a value (the shortcut) and an add of that value: `out = shortcut + branch`.
Dropped, it leaves `out = shortcut`. `residual` finds them, `trials` knows which may go, `rewriting.dropping` drops
them; `without` is the coupling of what is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import fx

from ..errors import PlanError
from ..tracing.graph import keep, of
from ..types import ChannelGroup, Coupling, Member, Step, Traced, scored_name


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


def without(coupling: Coupling, branches: Sequence[Branch]) -> Coupling:
    """The coupling of the network that is left when branches are dropped.

    What a remaining operator read from a dropped one, it reads from the shortcut. Groups stay what they are, though
    without the branch less may hold their channels together.
    """
    if not branches:
        return coupling
    gone = {name: b.shortcut for b in branches for name in b.nodes}
    tensors = frozenset(t for b in branches for t in b.tensors)
    names = {g for b in branches for g in b.groups}
    modules = tuple(m for b in branches for m in b.modules)
    traced = coupling.traced
    groups = tuple(
        replace(g, members=tuple(m for m in g.members if m.axis.tensor not in tensors))
        for g in coupling.groups
        if g.name not in names
    )
    rest = Traced(
        _without_nodes(traced.graph, gone),
        {name: spec for name, spec in traced.tensors.items() if name not in tensors},
        tuple(name for name in traced.unused if name not in tensors),
    )
    edits = tuple(e for e in coupling.edits if not any(f"{e.module}.".startswith(f"{m}.") for m in modules))
    # What the branch does in other forwards is not looked for: only the first one is compared from here on.
    return replace(coupling, traced=rest, groups=groups, edits=edits, further=())


def _without_nodes(graph: fx.Graph, gone: dict[str, str]) -> fx.Graph:
    """A copy without some nodes; each is read as the node that `gone` names for it. Names stay."""
    rest = fx.Graph()
    inside: dict[str, fx.Node] = {}

    def read_as(node: fx.Node) -> fx.Node:
        name = node.name
        while name in gone:  # A shortcut may itself be the add of a dropped branch.
            name = gone[name]
        return inside[name]

    for node in graph.nodes:
        if node.op == "output":
            keep(rest.output(fx.node.map_arg(node.args[0], read_as)), of(node))
        elif node.name not in gone:
            inside[node.name] = rest.node_copy(node, read_as)
            assert inside[node.name].name == node.name
    return rest
