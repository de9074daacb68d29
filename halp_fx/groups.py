"""From coupled labels to channel groups: classes of labels, groups of classes, sizes in terms of widths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import fx

from .algebra import Algebra, Plane, Planes, Value, compact, varying
from .errors import ModelError
from .types import ChannelGroup, ChannelMap, Extent, Member


@dataclass(frozen=True, slots=True)
class Partition:
    """Which group and which channel every label belongs to.

    Attributes:
        groups: all groups, in the order of the forward.
        group_of: int array over labels: index into `groups`, -1 for labels that belong to none (kernel sizes).
        class_of: int array over labels: the class (connected component).
        channel_of: int array over labels: the channel's index in its group.
    """

    groups: tuple[ChannelGroup, ...]
    group_of: np.ndarray
    class_of: np.ndarray
    channel_of: np.ndarray
    _extents: dict[Hashable, tuple[int, int, tuple[tuple[str, int], ...]] | None] = field(default_factory=dict)

    @classmethod
    def of(cls, algebra: Algebra) -> Partition:
        """Group the classes that touch the same axes equally often."""
        classes = algebra.classes()
        axis_of = np.concatenate([[-1], np.repeat(np.arange(len(algebra.axes)), np.diff(algebra.starts))])
        reasons = _pin_reasons(algebra, classes)
        # Groups are numbered by their first label, which follows the forward; so are the channels in a group.
        group_of = _by_first(_signatures(classes, axis_of, reasons)[classes])
        first_label = np.unique(classes, return_index=True)[1]
        class_group = group_of[first_label]
        order = np.lexsort((first_label, class_group))
        channel_of = np.empty(len(order), dtype=np.int64)
        channel_of[order] = np.arange(len(order)) - np.searchsorted(class_group[order], class_group[order])
        channel = channel_of[classes]
        sizes = np.bincount(class_group)
        leader = np.unique(class_group, return_index=True)[1]  # One class of each group.

        members: dict[int, list[Member]] = {}
        places = group_of * (len(algebra.axes) + 1) + axis_of
        # By group, axis, channel, and, as the sort is stable, label. Most of it is in that order already.
        rows = np.argsort(places * (int(sizes.max()) + 1) + channel, kind="stable")
        for part in np.split(rows, np.flatnonzero(np.diff(places[rows])) + 1):
            group, axis = int(group_of[part[0]]), int(axis_of[part[0]])
            if part[0] == 0 or axis in algebra.transient:
                continue  # Label 0 is no slot.
            slots = (part - algebra.starts[axis]).reshape(sizes[group], -1)
            members.setdefault(group, []).append(Member(algebra.axes[axis], slots, algebra.roles.get(axis, "other")))
        inexact = np.zeros(len(sizes), dtype=bool)
        for call, dims in algebra.restricted.values():
            for plane in (p for p in call.tensors()[0].planes if dims & set(varying(p))):
                found = compact(plane).numpy()
                inexact[group_of[found[found > 0]]] = True

        groups: list[ChannelGroup] = []
        index_of = np.full(len(sizes), -1)
        names: Counter[str] = Counter()
        for g, own in sorted(members.items()):
            reason = reasons.get(int(leader[g]))
            made = _group(own, int(sizes[g]), reason, not inexact[g], names)
            if made is not None:
                index_of[g] = len(groups)
                groups.append(made)
        return cls(tuple(groups), index_of[group_of], classes, channel)

    def with_frozen(self, reasons: Mapping[str, str]) -> Partition:
        """The same with the named groups frozen.

        Raises:
            ModelError: there is no such group.
        """
        if not reasons:
            return self
        known = {g.name for g in self.groups}
        for name in reasons:
            if name not in known:
                some = ", ".join(sorted(known)[:8])
                raise ModelError(f"{name!r} matches no module, parameter or group. Groups here: {some}, …")
        groups = tuple(replace(g, frozen=g.frozen or reasons.get(g.name)) for g in self.groups)
        return replace(self, groups=groups, _extents={})

    def extents(self, node: fx.Node, planes: Planes) -> tuple[Extent, ...]:
        """The shape of a node's result in terms of the widths of groups that may shrink."""
        spec = node.meta.get("spec")
        if spec is None:
            return ()
        extents = [Extent(n) for n in spec.shape]
        for plane in planes:
            key = (plane.data_ptr(), tuple(plane.shape), plane.stride())
            if key not in self._extents:
                self._extents[key] = self._moving(plane)
            found = self._extents[key]
            if found is not None:
                dim, moving, terms = found
                extents[dim] = Extent(extents[dim].fixed - moving, (*extents[dim].terms, *terms))
        return tuple(extents)

    def channel_map(self, value: Value, only: set[int] | None = None) -> ChannelMap:
        """Which channel lies where along the dimensions of a tensor (or only some of them)."""
        dims = {}
        for plane in value.planes:
            small = compact(plane).numpy()
            dim = free_dimension(self.class_of[small], varying(plane)) if small.size else None
            if dim is not None and (only is None or dim in only):
                line = small[tuple(slice(None) if d == dim else 0 for d in range(small.ndim))]
                dims[dim] = (self.group_of[line], self.channel_of[line])
        return ChannelMap(dims)

    def _moving(self, plane: Plane) -> tuple[int, int, tuple[tuple[str, int], ...]] | None:
        """The dimension along which a plane's elements can go, how many can, and the terms that say which."""
        small = compact(plane).numpy()
        dims = varying(plane) if small.size else ()
        dim = dims[0] if len(dims) == 1 else free_dimension(self.class_of[small], dims)
        if dim is None:
            return None  # Pinned everywhere, or an empty tensor.
        line = self.group_of[small[tuple(slice(None) if d == dim else 0 for d in range(small.ndim))]]
        counts = np.bincount(line + 1, minlength=1)[1:]
        shares = [(self.groups[g], int(counts[g])) for g in np.flatnonzero(counts) if self.groups[g].frozen is None]
        return dim, sum(n for _, n in shares), tuple((g.name, n // g.size) for g, n in shares)


def _by_first(keys: np.ndarray) -> np.ndarray:
    """Number equal keys alike, in the order of their first appearance."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


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
        for c in set(classes[labels].tolist()):
            reasons.setdefault(c, reason)
    return reasons


def _signatures(classes: np.ndarray, axis_of: np.ndarray, reasons: dict[int, str]) -> np.ndarray:
    """A 64-bit hash per class of what it touches: (axis, slots on it) pairs, and why it is pinned.

    A sum of well-mixed hashes: 10^4 classes collide with a probability below 10^-11.
    """
    width = int(axis_of.max()) + 2
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
    members: list[Member], size: int, reason: str | None, exact: bool, names: Counter[str]
) -> ChannelGroup | None:
    """A group, or None where no layer produces the slots (kernel sizes, the first layer's input): those stay."""
    base = next((m.axis.tensor for m in members if m.role == "producer"), None)
    if base is None:
        return None
    name = base.rpartition(".")[0] or base
    names[name] += 1
    unique = name if names[name] == 1 else f"{name}:{names[name] - 1}"
    return ChannelGroup(unique, size, tuple(members), reason, exact)
