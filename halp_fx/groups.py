"""From coupled labels to channel groups: classes of labels, groups of classes, sizes in terms of widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import networkx as nx
import numpy as np
from torch import fx

from .algebra import Algebra, Planes, compact, varying
from .errors import HalpError
from .types import ChannelGroup, Extent, Member


@dataclass(frozen=True, slots=True)
class Partition:
    """Which group and which channel every label belongs to.

    Attributes:
        groups: all groups, in the order of the forward.
        group_of: int array over labels: index into `groups`, -1 for labels that belong to none (kernel sizes).
        class_of: int array over labels: the class (connected component); 0 stays for label 0.
    """

    groups: tuple[ChannelGroup, ...]
    group_of: np.ndarray
    class_of: np.ndarray

    @classmethod
    def of(cls, algebra: Algebra) -> Partition:
        """Group the classes that touch the same axes equally often."""
        count = algebra.starts[-1]
        if count == 1:
            return cls((), np.array([-1]), np.array([0]))
        classes = np.unique(algebra.classes(), return_inverse=True)[1]
        axis_of = np.zeros(count, dtype=np.int64)
        axis_of[1:] = np.repeat(np.arange(len(algebra.axes)), np.diff(algebra.starts))
        reasons = _pin_reasons(algebra, classes)
        signature = _signatures(classes, axis_of, reasons)
        # Groups in the order of their first label, which is the order of the forward.
        _, first, group_of = np.unique(signature[classes[1:]], return_index=True, return_inverse=True)
        order = np.argsort(np.argsort(first))
        group_of = np.concatenate([[-1], order[group_of]])
        names: dict[str, int] = {}
        inexact = np.zeros(count, dtype=bool)
        for labels in algebra.inexact:
            inexact[labels[labels > 0]] = True
        groups: list[ChannelGroup] = []
        index_of = np.full(len(first), -1)
        by_group = np.argsort(group_of[1:], kind="stable") + 1
        bounds = np.searchsorted(group_of[by_group], np.arange(len(first) + 1))
        for g in range(len(first)):
            labels = by_group[bounds[g] : bounds[g + 1]]
            reason = reasons.get(int(classes[labels[0]]))
            group = _group(algebra, labels, classes, axis_of, reason, names)
            if group is not None:
                index_of[g] = len(groups)
                groups.append(replace(group, zero_exact=not inexact[labels].any()))
        group_of[1:] = index_of[group_of[1:]]
        return cls(tuple(groups), group_of, classes)

    def frozen_by_name(self, names: Sequence[str], error: type[HalpError]) -> tuple[ChannelGroup, ...]:
        """The groups, with the named ones frozen."""
        known = {g.name for g in self.groups}
        for name in names:
            if name not in known:
                some = ", ".join(sorted(known)[:8])
                raise error(f"ignore={name!r} matches no module, parameter or group. Groups here: {some}, …")
        return tuple(
            replace(g, frozen=g.frozen or f"ignored by the caller ({g.name!r})") if g.name in names else g
            for g in self.groups
        )

    def extents(self, node: fx.Node, planes: Planes) -> tuple[Extent, ...]:
        """The shape of a node's result in terms of the widths of groups that may shrink."""
        spec = node.meta.get("spec")
        if spec is None:
            return ()
        extents = [Extent(n) for n in spec.shape]
        for plane in planes:
            small = compact(plane).numpy()
            dim = free_dimension(self.class_of[small], varying(plane))
            if dim is None:
                continue  # Pinned everywhere: a single fixed channel.
            line = small[tuple(slice(None) if d == dim else 0 for d in range(small.ndim))]
            found, counts = np.unique(self.group_of[line], return_counts=True)
            shares = [
                (self.groups[g], n)
                for g, n in zip(found.tolist(), counts.tolist(), strict=True)
                if g >= 0 and self.groups[g].frozen is None
            ]
            fixed = extents[dim].fixed - sum(n for _, n in shares)
            terms = tuple((group.name, n // group.size) for group, n in shares)
            extents[dim] = Extent(fixed, extents[dim].terms + terms)
        return tuple(extents)


def free_dimension(ids: np.ndarray, dims: Sequence[int]) -> int | None:
    """The dimension of `dims` that class ids depend on, None if they depend on several."""
    for free in dims:
        first = ids[tuple(slice(0, 1) if d in dims and d != free else slice(None) for d in range(ids.ndim))]
        if (ids == first).all():
            return free
    return None


def _pin_reasons(algebra: Algebra, classes: np.ndarray) -> dict[int, str]:
    """Reason per pinned class; the first that was given counts."""
    reasons: dict[int, str] = {}
    for labels, reason in algebra.pins:
        for c in np.unique(classes[labels]).tolist():
            reasons.setdefault(c, reason)
    return reasons


def _signatures(classes: np.ndarray, axis_of: np.ndarray, reasons: dict[int, str]) -> np.ndarray:
    """A 64-bit hash per class of what it touches: (axis, slots on it) pairs, and why it is pinned.

    A sum of well-mixed hashes: 10^4 classes collide with a probability below 10^-11.
    """
    width = int(axis_of.max()) + 1
    pairs, counts = np.unique(classes[1:] * width + axis_of[1:], return_counts=True)
    signature = np.zeros(int(classes.max()) + 1, dtype=np.uint64)
    np.add.at(signature, pairs // width, _mix((pairs % width) * 1_000_003 + counts))
    codes = {reason: -1 - i for i, reason in enumerate(dict.fromkeys(reasons.values()))}
    pinned = np.fromiter(reasons, dtype=np.int64, count=len(reasons))
    signature[pinned] += _mix(np.array([codes[r] for r in reasons.values()], dtype=np.int64))
    return signature


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64, vectorised."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _group(
    algebra: Algebra,
    labels: np.ndarray,
    classes: np.ndarray,
    axis_of: np.ndarray,
    reason: str | None,
    names: dict[str, int],
) -> ChannelGroup | None:
    """The group of `labels`, or None where no layer produces them (kernel sizes, unused parameters, the first
    layer's input): such slots always stay."""
    axes = np.unique(axis_of[labels])
    if not any(algebra.roles.get(int(a)) == "producer" for a in axes):
        return None
    _, first, channel = np.unique(classes[labels], return_index=True, return_inverse=True)
    channel = np.argsort(np.argsort(first))[channel]
    size = len(first)
    members = []
    for a in axes.tolist():
        mine = axis_of[labels] == a
        slots = labels[mine] - algebra.starts[a]
        rows = slots[np.lexsort((slots, channel[mine]))].reshape(size, -1)
        members.append(Member(algebra.axes[a], rows, algebra.roles.get(a, "other")))
    base = next(m.axis.tensor for m in members if m.role == "producer")
    name = base.rpartition(".")[0] or base
    names[name] = names.get(name, -1) + 1
    return ChannelGroup(name if names[name] == 0 else f"{name}:{names[name]}", size, tuple(members), reason)


def axis_graph(algebra: Algebra) -> nx.MultiGraph:
    """The dependency graph: axes as nodes, an edge for every operator that couples two of them.

    Edges carry `op`, `kind`, `where`, and `slots`, two equally long arrays of slots coupled one to one.
    """
    graph: nx.MultiGraph = nx.MultiGraph()
    graph.add_nodes_from(algebra.axes)
    starts = np.asarray(algebra.starts)
    for link in algebra.links:
        for a, b, rows in _axis_pairs(algebra, link.a, link.b):
            slots = (link.a[rows] - starts[a], link.b[rows] - starts[b])
            left, right = algebra.axes[a], algebra.axes[b]
            graph.add_edge(left, right, op=link.op, kind=link.kind, where=link.where, slots=slots)
    return graph


def _axis_pairs(algebra: Algebra, a: np.ndarray, b: np.ndarray) -> list[tuple[int, int, np.ndarray | slice]]:
    left, right = algebra.axis_of(a), algebra.axis_of(b)
    if left[0] == left[-1] and right[0] == right[-1] and (left == left[0]).all() and (right == right[0]).all():
        return [(int(left[0]), int(right[0]), slice(None))]
    pairs, which = np.unique(np.stack([left, right]), axis=1, return_inverse=True)
    return [(int(x), int(y), np.flatnonzero(which == i)) for i, (x, y) in enumerate(pairs.T)]
