"""The dependency graph: which axes of a network depend on which, by what, and slot by slot how.

An edge is of one of two kinds. An operator *couples* slots of two axes: they are kept or removed together. And a layer
computes the channels along its output axis from those along its input axis (`LAYER`): they depend on each other, but
may go one by one. Every edge runs from the axis that the forward meets first to the one that it meets later, so that
but for loops (slots of one axis that are coupled) there are no cycles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy  # Its parts are imported when they are first used.

from ..errors import ModelError
from ..files import path_of, replacing
from ..lazy import Lazily

if TYPE_CHECKING:
    import networkx as nx
    from torch import fx

    from .values import Axis, ChannelGroup, Link, Links
else:
    nx = Lazily("networkx")

LAYER = "layer"
"""The kind of an edge from a layer's input axis to its output axis. All other edges couple."""

CONCAT = "concat"
"""The kind of an edge to a layer that reads several axes side by side."""

_FROM, _TO = "from", "to"


class Dependency(NamedTuple):
    """One edge.

    Attributes:
        first, second: the axes, in the order of the forward.
        op, kind, where: the operator, what kind of edge it is, and where in the program.
        slots: two equally long arrays: slots of `first` and of `second` that are coupled one to one. Empty for layers.
    """

    first: Axis
    second: Axis
    op: str
    kind: str
    where: str
    slots: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False, repr=False)
