"""The values that the stages pass to each other: frozen, and free of torch modules.

Terms are those of `docs/terms.md`: an *axis* is one dimension of one tensor, a *slot* one index of an axis, a *channel*
a class of coupled slots, a *group* a set of channels that share the same axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from torch import fx

from .dependencies import DependencyGraph
from .pickling import importable, packed, unpacked
from .plans import Channels, Making, Plan
from .records import TensorSpec
from .runs import Cache, ModuleCall, Run, ValueRead

if TYPE_CHECKING:
    import networkx as nx

CONSTANT = "a constant in the forward repeats its width"
"""How the reason begins for which a trial freezes a group."""


@dataclass(frozen=True, slots=True)
class Traced:
    """What one forward did, as a graph of ATen operators.

    Attributes:
        graph: an `fx.Graph` of `call_function` nodes on `torch.ops.aten` overloads. `get_attr` nodes are
            parameters and buffers by their `state_dict` name, `placeholder` nodes the input tensors. Each node has a
            `Record`, which `tracing.graph.of` returns.
        tensors: shape and dtype of every parameter and buffer, by `state_dict` name (tied names: the first).
        unused: parameters that this forward did not reach.
        calls: every run of a named module, in the order in which they began.
        on_meta: recorded on meta tensors: the forward needs no values.
        run: what was run.
        reads: values that the program took out of tensors, other than constants.
        caches: attributes that the forward put tensors into, and what it keeps beside these.
    """

    graph: fx.Graph
    tensors: Mapping[str, TensorSpec]
    unused: tuple[str, ...]
    calls: tuple[ModuleCall, ...] = ()
    on_meta: bool = False
    run: Run = field(default_factory=Run)
    reads: tuple[ValueRead, ...] = ()
    caches: tuple[Cache, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        # Operators cannot be pickled, and classes that were made inside a function cannot be found again.
        calls = tuple(replace(call, kind=importable(call.kind)) for call in self.calls)
        return _restored, (
            packed(self.graph),
            dict(self.tensors),
            self.unused,
            calls,
            self.on_meta,
            self.run,
            self.reads,
            self.caches,
        )


def _restored(nodes: list[Any], *rest: Any) -> Traced:
    return Traced(unpacked(nodes), *rest)


@dataclass(frozen=True, slots=True, order=True)
class Axis:
    """Dimension `dim` of the parameter or buffer `tensor` (its `state_dict` name)."""

    tensor: str
    dim: int

    def __str__(self) -> str:
        return f"{self.tensor}[{self.dim}]"


@dataclass(frozen=True, slots=True)
class Member:
    """One axis that a group reaches.

    Attributes:
        axis: the axis.
        slots: int array, shape (channels of the group, slots per channel): row c lists the slots of channel c.
        role: "producer" (a layer's output channels), "consumer" (its input channels), "norm" (the affine
            parameters or statistics of a normalisation), "bias", "scale" (of a producer that the forward computes, such
            as a mask), or "other".
        also_read: whether one operator makes the channels with it and another reads them with it (tied weights).
    """

    axis: Axis
    slots: np.ndarray
    role: str
    also_read: bool = False


SCORED = ("producer", "norm", "bias")
"""Roles of the tensors that scores are made of."""


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that touch the same axes; every non-empty subset of them is a legal choice.

    Attributes:
        name: unique and stable; by default the layer that produces the channels.
        size: number of channels.
        members: the axes it reaches, in the order of the forward.
        frozen: None, or in words why the group may not shrink.
        zero_exact: removing a channel equals zeroing it. False where a statistic runs over the channels
            (LayerNorm, GroupNorm, mean or softmax over channels).
    """

    name: str
    size: int
    members: tuple[Member, ...]
    frozen: str | None = None
    zero_exact: bool = True

    @property
    def channels(self) -> Channels:
        """What its channels are, by the first layer that makes them."""
        first = next((m for m in self.members if m.role == "producer"), self.members[0])
        rows = np.sort(first.slots, axis=1).astype("<i8")
        return Channels(self.size, rows.size, crc32(rows.tobytes()))

    @property
    def made_by(self) -> tuple[Making, ...]:
        """The layers that make its channels, those whose outputs are regular; none where there is nothing to say: one
        layer, and one output a channel."""
        makers = [m for m in self.members if m.role == "producer"]
        if len(makers) < 2 and all(m.slots.shape[1] == 1 for m in makers):
            return ()
        return tuple(filter(None, map(_making, makers)))

    def __repr__(self) -> str:
        state = f", frozen={self.frozen!r}" if self.frozen else ""
        return f"ChannelGroup({self.name!r}, size={self.size}, members={len(self.members)}{state})"


