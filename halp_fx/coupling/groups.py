"""From coupled labels to channel groups: classes of labels, groups of classes, sizes in terms of widths."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, pairwise

import numpy as np
from torch import fx

from ..errors import ModelError
from ..tracing.graph import of, place_of, where
from ..types import Axis, ChannelGroup, ChannelMap, Extent, Member
from .algebra import Algebra, Plane, Planes, Value, compact, varying, vector
from .call import laid_together

Terms = tuple[tuple[str, int], ...]
"""Pairs of a group and how many elements each of its channels has."""


@dataclass(frozen=True, slots=True)
class Line:
    """A plane, without the dimensions that it does not vary along unless it varies along several (`dims`).

    Planes with the same `key` have the same labels along the same dimensions.
    """

    key: Hashable
    dims: tuple[int, ...]
    labels: np.ndarray


@dataclass(frozen=True, slots=True)
class Outline:
    """What the shape of a node's result depends on: what is the same whatever is tied, frozen or chosen.

    Attributes:
        fixed: the shape as if nothing could shrink.
        axes: those of a parameter or buffer.
        lines: the labels of an activation.
    """

    fixed: tuple[Extent, ...]
    axes: tuple[Axis, ...] = ()
    lines: tuple[Line, ...] = ()

    @classmethod
    def of(cls, node: fx.Node, planes: Planes) -> Outline:
        spec = of(node).spec
        if spec is None:
            return cls(())
        fixed = tuple([Extent(n) for n in spec.shape])
        if node.op == "get_attr" and planes:
            return cls(fixed, tuple(Axis(str(node.target), dim) for dim in range(len(fixed))))
        return cls(fixed, (), tuple([line for plane in planes if (line := _line(plane)) is not None]))


def _line(plane: Plane) -> Line | None:
    dims = varying(plane) if plane.numel() else ()
    if len(dims) == 1:
        line = vector(plane, dims[0])
        return Line((line.data_ptr(), len(line), line.stride(), dims[0]), dims, line.numpy())
    small = compact(plane)
    # A plane that varies nowhere is in every dimension as it is in the first, if it has one.
    return Line((small.data_ptr(), tuple(small.shape), small.stride(), dims), dims, small.numpy()) if dims else None


def _there(line: Line, dim: int) -> np.ndarray:
    """Where along a dimension a line has labels."""
    rows = line.labels if len(line.dims) == 1 else np.moveaxis(line.labels, dim, 0)
    return np.asarray((rows.reshape(len(rows), -1) > 0).any(axis=1))


def _row(line: Line, dim: int) -> np.ndarray:
    """The labels along a dimension that the classes of a line depend on alone."""
    if len(line.dims) == 1:
        return line.labels
    return np.asarray(line.labels[tuple(slice(None) if d == dim else 0 for d in range(line.labels.ndim))])


@dataclass(frozen=True)
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
    # By plane: many activations hold the same labels.
    _terms: dict[Hashable, tuple[int, Terms] | None] = field(default_factory=dict)

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
        slots = rows - np.concatenate([[0], algebra.starts])[axis_of[rows] + 1]
        bounds = [0, *(np.flatnonzero(np.diff(places[rows])) + 1).tolist(), len(rows)]
        heads = rows[bounds[:-1]]
        owners = zip(group_of[heads].tolist(), axis_of[heads].tolist(), pairwise(bounds), strict=True)
        for group, axis, (start, end) in owners:
            if axis < 0 or axis in algebra.transient:
                continue  # Label 0 is no slot.
            own = slots[start:end].reshape(int(sizes[group]), -1)
            role = algebra.roles.get(axis, "other")
            tied = axis in algebra.read and role != "consumer"
            members.setdefault(group, []).append(Member(algebra.axes[axis], own, role, tied))
        inexact = np.zeros(len(sizes), dtype=bool)
        for found in algebra.restricted.values():
            for plane in (p for p in found.call.tensors()[0].planes if found.dims & set(varying(p))):
                labels = compact(plane).numpy()
                inexact[group_of[labels[labels > 0]]] = True

        groups: list[ChannelGroup] = []
        index_of = np.full(len(sizes), -1)
        names: Counter[str] = Counter()
        for g, touched in sorted(members.items()):
            reason = reasons.get(int(leader[g]))
            made = _group(touched, int(sizes[g]), reason, not inexact[g], names)
            if made is not None:
                index_of[g] = len(groups)
                groups.append(made)
        return cls(tuple(groups), index_of[group_of], classes, channel)

    def inexact_at(self, labels: Sequence[np.ndarray]) -> Partition:
        """The same, where removing what has these labels is not the same as zeroing it."""
        if not labels:
            return self
        found = set(self.group_of[np.concatenate([row[row > 0] for row in labels])].tolist())
        groups = tuple(replace(g, zero_exact=g.zero_exact and i not in found) for i, g in enumerate(self.groups))
        return replace(self, groups=groups, _terms={})

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
        return replace(self, groups=groups, _terms={})

    def without_products(self, outlines: Mapping[fx.Node, Outline], algebra: Algebra) -> Partition:
        """The same with one of two groups frozen where a dimension is as long as the product of both (experts and their
        hidden channels as columns of one matrix): an extent is a sum. The smaller one, and it stays that one when the
        larger has been pruned."""
        reasons: dict[str, str] = {}
        for node, outline in outlines.items():
            for a, b in self._products(outline):
                if not {a, b} & reasons.keys():
                    larger = "first" if self._sizes[a] > self._sizes[b] else "second"
                    stays = b if algebra.choose(f"{'{}/{}'.format(*place_of(node))}#product", larger) == "first" else a
                    reasons[stays] = laid_together(where(node), a == b)
        return self.with_frozen(reasons)

    def _products(self, outline: Outline) -> Iterator[tuple[str, str]]:
        """Pairs of groups that both have a say in the same elements of a dimension."""
        if len(outline.lines) < 2:
            return
        moving = [(line, found) for line in outline.lines if (found := self._moving(line)) is not None]
        for (first, (dim, terms)), (second, (other, others)) in combinations(moving, 2):
            if dim != other:
                continue
            shared = {name for name, _ in terms}.intersection(name for name, _ in others)
            if shared:
                yield from ((name, name) for name in self._squared(first, second, dim) if name in shared)
            elif (_there(first, dim) & _there(second, dim)).any():
                yield terms[0][0], others[0][0]

    def _squared(self, first: Line, second: Line, dim: int) -> Iterator[str]:
        """Groups of which two channels have a say in the same elements of a dimension: rows x columns of a flattened
        matrix of channels."""
        a, b = (_row(line, dim) for line in (first, second))
        twice = (self.group_of[a] == self.group_of[b]) & (self.channel_of[a] != self.channel_of[b])
        yield from (self.groups[g].name for g in np.unique(self.group_of[a[twice]]).tolist() if g >= 0)

    def extents(self, outline: Outline) -> tuple[Extent, ...]:
        """The shape of a node's result in terms of the widths of groups that may shrink."""
        found = [(axis.dim, tuple(self._on_axis[axis])) for axis in outline.axes if axis in self._on_axis]
        found += [moving for line in outline.lines if (moving := self._moving(line)) is not None]
        if not found:
            return outline.fixed
        if not outline.axes and len({dim for dim, _ in found}) < len(found):
            found = self._once(outline)
        extents = list(outline.fixed)
        for dim, terms in found:
            gone = sum(self._sizes[name] * each for name, each in terms)
            extents[dim] = Extent(extents[dim].fixed - gone, (*extents[dim].terms, *terms))
        return tuple(extents)

    def _once(self, outline: Outline) -> list[tuple[int, Terms]]:
        """The terms of all dimensions where several lines lie along one: an element that two of them name goes once."""
        rows = defaultdict[int, list[np.ndarray]](list)
        for line in outline.lines:
            if (moving := self._moving(line)) is not None:
                rows[moving[0]].append(_row(line, moving[0]))
        found = []
        for dim, several in rows.items():
            owners = self.group_of[np.stack(several)]
            counts = [(g, int((owners == g).any(axis=0).sum())) for g in np.unique(owners[owners >= 0]).tolist()]
            groups = [(self.groups[g], count) for g, count in counts if self.groups[g].frozen is None]
            found.append((dim, tuple((g.name, count // g.size) for g, count in groups)))
        return found

    def channel_map(self, value: Value, only: set[int] | None = None) -> ChannelMap:
        """Which channel lies where along the dimensions of a tensor (or only some of them). Of several at one place,
        such as channels x turns along one dimension, one that may go."""
        dims: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        free = np.array([*(g.frozen is None for g in self.groups), False])  # The last one is group -1.
        for plane in value.planes:
            small = compact(plane).numpy()
            dim = free_dimension(self.class_of[small], varying(plane)) if small.size else None
            if dim is not None and (only is None or dim in only):
                line = small[tuple(slice(None) if d == dim else 0 for d in range(small.ndim))]
                own, channels = self.group_of[line], self.channel_of[line]
                if dim in dims:
                    before = free[dims[dim][0]]
                    own, channels = (np.where(before, *pair) for pair in zip(dims[dim], (own, channels), strict=True))
                dims[dim] = (own, channels)
        return ChannelMap(dims)

    def _moving(self, line: Line) -> tuple[int, Terms] | None:
        """The dimension along which a plane's elements can go, and the terms that say which; None if none can."""
        if line.key not in self._terms:
            several = len(line.dims) != 1
            dim = free_dimension(self.class_of[line.labels], line.dims) if several else line.dims[0]
            if dim is None:  # Pinned everywhere, or an empty tensor.
                self._terms[line.key] = None
                return None
            row = _row(line, dim)
            # The same position of every head, of a piece without positions: as long as it is while heads stay.
            alone = not several and len(row) > 1 and bool((self.class_of[row] == self.class_of[row[0]]).all())
            terms = () if alone and self.groups[self.group_of[row[0]]].size > 1 else self._terms_of(row)
            self._terms[line.key] = (dim, terms) if terms else None
        return self._terms[line.key]

    def _terms_of(self, line: np.ndarray) -> Terms:
        owners = self.group_of[line]
        if len(owners) and (owners == owners[0]).all():  # Most lines are one group's.
            shares = [(self.groups[owners[0]], len(owners))] if owners[0] >= 0 else []
        else:
            counts = np.bincount(owners + 1, minlength=1)[1:]
            shares = [(self.groups[g], int(counts[g])) for g in np.flatnonzero(counts).tolist()]
        return tuple((g.name, n // g.size) for g, n in shares if g.frozen is None)

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {g.name: g.size for g in self.groups}

    @cached_property
    def _on_axis(self) -> Mapping[Axis, Sequence[tuple[str, int]]]:
        """The terms of every axis that can shrink."""
        found = defaultdict[Axis, list[tuple[str, int]]](list)
        for group in self.groups:
            for member in group.members if group.frozen is None else ():
                found[member.axis].append((group.name, member.slots.shape[1]))
        return found


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
    first = np.full(int(classes.max()) + 1, -1)
    for index, (labels, _) in reversed(list(enumerate(algebra.pins))):
        first[classes[labels]] = index
    return {c: algebra.pins[first[c]][1] for c in np.flatnonzero(first >= 0).tolist()}


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
