"""Which elements of which tensors make the score of which channel.

A channel is scored on the weights that operators get: a parameter itself, or, where the forward computes one
(`computed`), the computed one in place of what it is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from ..internals import tree_leaves
from ..kernels import Segment, SegmentLayout
from ..model.members import named_tensors
from ..tracing.graph import op
from ..tracing.memory import storage_of
from ..types import SCORED, ChannelGroup, ComputedWeight, Coupling
from .evaluated import evaluated

Key = tuple[str, str]
"""("parameter", its name) or ("computed", its node)."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightSlots:
    """Slots along one dimension of a tensor; `channels[s]` is the channel of the group that slot s is of, or -1."""

    key: Key
    dim: int
    role: str
    channels: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """The tensors of a network that scores are made of.

    Attributes:
        coupling: of the network.
        tensors: parameters and floating buffers by name, detached; complex ones as pairs of numbers (`as_real`).
        computed: values of computed weights by node, likewise; those that are the same weight computed again are left
            out.
    """

    coupling: Coupling
    tensors: Mapping[str, torch.Tensor]
    computed: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, model: nn.Module, coupling: Coupling) -> Weights:
        tensors = {n: t.detach() for n, t in named_tensors(model)}
        floating = {n: as_real(t) for n, t in tensors.items() if t.is_floating_point() or t.is_complex()}
        values = evaluated(coupling.traced.graph, [c.node for c in coupling.computed], tensors)
        kept: dict[str, torch.Tensor] = {}
        for weight in coupling.computed:
            value = values[weight.node]
            if isinstance(value, torch.Tensor) and not value.is_meta:
                value = as_real(value)
                twice = any(o.node in kept and _same(o, weight, kept[o.node], value) for o in coupling.computed)
                if not twice:
                    kept[weight.node] = value
        return cls(coupling, floating, kept)

    @property
    def statistics(self) -> frozenset[str]:
        """What batch norms read as running statistics, which PyTorch does not differentiate by: parameters, too, where
        a network keeps them as such."""
        nodes = (n for view in self.coupling.views() for n in view.traced.graph.nodes if "batch_norm" in op(n))
        read = (a for node in nodes for a in node.args[3:5] if isinstance(a, fx.Node))
        return frozenset(str(a.target) for a in read if a.op == "get_attr")

    def value(self, key: Key) -> torch.Tensor:
        kind, name = key
        return self.computed[name] if kind == "computed" else self.tensors[name]

    def places(self, group: ChannelGroup, nodes: Collection[str]) -> list[WeightSlots]:
        """Where the channels of a group are made.

        Args:
            nodes: computed weights that count; without one, the tensors that it is made of do.
        """
        found, replaced = [], set[str]()
        for weight, dim, role, channels in _parts(group, self.coupling):
            if weight.node in nodes:
                found.append(WeightSlots(("computed", weight.node), dim, role, channels))
                replaced |= weight.sources
        for member in group.members:
            name, dim = member.axis.tensor, member.axis.dim
            if name in self.tensors and name not in replaced and member.role in SCORED:
                row = np.full(self.tensors[name].shape[dim], -1, np.int64)
                row[member.slots] = np.arange(group.size)[:, None]
                found.append(WeightSlots(("parameter", name), dim, member.role, row))
        return found

    def layout(
        self, groups: Sequence[ChannelGroup], chosen: Callable[[ChannelGroup], Iterable[WeightSlots]]
    ) -> tuple[list[Key], SegmentLayout]:
        """Channels numbered over all groups; one segment per dimension of a tensor."""
        rows: dict[tuple[Key, int, int], np.ndarray] = {}
        start = 0
        for group in groups:
            for place in chosen(group):
                own = place.channels >= 0
                # The channels that a branch adds are slots of other groups, too: those go into a row of their own.
                places = ((place.key, place.dim, i) for i in count())
                free = next(p for p in places if p not in rows or (rows[p][own] < 0).all())
                row = rows.setdefault(free, np.full(len(own), -1, np.int64))
                row[own] = place.channels[own] + start
            start += group.size
        keys = sorted({key for key, _, _ in rows})
        segments = [Segment(keys.index(key), dim, row) for (key, dim, _), row in rows.items()]
        return keys, SegmentLayout.build([self.value(k).shape for k in keys], segments, start)