def _making(member: Member) -> Making | None:
    rows = np.sort(member.slots, axis=1)
    step = int(rows[1, 0] - rows[0, 0]) if len(rows) > 1 else 0
    if not np.array_equal(rows, rows[0] + step * np.arange(len(rows))[:, None]):
        return None
    ends = np.flatnonzero(np.diff(rows[0]) != 1) + 1
    runs = tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(rows[0], ends))
    return Making(member.axis.tensor, step, runs)


def scored_name(branch: str) -> str:
    """The name under which a branch's channels are scored: no group is called so."""
    return f"branch {branch}"


@dataclass(frozen=True, slots=True)
class Extent:
    """A size that depends on widths: `fixed + sum(scale * width(group))`."""

    fixed: int
    terms: tuple[tuple[str, int], ...] = ()

    def at(self, widths: Mapping[str, int]) -> int:
        """The size when each group is as wide as `widths` says."""
        return self.fixed + sum(scale * widths[group] for group, scale in self.terms)


@dataclass(frozen=True, slots=True)
class AttributeEdit:
    """The attribute `module.attribute` must be `extent / divisor` after pruning (e.g. a convolution's groups).

    With an `index`, that element of it (a list or a tuple) must be.
    """

    module: str
    attribute: str
    extent: Extent
    divisor: int = 1
    index: int | None = None

    def __str__(self) -> str:
        element = "" if self.index is None else f"[{self.index}]"
        return f"{self.module}.{self.attribute}{element}".lstrip(".")


@dataclass(frozen=True, slots=True)
class Mend:
    """An attribute that a trial found to repeat a width: `fixed + sum(factor * length(axis))`.

    It counts slots of axes, and not channels of groups, so that it says the same when groups are tied, and in the
    pruned network.
    """

    module: str
    attribute: str
    index: int | None
    fixed: int
    terms: tuple[tuple[Axis, Fraction], ...]


@dataclass(frozen=True, slots=True)
class Tie:
    """The channels along axis `a` go with those along `b`: in equal runs, where one has more of them."""

    a: Axis
    b: Axis


@dataclass(frozen=True, slots=True)
class Decisions:
    """What the operators alone do not decide about a network's channel groups.

    Attributes:
        choices: between two ways to shrink, by the place in the program that leaves the choice.
        ties: between axes that the forward wants in a fixed proportion.
        mends: attributes that repeat a width.
    """

    choices: Mapping[str, str] = field(default_factory=dict)
    ties: tuple[Tie, ...] = ()
    mends: tuple[Mend, ...] = ()

    def __or__(self, other: Decisions) -> Decisions:
        """Both, the other's where they differ."""
        ties = tuple(dict.fromkeys((*self.ties, *other.ties)))
        mends = {(m.module, m.attribute, m.index): m for m in (*self.mends, *other.mends)}
        return Decisions({**self.choices, **other.choices}, ties, tuple(mends.values()))


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """An operator couples labels: `a[i]` goes with `b[i]`. Label l stands for slot `l - starts[i]` of axis i."""

    a: np.ndarray
    b: np.ndarray
    op: str
    kind: str
    where: str


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """All links of a network, and the axes that their labels name, each with its role (see `Member`)."""

    axes: tuple[Axis, ...]
    starts: np.ndarray
    links: tuple[Link, ...]
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ChannelMap:
    """Which channel lies where along the dimensions of one tensor.

    Attributes:
        dims: dimension -> (groups, channels): two int arrays of the dimension's length; the index of the group in
            `Coupling.groups` (-1: fixed) and of the channel in it.
    """

    dims: Mapping[int, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, slots=True, eq=False)
