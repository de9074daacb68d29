"""Residual branches that may be dropped whole: the value that finding, scoring, solving and rewriting share.

A branch is what is computed between a value (the shortcut) and an add of that value: `out = shortcut + branch`.
Dropped, it leaves `out = shortcut`. `residual` finds them, `trials` knows which may go, `rewriting.dropping` drops
them; `without` is the coupling of what is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import fx

from ..errors import PlanError
from ..tracing.graph import keep, of
from ..types import AttributeEdit, ChannelGroup, ChannelMap, Coupling, ForwardPart, Further, Member, Traced, scored_name


@dataclass(frozen=True, slots=True)
class Replacement:
    """What takes the place of a module.

    Attributes:
        module: qualified name.
        kind: "shortcut" (its input, through `parts`), "zeros" (zeros of its input's shape), or "input" (its input).
        parts: what remains of the forward, for "shortcut".
        results: number of results and position of the tensor among them, None where the result is a tensor.
    """

    module: str
    kind: str
    parts: tuple[ForwardPart, ...] = ()
    results: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a branch is in one forward.

    Attributes:
        add: node of the add. `side` is the argument that the branch is.
        shortcut: node of the value that stays.
        nodes: nodes that vanish.
    """

    add: str
    side: int
    shortcut: str
    nodes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Branch:
    """A residual branch that may be dropped whole.

    Attributes:
        name: the module that stands for it.
        places: where it is in each of `forwards`; None where that one does not run it. The first one does.
        replacements: what is done to the modules.
        tensors: parameters and buffers that go.
        groups: channel groups that exist only in it.
        output: the axes that make the channels it adds: its last layer's and those of the norms behind it.
    """

    name: str
    places: tuple[Place | None, ...]
    replacements: tuple[Replacement, ...]
    tensors: frozenset[str]
    groups: tuple[str, ...] = ()
    output: tuple[Member, ...] = ()

    @property
    def first(self) -> Place:
        """Where it is in the forward that costs and shapes refer to."""
        place = self.places[0]
        assert place is not None
        return place

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

    def among(self, names: Iterable[str]) -> tuple[Branch, ...]:
        """The branches that have one of these names; a name may have none."""
        wanted = set(names)
        return tuple(b for b in self.removable if b.name in wanted)

    def without(self, reasons: Mapping[str, str]) -> Branches:
        """The same with some branches refused."""
        stay = tuple(b for b in self.removable if b.name not in reasons)
        return Branches(stay, {**self.refused, **reasons})


def output_groups(branches: Sequence[Branch]) -> tuple[ChannelGroup, ...]:
    """The channels that each branch adds, as groups that can be scored; see `scored_name`."""
    return tuple(ChannelGroup(scored_name(b.name), b.output[0].slots.shape[0], b.output) for b in branches)


def forwards(coupling: Coupling) -> tuple[Coupling, ...]:
    """The forwards in eval mode, the first one's first: in these branches are looked for, and what is left is compared.

    In train mode a branch is made of other operators (dropout): what becomes of it there is not looked for.
    """
    return tuple(view for view in coupling.views() if not view.traced.run.training)


def without(coupling: Coupling, branches: Sequence[Branch]) -> Coupling:
    """The coupling of the network that is left when branches are dropped.

    What a remaining operator read from a dropped one, it reads from the shortcut. Groups stay what they are, though
    without the branch less may hold their channels together. Only `forwards` stay.
    """
    if not branches:
        return coupling
    tensors = frozenset(t for b in branches for t in b.tensors)
    names = {g for b in branches for g in b.groups}
    modules = tuple(m for b in branches for m in b.modules)
    groups = tuple(
        replace(g, members=tuple(m for m in g.members if m.axis.tensor not in tensors))
        for g in coupling.groups
        if g.name not in names
    )
    first, *others = (
        _forward_without(view, [b.places[i] for b in branches], tensors, names)
        for i, view in enumerate(forwards(coupling))
    )
    left = {node.name for node in first.traced.graph.nodes}

    def stays(edit: AttributeEdit) -> bool:
        inside = any(f"{edit.module}.".startswith(f"{m}.") for m in modules)
        return not inside and names.isdisjoint(name for name, _ in edit.extent.terms)

    return replace(
        coupling,
        traced=first.traced,
        shapes=first.shapes,
        restricted=first.restricted,
        further=tuple(others),
        groups=groups,
        edits=tuple(filter(stays, coupling.edits)),
        mended=tuple(filter(stays, coupling.mended)),
        computed=tuple(w for w in coupling.computed if w.node in left),
    )


def _forward_without(
    view: Coupling, places: Sequence[Place | None], tensors: frozenset[str], groups: set[str]
) -> Further:
    """One forward without branches, and without what their parameters and groups leave behind."""
    traced = view.traced
    graph = _without_nodes(traced.graph, {name: p.shortcut for p in places if p is not None for name in p.nodes})
    left = {node.name for node in graph.nodes}
    rest = Traced(
        graph,
        {name: spec for name, spec in traced.tensors.items() if name not in tensors},
        tuple(name for name in traced.unused if name not in tensors),
        on_meta=traced.on_meta,
        run=traced.run,
        reads=tuple(read for read in traced.reads if read.node in left),
    )
    stays = [g.name not in groups for g in view.groups]
    # Old number of a group -> its number among those that stay; the last is for places of no group (-1).
    numbers = np.append(np.where(stays, np.cumsum(stays) - 1, -1), -1)
    restricted = {
        name: tuple(ChannelMap({d: (numbers[own], channels) for d, (own, channels) in m.dims.items()}) for m in maps)
        for name, maps in view.restricted.items()
        if name in left
    }
    return Further(rest, {name: shape for name, shape in view.shapes.items() if name in left}, restricted)


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