def _same(a: ComputedWeight, b: ComputedWeight, x: torch.Tensor, y: torch.Tensor) -> bool:
    return a.sources == b.sources and x.shape == y.shape and bool(torch.equal(x, y))


def _parts(group: ChannelGroup, coupling: Coupling) -> list[tuple[ComputedWeight, int, str, np.ndarray]]:
    """Where a group's channels lie in computed weights. The channels that a branch adds are part of another group:
    found by the axes that the two share."""
    own = [(w, p.dim, p.role, p.channels) for w in coupling.computed for p in w.parts if p.group == group.name]
    if own or not coupling.computed:
        return own
    found: dict[tuple[str, int], tuple[ComputedWeight, int, str, np.ndarray]] = {}
    for mine in group.members:
        weights = [w for w in coupling.computed if mine.axis.tensor in w.sources]
        for other in coupling.groups if weights else ():
            for theirs in other.members if other is not group else ():
                if theirs.axis != mine.axis:
                    continue
                of_slot = np.full(max(mine.slots.max(), theirs.slots.max()) + 1, -1)
                of_slot[mine.slots] = np.arange(group.size)[:, None]
                row = of_slot[theirs.slots[:, 0]]
                for w in weights:
                    for p in w.parts:
                        if p.group == other.name:
                            channels = np.where(p.channels >= 0, row[p.channels], -1)
                            found[w.node, p.dim] = (w, p.dim, p.role, channels)
    return list(found.values())


class WeightWatch(TorchFunctionMode):
    """Follows what a forward computes from parameters alone, and keeps what of it meets anything else: the weights
    that operators get, as they are in this run, to be differentiated by.

    Attributes:
        met: the tensors, each with the names of what it was made of.
    """

    def __init__(self, known: Mapping[str, torch.Tensor], constants: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.met: dict[int, tuple[torch.Tensor, frozenset[str]]] = {}
        # By id: the tensor (held, so that its id is not used again), what it is a view of, and what that is made of.
        self._made: dict[int, tuple[torch.Tensor, torch.Tensor, frozenset[str]]] = {
            id(t): (t, t, frozenset()) for t in constants
        }
        self._made |= {id(t): (t, t, frozenset({name})) for name, t in known.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        made = [self._made.get(id(v)) for v in given]
        known = [m for m in made if m is not None]
        if len(known) < len(made):
            for _, origin, names in known:
                if names and origin.requires_grad and not origin.is_leaf:
                    self.met[id(origin)] = (origin, names)
            return result
        names = frozenset[str]().union(*(m[2] for m in known))
        for out in tree_leaves(result):
            if isinstance(out, torch.Tensor) and id(out) not in self._made:
                base = next((m for m in known if _shares(m[0], out)), None)
                self._made[id(out)] = (out, *(base[1:] if base is not None else (out, names)))
        return result

    def matched(self, weights: Weights, parameters: Collection[str]) -> dict[str, list[torch.Tensor]]:
        """The tensors of this run by the computed weight that they are: same sources, shape and numbers."""
        found: dict[str, list[torch.Tensor]] = {}
        for weight in weights.coupling.computed:
            value = weights.computed.get(weight.node)
            own = weight.sources & set(parameters)
            for key, (tensor, names) in list(self.met.items()) if value is not None else ():
                assert value is not None
                real = as_real(tensor.detach())
                if names & set(parameters) == own and real.shape == value.shape and _close(real, value):
                    found.setdefault(weight.node, []).append(tensor)
                    del self.met[key]
        return found


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """Complex numbers as pairs along a last dimension more; others as they are. The gradient of a complex tensor is, so
    written, that of the pairs."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _shares(a: torch.Tensor, b: torch.Tensor) -> bool:
    return storage_of(a) == storage_of(b)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    scale = float(b.abs().max()) if b.numel() else 0.0
    return bool(((a.double() - b.double()).abs() <= 0.01 * b.double().abs() + 1e-4 * scale).all())