class WeightPart:
    """The channels of one group along one dimension of a computed weight.

    Attributes:
        dim: the dimension.
        role: as `Member.role`.
        group: name of the group.
        channels: int array of the dimension's length: the channel at each place, -1 for none of this group.
    """

    dim: int
    role: str
    group: str
    channels: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class ComputedWeight:
    """A weight that the forward computes from parameters alone: masked, normalised, or made of several tensors.

    Attributes:
        node: the trace's node that makes it (views and copies left away).
        sources: parameters and buffers that it is made of.
        parts: where which channels lie.
    """

    node: str
    sources: frozenset[str]
    parts: tuple[WeightPart, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Further:
    """Another forward of a network; `shapes` and `restricted` as in `Coupling`. None is restricted in train mode."""

    traced: Traced
    shapes: Mapping[str, tuple[Extent, ...]]
    restricted: Mapping[str, tuple[ChannelMap, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Coupling:
    """The channel groups of a traced network.

    Attributes:
        traced: the graph that was analysed.
        groups: every group, frozen ones included, in the order of the forward; together they partition the
            slots of all axes that a rule reached.
        links: everything that was coupled, and by what: what `dependencies` is made from.
        shapes: for every node of the trace, its shape as extents.
        edits: module attributes that follow a width, as rules say.
        notes: operators without a rule and other things a reader should know.
        decisions: what was decided beyond the operators, so that the pruned network can be coupled alike.
        mended: further attributes that follow a width, as trials have shown: the `mends` that were decided.
        restricted: for operators with a statistic over channels (by node name): where the channels of each tensor
            argument lie. The zeroed twin needs them.
        further: other forwards that a pruned network must repeat: other examples, train mode.
        computed: weights that the forward computes from parameters: channels are scored on these.
    """

    traced: Traced
    groups: tuple[ChannelGroup, ...]
    links: Links
    shapes: Mapping[str, tuple[Extent, ...]]
    edits: tuple[AttributeEdit, ...] = ()
    notes: tuple[str, ...] = ()
    decisions: Decisions = field(default_factory=Decisions)
    mended: tuple[AttributeEdit, ...] = ()
    restricted: Mapping[str, tuple[ChannelMap, ...]] = field(default_factory=dict)
    computed: tuple[ComputedWeight, ...] = ()
    further: tuple[Further, ...] = ()

    def views(self) -> tuple[Coupling, ...]:
        """This coupling as each of its forwards shows it, the first one's first."""
        return (self, *(replace(self, traced=f.traced, shapes=f.shapes, restricted=f.restricted) for f in self.further))

    def planned(self, kept: Mapping[str, Iterable[int]], dropped: Iterable[str] = ()) -> Plan:
        """A plan for these groups that knows what their channels are."""
        groups = {n: made for n, made in self._made.items() if n in kept}
        made_for = {name: channels for name, (channels, _) in groups.items()}
        made_by = {name: makers for name, (_, makers) in groups.items() if makers}
        return Plan({name: tuple(row) for name, row in kept.items()}, tuple(dropped), made_for, made_by)

    @cached_property
    def _made(self) -> dict[str, tuple[Channels, tuple[Making, ...]]]:
        """What each group's channels are, and the layers that make them."""
        return {g.name: (g.channels, g.made_by) for g in self.groups}

    @cached_property
    def dependencies(self) -> DependencyGraph:
        """What depends on what, and why. Made when first asked for: most networks are pruned without it."""
        return DependencyGraph.of(self.links, self.groups, self.traced.graph)

    @property
    def graph(self) -> nx.MultiDiGraph:
        """The dependency graph in NetworkX: axes as nodes; see `DependencyGraph`."""
        return self.dependencies.graph

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        return tuple(g for g in self.groups if g.frozen is None)

    @property
    def frozen(self) -> dict[str, str]:
        return {g.name: g.frozen for g in self.groups if g.frozen is not None}

    def widths(self, plan: Plan | None = None) -> dict[str, int]:
        """Channels kept per group: those of `plan`, and all channels of a group that it does not name."""
        kept = {} if plan is None else plan
        return {g.name: len(kept[g.name]) if g.name in kept else g.size for g in self.groups}


@dataclass(frozen=True, slots=True)
class ForwardPart:
    """A part of a forward that stays: a child module, or an operator ("relu", "default") with constant arguments."""

    child: str = ""
    operator: tuple[str, str] = ("", "")
    arguments: tuple[object, ...] = ()


Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a forward."""
