"""The channel algebra: slots, the labels that carry them through a network, and what couples them.

Every dimension (longer than 1) of every parameter and buffer is an *axis*; its slots get consecutive positive
integers, the *labels*. Beside each activation goes a tuple of *planes*: int32 tensors of the activation's shape whose
elements say which slot the element stems from (0: none, it always stays). An element disappears when one of its
labels does. A parameter has one plane per axis, most activations have one: the channel.

Planes are expanded with stride 0 along every dimension that does not matter, so a plane of a 512 x 56 x 56 activation
is 512 integers. The dimensions with a stride are those along which it *varies*.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import fx

from ..types import Axis, Link
from ..types.dependencies import components
from .call import Call as Call
from .call import Value as Value
from .classes import merged
from .planes import Plane as Plane
from .planes import Planes as Planes
from .planes import along as along
from .planes import broadcast as broadcast
from .planes import compact as compact
from .planes import distinct, once, shrunk
from .planes import independent as independent
from .planes import simplify as simplify
from .planes import varying as varying
from .planes import vector as vector

# Longer links are freed from repeated pairs.
_MANY = 4096
_NONE = np.array([], dtype=np.int64)
_APART, _TOGETHER = "apart", "together"


@dataclass(frozen=True, slots=True)
class Edit:
    """A module attribute that equals (size of dimension `dim` of `node`'s result) / `divisor`."""

    module: str
    attribute: str
    node: fx.Node
    dim: int
    divisor: int


@dataclass(frozen=True, slots=True)
class Restriction:
    """Dimensions of an operator's first tensor that its statistic runs over; or, by tensor, the one of a mere sum."""

    call: Call
    dims: set[int]
    sums: Mapping[int, int] | None = None

    def along(self, tensor: int) -> set[int] | None:
        """The labelled dimensions of a tensor along which the twin leaves out what was removed; None: all."""
        if self.sums is not None:
            return {self.sums[tensor]} if tensor in self.sums else set()
        return None if tensor else self.dims


@dataclass(frozen=True, slots=True)
class Pieces:
    """A plane that is cut along a dimension: at every place, which piece it belongs to (`parts`), and the place that
    it goes with if nothing else keeps the pieces in proportion (`leaders`)."""

    plane: Plane
    dim: int
    leaders: torch.Tensor
    parts: np.ndarray
    call: Call

    def proportional(self, classes: np.ndarray) -> bool:
        """Whether the pieces keep their proportions whichever classes of labels are removed."""
        small = compact(self.plane).numpy()
        parts = self.parts.reshape([-1 if d == self.dim else 1 for d in range(small.ndim)])
        parts = np.broadcast_to(parts, small.shape).reshape(-1)
        _, ids = np.unique(classes[small].reshape(-1), return_inverse=True)
        sizes = np.bincount(parts)
        counts = np.bincount(ids * len(sizes) + parts, minlength=(int(ids.max()) + 1) * len(sizes))
        counts = counts.reshape(-1, len(sizes))
        return bool((counts * sizes.sum() == counts.sum(1, keepdims=True) * sizes).all())


@dataclass(slots=True)
class Algebra:
    """Hands out slots and collects what the rules find out about them."""

    axes: list[Axis] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [1])
    links: list[Link] = field(default_factory=list)
    pins: list[tuple[np.ndarray, str]] = field(default_factory=list)
    rectangles: list[tuple[Plane, str]] = field(default_factory=list)
    pieces: list[Pieces] = field(default_factory=list)
    roles: dict[int, str] = field(default_factory=dict)
    # Axes (by index) that any operator marked as a consumer, whichever mark counts.
    read: set[int] = field(default_factory=set)
    restricted: dict[fx.Node, Restriction] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    place: str = ""
    # Axes (by index) of tensors that the forward makes, such as `zeros(shape)`: they follow what they meet.
    transient: set[int] = field(default_factory=set)
    # Planes that were tied, by place in memory; held so that the place is not used again.
    _tied: dict[tuple[Any, ...], Plane] = field(default_factory=dict)
    # How many links are in the classes that were last asked for, and these.
    _classes: tuple[int, np.ndarray] = (0, _NONE)

    def copied(self, choices: Mapping[str, str]) -> Algebra:
        """The same, to go on with other choices where the rules did not ask for one."""
        links, pins, notes = list(self.links), list(self.pins), dict(self.notes)
        return replace(self, links=links, pins=pins, notes=notes, choices={**choices, **self.choices})

    def new_planes(self, name: str, shape: Sequence[int], dims: int | None = None, transient: bool = False) -> Planes:
        """Fresh slots for every axis of a parameter or buffer (or only the first `dims`): one plane each."""
        planes = []
        for dim, size in enumerate(shape[:dims]):
            if size < 2:
                continue
            start = self.starts[-1]
            if transient:
                self.transient.add(len(self.axes))
            self.axes.append(Axis(name, dim))
            self.starts.append(start + size)
            labels = torch.arange(start, start + size, dtype=torch.int32, device="cpu")
            planes.append(along(labels, dim, shape))
        return tuple(planes)

    def couple(self, a: Plane, b: Plane, call: Call, kind: str) -> None:
        """Labels at equal places (after broadcasting) go together; a label that meets none stays for good."""
        a, b = shrunk(a, b)
        for left, right in self._star(a, b) if a.numel() > _MANY else ((a, b),):
            self._link(left, right, call.op, kind, call.where)

    def _star(self, a: Plane, b: Plane) -> tuple[tuple[Plane, Plane], ...]:
        """Where all labels of one plane meet all of the other, as in the mask `ids[:, None] - ids[:, :, None]` of a
        windowed attention: one of each against all of the other couple the same, in the root of the pairs.

        For tensors that the forward makes only: of parameters it counts which slots have met (`comparing`).
        """
        own, other = (set(varying(p)) - set(varying(q)) for p, q in ((a, b), (b, a)))
        full = all(bool(compact(p).all()) and not self.lasting(p) for p in (a, b)) if own and other else False
        if not full:
            return ((a, b),)
        return tuple((_first(a, dims), _first(b, dims)) for dims in (own, other))

    def _link(self, a: Plane, b: Plane, op: str, kind: str, where: str) -> None:
        left, right = a.numpy().reshape(-1), b.numpy().reshape(-1)
        if not (left.all() and right.all()):
            both = (left > 0) & (right > 0)
            reason = f"joined in {where} with channels that cannot be removed"
            self.pin(left[~both], reason)
            self.pin(right[~both], reason)
            left, right = left[both], right[both]
        if len(left) > _MANY:
            # The same pair meets at every position of an image: once is enough.
            left, right = once(left, right)
            pairs = distinct(left.astype(np.int64) << 32 | right)
            left, right = pairs >> 32, pairs & 0xFFFFFFFF
        if len(left):
            self.links.append(Link(left, right, op, kind, where))

    def tie(self, plane: Plane, dims: Iterable[int], call: Call, kind: str) -> Plane:
        """Couple all labels along `dims`; returns the plane that no longer varies there."""
        dims = [d for d in dims if d in varying(plane)]
        if not dims:
            return plane
        first = _first(plane, dims).expand(plane.shape)
        # A loop over classes or windows takes one piece after another of the same plane.
        key = (plane.data_ptr(), tuple(plane.shape), plane.stride(), tuple(dims))
        if key not in self._tied:
            self._tied[key] = plane
            self.couple(plane, first, call, kind)
        return first

    def tie_labels(self, plane: Plane, dims: Iterable[int]) -> None:
        """As `tie`, for a plane whose operator is no longer at hand."""
        self._link(plane, _first(plane, dims).expand(plane.shape), "view", "split axis", "a view that splits the axis")

    def keep_proportions(self, plane: Plane, dim: int, leaders: torch.Tensor, sizes: Sequence[int], call: Call) -> None:
        """Pieces of these sizes along `dim` must keep their proportions: as what reads them couples them, or, if that
        does not do it, every place goes with its leader. Decided at the end, see `settle_pieces`."""
        self.pieces.append(Pieces(plane, dim, leaders, np.repeat(np.arange(len(sizes)), sizes), call))

    def settle_pieces(self) -> None:
        """Couple the places of those pieces that nothing else keeps in proportion."""
        found = {
            (p.plane.data_ptr(), p.plane.shape, p.plane.stride(), p.dim, p.parts.tobytes()): p for p in self.pieces
        }
        if not found:
            return
        classes = self.classes()
        for pieces in found.values():
            place = f"{pieces.call.place}#pieces"
            holds = pieces.proportional(classes)
            if self.choose(place, _APART if holds else _TOGETHER) == _TOGETHER or not holds:
                self.couple(pieces.plane, pieces.plane.index_select(pieces.dim, pieces.leaders), pieces.call, "chunk")

    def tie_channels(self, a: np.ndarray, b: np.ndarray) -> None:
        """Couple labels of channels that the program wants in a fixed proportion, as a trial has shown."""
        self.links.append(Link(a, b, "view", "proportion", "sizes that the forward computes from one another"))

    def pin(self, labels: Plane | np.ndarray, reason: str) -> None:
        """The slots named by `labels` may not be removed."""
        if isinstance(labels, torch.Tensor):
            labels = compact(labels).reshape(-1).numpy()
        if not labels.all():
            labels = labels[labels > 0]
        if len(labels):
            self.pins.append((labels, reason))

    def pinned(self, plane: Plane) -> bool:
        """Whether a label of the plane is held, as far as operators before have shown."""
        labels = compact(plane).numpy()
        return any(np.isin(labels, held).any() for held, _ in self.pins)

    def pin_all(self, values: Iterable[Value], reason: str) -> None:
        for value in values:
            for plane in value.planes:
                self.pin(plane, reason)

    def choose(self, place: str, default: str) -> str:
        """A free choice of a rule between two ways to shrink, "whole" or "positions": as decided before, else
        `default`. A default may depend on sizes, and those change when the network is pruned again."""
        return self.choices.setdefault(place, default)

    def rectangle(self, plane: Plane) -> Plane:
        """Remember a plane that varies along several dimensions: what stays must be a rectangle."""
        if len(varying(plane)) > 1:
            self.rectangles.append((compact(plane), self.place))
        return plane

    def mark(self, plane: Plane, role: str) -> None:
        """Set the role of the axes that `plane` names. The first mark counts."""
        labels = compact(plane).numpy().reshape(-1)
        if not labels.all():
            labels = labels[labels > 0]
        if not len(labels):
            return
        first, last = (bisect_right(self.starts, label) - 1 for label in (labels[0], labels[-1]))
        for axis in (first,) if first == last else np.unique(self.axis_of(labels)).tolist():
            self.roles.setdefault(axis, role)
            if role == "consumer":
                self.read.add(axis)

    def restrict(self, call: Call, dims: Iterable[int]) -> None:
        """The operator's statistic runs over labelled dimensions `dims` of its first tensor: removing channels is not
        the same as zeroing them. The zeroed twin computes it over what is kept."""
        self.restricted.setdefault(call.node, Restriction(call, set())).dims.update(dims)

    def sum_over(self, call: Call, dims: Mapping[int, int]) -> None:
        """The operator sums over labelled dimensions, given by tensor (in the order of `Call.tensors`), that need not
        be zero where they were removed: so does the twin, over what is kept."""
        self.restricted.setdefault(call.node, Restriction(call, set(), dict(dims)))

    def slide_over(self, call: Call, dim: int) -> None:
        """The operator slides over labelled dimension `dim` of its first tensor: the twin's over what is kept."""
        self.restricted.setdefault(call.node, Restriction(call, {dim}, {0: dim}))

    def axis_of(self, labels: np.ndarray) -> np.ndarray:
        """Index into `axes` for every label, -1 for label 0."""
        return np.searchsorted(self.starts, labels, side="right") - 1

    def lasting(self, plane: Plane) -> bool:
        """Whether a plane names slots of parameters or buffers."""
        labels = compact(plane).reshape(-1).numpy()
        labels = labels[labels > 0]
        return bool(len(labels)) and not set(self.axis_of(labels[[0, -1]]).tolist()) <= self.transient

    def classes(self) -> np.ndarray:
        """The class of every label (index 0 is the class of "none"), numbered without gaps: connected components."""
        known, classes = self._classes
        fresh = len(classes) < self.starts[-1]
        if fresh or len(self.links) > known:
            # Few links come after the first time: ties, which need to know the classes before.
            links = self.links if fresh else self.links[known:]
            a, b = (np.concatenate([_NONE, *(getattr(link, side) for link in links)]) for side in ("a", "b"))
            classes = components(self.starts[-1], a, b) if fresh else merged(classes, a, b)
            self._classes = len(self.links), classes
        return classes

    def lasting_classes(self) -> np.ndarray:
        """Of every class whether slots of parameters or buffers are in it, shape (classes,)."""
        classes = self.classes()
        axes = self.axis_of(np.arange(1, len(classes)))
        found = np.zeros(int(classes.max()) + 1, dtype=bool)
        found[classes[1:][~np.isin(axes, list(self.transient))]] = True
        return found


def without_pieces(choices: Mapping[str, str]) -> dict[str, str]:
    """Choices without those that follow from others: whether pieces have to be coupled to stay in proportion."""
    return {place: choice for place, choice in choices.items() if choice not in (_APART, _TOGETHER)}


def _first(plane: Plane, dims: Iterable[int]) -> Plane:
    """The plane at index 0 of some dimensions."""
    for dim in dims:
        plane = plane.narrow(dim, 0, 1)
    return plane