class DependencyGraph:
    """The axes of a network and what is between them.

    Attributes:
        graph: axes as nodes, with `size`, `role`, `groups` (names) and `frozen` (a reason, or ""); edges with `op`,
            `kind`, `where` and `slots`, see `Dependency`. A value that several axes share, as behind a residual add,
            is read by the name of one of them: the edges do not tell order, `operators` does.
        links: what the coupled slots were found from.
        operators: names of the trace's nodes, with an edge from every value to what reads it.
        readers: of every tensor, the first node that uses it with values of the input.
    """

    graph: nx.MultiDiGraph
    links: Links
    operators: nx.DiGraph
    readers: Mapping[str, str]

    @classmethod
    def of(cls, links: Links, groups: Iterable[ChannelGroup], traced: fx.Graph) -> DependencyGraph:
        """The graph of everything that was coupled, and of the layers between."""
        graph: nx.MultiDiGraph = nx.MultiDiGraph()
        held: dict[Axis, list[ChannelGroup]] = {}
        for group in groups:
            for member in group.members:
                held.setdefault(member.axis, []).append(group)
        for axis, size, role in zip(links.axes, np.diff(links.starts).tolist(), links.roles, strict=True):
            own = held.get(axis, [])
            frozen = "; ".join(dict.fromkeys(g.frozen for g in own if g.frozen))
            graph.add_node(axis, size=size, role=role, groups=tuple(g.name for g in own), frozen=frozen)
        rank = _ranks(links)
        reading: dict[Axis, Link] = {}
        for key, link in enumerate(links.links):
            for x, y, slots, kind in _between(link, links, rank):
                first, second = links.axes[x], links.axes[y]
                graph.add_edge(first, second, key, op=link.op, kind=kind, where=link.where, slots=slots)
                if links.roles[y] == "consumer":
                    reading.setdefault(second, link)
        for given, made in _layers(links):
            reader = reading.get(given)
            op, where = (reader.op, reader.where) if reader else ("", made.tensor.rpartition(".")[0])
            graph.add_edge(given, made, LAYER, op=op, kind=LAYER, where=where, slots=(_NONE, _NONE))
        return cls(graph, links, *_operators(traced))

    def __repr__(self) -> str:
        return f"DependencyGraph({len(self.graph)} axes, {self.graph.number_of_edges()} edges)"

    def edges(self) -> Iterator[Dependency]:
        for first, second, edge in self.graph.edges(data=True):
            yield Dependency(first, second, **edge)

    def axes(self, name: str | Axis) -> tuple[Axis, ...]:
        """The axes that a name means: that axis ("conv1.weight[0]"), or all of a tensor or of a layer.

        Raises:
            ModelError: there is none.
        """
        found = [a for a in self.graph if name in (a, str(a), a.tensor, a.tensor.rpartition(".")[0])]
        if not found:
            some = ", ".join(str(a) for a in list(self.graph)[:8])
            raise ModelError(f"{str(name)!r} matches no axis, no parameter and no layer. Axes here: {some}, …")
        return tuple(found)

    def components(self) -> list[frozenset[Axis]]:
        """Axes that coupling holds together, directly or through others, in the order of the forward. Channel groups
        are finer: those that a concat puts side by side share a component and no channel."""
        return [frozenset(c) for c in nx.connected_components(self._coupled)]

    def ancestors(self, axis: Axis) -> frozenset[Axis]:
        """Earlier axes whose values go into what is computed with this one."""
        reader = self.readers.get(axis.tensor)
        before = {reader, *nx.ancestors(self.operators, reader)} if reader else set()
        return self._used_in(before, lambda rank: rank < self._rank[axis])

    def descendants(self, axis: Axis) -> frozenset[Axis]:
        """Later axes that are used with values which were computed with this one."""
        reader = self.readers.get(axis.tensor)
        after = {reader, *nx.descendants(self.operators, reader)} if reader else set()
        return self._used_in(after, lambda rank: rank > self._rank[axis])

    def generations(self) -> list[tuple[Axis, ...]]:
        """All axes as the forward comes to them: each behind what it depends on, and a layer's input before its output.
        Those that the first trace does not reach come last."""
        depth = {
            name: i for i, generation in enumerate(nx.topological_generations(self.operators)) for name in generation
        }
        found: dict[tuple[int, bool], list[Axis]] = {}
        for axis, role in self.graph.nodes(data="role"):
            place = depth.get(self.readers.get(axis.tensor, ""), len(depth))
            found.setdefault((place, role != "consumer"), []).append(axis)
        return [tuple(found[key]) for key in sorted(found)]

    def path(self, a: Axis, b: Axis) -> tuple[Dependency, ...]:
        """Why a channel has slots on both axes: for the first that has, the shortest chain of couplings from a slot of
        one to a slot of the other. Empty if there is none, or they are one axis.

        It is looked for slot by slot: two axes that a concat puts side by side meet in an axis, but not in a slot.
        """
        ids = [self._labels(axis) for axis in (a, b)]
        common = np.intersect1d(self._classes[ids[0]], self._classes[ids[1]])
        if not len(common) or a == b:
            return ()
        one = common[0]
        slots: nx.Graph = nx.Graph()
        for key, link in enumerate(self.links.links):
            rows = np.flatnonzero(self._classes[link.a] == one)
            slots.add_edges_from(zip(link.a[rows].tolist(), link.b[rows].tolist(), strict=True), key=key)
        for end, labels in zip((_FROM, _TO), ids, strict=True):
            slots.add_edges_from((end, label) for label in labels[self._classes[labels] == one].tolist())
        _, *inner, _ = nx.shortest_path(slots, _FROM, _TO)
        return tuple(self._edge(left, right, slots[left][right]["key"]) for left, right in pairwise(inner))

    def beside(self, a: Axis, b: Axis) -> tuple[Axis, ...]:
        """The input axes of layers that read both, side by side."""
        read = [{y for _, y, kind in self.graph.out_edges(x, data="kind") if kind == CONCAT} for x in (a, b)]
        return tuple(axis for axis in self.graph if axis in read[0] & read[1])

    def way(self, a: Axis, b: Axis) -> tuple[Dependency, ...]:
        """How the later of two axes depends on the earlier: the shortest chain of couplings and layers. Empty if it
        does not."""
        first, last = sorted((a, b), key=self._rank.__getitem__)
        ends = [[(axis, group) for group in self.graph.nodes[axis]["groups"] or ("",)] for axis in (first, last)]
        passable = self._passable.copy()
        passable.add_edges_from((_FROM, place) for place in ends[0])
        passable.add_edges_from((place, _TO) for place in ends[1])
        if last not in self.descendants(first) or not nx.has_path(passable, _FROM, _TO):
            return ()
        _, *inner, _ = nx.shortest_path(passable, _FROM, _TO)
        return tuple(passable[x][y]["by"] for x, y in pairwise(inner))

    def write_graphml(self, path: str | PathLike[str]) -> None:
        """Write the graph for other programs: names for axes, and slots as text, e.g. "0-63 = 64-127"."""
        with replacing(path_of(path)) as temporary:
            nx.write_graphml(self.plain(), temporary)

    def plain(self) -> nx.MultiDiGraph:
        """The graph with nothing but text and numbers in it."""
        plain: nx.MultiDiGraph = nx.MultiDiGraph()
        for axis, data in self.graph.nodes(data=True):
            known = {"tensor": axis.tensor, "dim": axis.dim, "size": data["size"], "role": data["role"]}
            plain.add_node(str(axis), **known, groups=", ".join(data["groups"]), frozen=data["frozen"])
        for e in self.edges():
            words = ", ".join(f"{a} = {b}" for a, b in in_runs(*e.slots))
            plain.add_edge(str(e.first), str(e.second), op=e.op, kind=e.kind, where=e.where, slots=words)
        return plain

    @cached_property
    def _coupled(self) -> nx.Graph:
        coupled: nx.Graph = nx.Graph()
        coupled.add_nodes_from(self.graph)
        coupled.add_edges_from((a, b) for a, b, kind in self.graph.edges(data="kind") if kind != LAYER)
        return coupled

    @cached_property
    def _passable(self) -> nx.DiGraph:
        """From the channels of a group along one axis to others: through a layer one way and to all, through a coupling
        both ways and to the same group. So a concat does not lead from one of its parts to another."""
        passable: nx.DiGraph = nx.DiGraph()
        groups = {axis: names or ("",) for axis, names in self.graph.nodes(data="groups")}
        for edge in self.edges():
            for group in groups[edge.first]:
                for other in groups[edge.second]:
                    here, there = (edge.first, group), (edge.second, other)
                    if edge.kind == LAYER:
                        passable.add_edge(here, there, by=edge)
                    elif group == other:
                        passable.add_edge(here, there, by=edge)
                        passable.add_edge(there, here, by=edge)
        return passable

    @cached_property
    def _rank(self) -> Mapping[Axis, int]:
        return dict(zip(self.links.axes, _ranks(self.links).tolist(), strict=True))

    def _used_in(self, operators: set[str], where: Callable[[int], bool]) -> frozenset[Axis]:
        return frozenset(a for a in self.graph if where(self._rank[a]) and self.readers.get(a.tensor) in operators)

    @cached_property
    def _classes(self) -> np.ndarray:
        """The channel of every label: components at slot level, which scipy finds in milliseconds."""
        count = int(self.links.starts[-1])
        a, b = (np.concatenate([_NONE, *(getattr(link, side) for link in self.links.links)]) for side in ("a", "b"))
        return components(count, a, b)

    def _labels(self, axis: Axis) -> np.ndarray:
        start, end = self.links.starts[self.links.axes.index(axis) :][:2].tolist()
        return np.arange(start, end)

    def _edge(self, left: int, right: int, key: int) -> Dependency:
        """The edge that couples two labels."""
        x, y = (self.links.axes[i] for i in np.searchsorted(self.links.starts, [left, right], side="right") - 1)
        first, second = (x, y) if self.graph.has_edge(x, y, key) else (y, x)
        return Dependency(first, second, **self.graph.edges[first, second, key])


