"""Peak activation bytes of a forward.

At every operator, the tensors that are alive are its arguments and results (also those that nobody reads, such as the
indices of a max pool) and everything a later operator still reads; views and in-place results share memory; parameters
and buffers do not count. The peak is the maximum over operators, exact under this definition. Not in it: scratch space
inside an operator, and what Python variables of a forward keep alive beyond the last reader.

A maximum over moments is not a sum of terms, so each moment that can be the peak is a resource of its own: "memory" is
the peak of the dense network, "memory@node" another. A moment whose tensors are all alive at another one, too, cannot
be the peak alone and is left out. Widths that keep every one of these sums within a limit keep the peak within it, and
the other way round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import fx

from ..internals import OpOverload
from ..solver import CostTable
from ..tracing.graph import getitem, made_by, of
from ..types import Coupling, Extent
from .costs import CountedCost, Options, counted_table


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Memory that one or more nodes share (views, in-place results): allocated at `first`, last read at `last`."""

    name: str
    shape: tuple[Extent, ...]
    itemsize: int
    first: int
    last: int

    def bytes(self, widths: Mapping[str, int]) -> int:
        return self.itemsize * int(np.prod([e.at(widths) for e in self.shape], dtype=np.int64))


class MemoryCost(CountedCost):
    """Peak activation bytes of one forward (see the module's docstring for what counts)."""

    resource = "memory"
    unit = "bytes"

    def tables(self, coupling: Coupling, options: Options) -> tuple[CostTable, ...]:
        """The tensors alive at each moment that can be the peak, under a resource of that moment's own."""
        dense, buffers = coupling.widths(), _buffers(coupling)
        floor = _bytes_alive(buffers, {**dense, **{group: row[0] for group, row in options.items()}}).max()
        rows = [
            (resource, buffer)
            for resource, alive in self._moments(coupling, buffers).items()
            if sum(b.bytes(dense) for b in alive) >= floor
            for buffer in alive
        ]
        one = {
            b: counted_table(b.name, b.shape, b.itemsize, coupling, options, self.resource)
            for b in dict.fromkeys(buffer for _, buffer in rows)
        }
        return tuple(replace(one[buffer], resource=resource) for resource, buffer in rows)

    def total(self, coupling: Coupling, widths: Mapping[str, int] | None = None) -> float:
        return float(_bytes_alive(_buffers(coupling), coupling.widths() if widths is None else widths).max())

    def limits(self, coupling: Coupling, amount: float) -> dict[str, float]:
        """The resources of `tables` that have to stay within `amount` bytes: those that exceed it when dense."""
        dense = coupling.widths()
        moments = self._moments(coupling, _buffers(coupling)).items()
        over = {resource for resource, alive in moments if sum(b.bytes(dense) for b in alive) > amount}
        return dict.fromkeys((self.resource, *sorted(over - {self.resource})), amount)

    def _moments(self, coupling: Coupling, buffers: list[_Buffer]) -> dict[str, list[_Buffer]]:
        """Resource -> the tensors alive at each moment that can be the peak, the largest of the dense network first."""
        names = [node.name for node in coupling.traced.graph.nodes]
        sizes = _bytes_alive(buffers, coupling.widths())
        found: dict[str, list[_Buffer]] = {}
        # Numbers in place of shapes: hundreds of moments of dozens of tensors are compared.
        number: dict[tuple[tuple[Extent, ...], int], int] = {}
        kinds: list[Counter[int]] = []
        for moment in np.argsort(-sizes, kind="stable").tolist():
            alive = [b for b in buffers if b.first <= moment <= b.last]
            kind = Counter(number.setdefault((b.shape, b.itemsize), len(number)) for b in alive)
            # Larger moments come first, so one that holds all of this is known already.
            if alive and not any(kind <= other for other in kinds):
                kinds.append(kind)
                found[f"{self.resource}@{names[moment]}" if found else self.resource] = alive
        return found


def _bytes_alive(buffers: list[_Buffer], widths: Mapping[str, int]) -> np.ndarray:
    """(moments,) int64: bytes alive at each node."""
    change = np.zeros(max((b.last for b in buffers), default=0) + 2, dtype=np.int64)
    for buffer in buffers:
        size = buffer.bytes(widths)
        change[buffer.first] += size
        change[buffer.last + 1] -= size
    return np.cumsum(change)[:-1]


def _buffers(coupling: Coupling) -> list[_Buffer]:
    nodes: list[fx.Node] = list(coupling.traced.graph.nodes)
    owner: dict[fx.Node, fx.Node | None] = {}
    last: dict[fx.Node, int] = {}
    first: dict[fx.Node, int] = {}
    moment_of = {node: moment for moment, node in enumerate(nodes)}
    unread: list[_Buffer] = []
    for node, moment in moment_of.items():
        for argument in node.all_input_nodes:
            source = owner.get(argument)
            if source is not None:
                last[source] = moment
        base = _shares_memory_with(node)
        new = base is None and _allocates(node)
        shared = owner.get(base) if base is not None else None
        owner[node] = node if new else shared
        if new:
            # A result taken from a tuple exists from the moment that the tuple does.
            first[node], last[node] = moment_of[made_by(node)], moment
        if base is None:
            unread += _unread_results(node, moment, coupling)
    read = [_Buffer(n.name, coupling.shapes[n.name], of(n).one.dtype.itemsize, first[n], last[n]) for n in first]
    return read + unread


def _unread_results(node: fx.Node, moment: int, coupling: Coupling) -> list[_Buffer]:
    """Results of a tuple that no node takes. One with the shape of a sibling that is taken shrinks as that does (the
    indices of a max pool); any other is counted as dense."""
    taken = {u.args[1]: u for u in node.users if u.target is getitem}
    alike = {s.shape: coupling.shapes[u.name] for u in taken.values() if (s := of(u).spec) is not None}
    return [
        _Buffer(f"{node.name}[{i}]", alike.get(s.shape, tuple(map(Extent, s.shape))), s.dtype.itemsize, moment, moment)
        for i, s in enumerate(of(node).results)
        if s is not None and i not in taken
    ]


def _allocates(node: fx.Node) -> bool:
    return node.op in ("placeholder", "call_function") and of(node).spec is not None


def _shares_memory_with(node: fx.Node) -> fx.Node | None:
    """The argument whose memory a view or in-place operator returns, None if the result is new."""
    target = node.target
    if target is getitem:
        return _shares_memory_with(made_by(node))
    if not isinstance(target, OpOverload):
        # written_through_alias(old, writer): the old memory.
        return node.args[0] if node.op == "call_function" and node.args else None  # type: ignore[return-value]
    aliased = {name for r in target._schema.returns if r.alias_info for name in r.alias_info.before_set}
    for index, argument in enumerate(target._schema.arguments):
        if argument.alias_info and aliased & set(argument.alias_info.before_set):
            value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            if isinstance(value, fx.Node):
                return value
    return None