def components(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The component of each of `count` nodes, numbered without gaps, by the edges between `a[i]` and `b[i]`."""
    edges = scipy.sparse.coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
    return np.asarray(scipy.sparse.csgraph.connected_components(edges, directed=False)[1])


def in_runs(a: np.ndarray, b: np.ndarray) -> list[tuple[str, str]]:
    """A map of slots in words, run by run: [("0-7", "8-15")]; [("0", "0-48"), ("1", "49-97")] where one slot goes
    with many."""
    if not len(a):
        return []
    pairs = np.unique(np.stack([a, b]), axis=1)
    steps = np.diff(pairs, axis=1)
    regular = max((np.array([[1], [1]]), np.array([[0], [1]])), key=lambda step: int((steps == step).all(0).sum()))
    breaks = np.flatnonzero((steps != regular).any(0)) + 1
    return [(_run(part[0]), _run(part[1])) for part in np.split(pairs, breaks, axis=1)]


_NONE = np.array([], dtype=np.int64)


def _run(slots: np.ndarray) -> str:
    return str(slots[0]) if slots[0] == slots[-1] else f"{slots[0]}-{slots[-1]}"


def _ranks(links: Links) -> np.ndarray:
    """The place of every axis in the forward: tensors as they are first read, a layer's input before its output."""
    begin: dict[str, int] = {}
    for i, axis in enumerate(links.axes):
        begin.setdefault(axis.tensor, i)
    order = sorted(
        range(len(links.axes)),
        key=lambda i: (begin[links.axes[i].tensor], links.roles[i] != "consumer", links.axes[i].dim),
    )
    return np.argsort(order)


def _layers(links: Links) -> Iterator[tuple[Axis, Axis]]:
    """The input and the output axis of every layer."""
    made: dict[str, list[Axis]] = {}
    for axis, role in zip(links.axes, links.roles, strict=True):
        if role == "producer":
            made.setdefault(axis.tensor, []).append(axis)
    for axis, role in zip(links.axes, links.roles, strict=True):
        for output in made.get(axis.tensor, ()) if role == "consumer" else ():
            yield axis, output


def _between(
    link: Link, links: Links, rank: np.ndarray
) -> Iterator[tuple[int, int, tuple[np.ndarray, np.ndarray], str]]:
    """The edges of one link: for each two axes that it couples, their indices, the slots, and the kind."""
    ends = np.stack([link.a, link.b]).astype(np.int64)
    axes = np.searchsorted(links.starts, ends, side="right") - 1
    swapped = rank[axes[0]] > rank[axes[1]]
    if swapped.any():
        axes[:, swapped], ends[:, swapped] = axes[::-1, swapped], ends[::-1, swapped]
    codes = axes[0] * len(links.axes) + axes[1]
    if (codes[1:] < codes[:-1]).any():
        order = np.argsort(codes, kind="stable")
        axes, ends, codes = axes[:, order], ends[:, order], codes[order]
    bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    given: dict[int, list[np.ndarray]] = {}
    for start, end in pairwise(bounds):
        given.setdefault(int(axes[1, start]), []).append(ends[1, start:end])
    beside = {y for y, parts in given.items() if links.roles[y] == "consumer" and _apart(parts)}
    for start, end in pairwise(bounds):
        x, y = axes[:, start].tolist()
        kind = CONCAT if link.kind == "input" and y in beside else link.kind
        yield x, y, (ends[0, start:end] - links.starts[x], ends[1, start:end] - links.starts[y]), kind


def _operators(graph: fx.Graph) -> tuple[nx.DiGraph, dict[str, str]]:
    """What is read by what; and for every tensor the first operator that uses it with values of the input."""
    operators: nx.DiGraph = nx.DiGraph()
    readers: dict[str, str] = {}
    made_of: dict[str, set[str]] = {}  # Of what the forward computes from parameters alone: these, and itself.
    for node in graph.nodes:
        operators.add_node(node.name)
        operators.add_edges_from((source.name, node.name) for source in node.all_input_nodes)
        given = [made_of.get(source.name) for source in node.all_input_nodes]
        if node.op == "get_attr":
            made_of[node.name] = {str(node.target)}
        elif node.op != "placeholder" and None not in given:
            made_of[node.name] = {node.name}.union(*filter(None, given))
        for tensor in set().union(*filter(None, given)) if None in given else ():
            readers.setdefault(tensor, node.name)
    return operators, readers


def _apart(parts: list[np.ndarray]) -> bool:
    """Whether there are several, and no two have a label in common."""
    distinct = [np.unique(part) for part in parts]
    return len(parts) > 1 and len(np.unique(np.concatenate(distinct))) == sum(map(len, distinct))
