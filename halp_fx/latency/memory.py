"""Peak activation bytes of a forward.

At every operator, the tensors that are alive are its arguments and results and everything a later operator still
reads; parameters and buffers do not count. The peak is the maximum over operators, which is not a sum of terms. So:

* `total` is the true peak at the given widths.
* `tables` is the sum over the tensors alive at the *dense* network's peak moment. It equals `total` at dense widths
  and is a lower bound elsewhere: where the peak moves to another operator, `total` says by how much it is missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from ..recording import getitem
from ..solver import CostTable
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
    """Peak activation bytes of one forward in eager mode (see the module's docstring for what is exact)."""

    resource = "memory"
    unit = "bytes"

    def tables(self, coupling: Coupling, options: Options) -> tuple[CostTable, ...]:
        buffers = _buffers(coupling)
        moment, _ = _peak(buffers, coupling.widths())
        alive = [b for b in buffers if b.first <= moment <= b.last]
        return tuple(counted_table(b.name, b.shape, b.itemsize, coupling, options, self.resource) for b in alive)

    def total(self, coupling: Coupling, widths: Mapping[str, int] | None = None) -> float:
        return float(_peak(_buffers(coupling), coupling.widths() if widths is None else widths)[1])


def _peak(buffers: list[_Buffer], widths: Mapping[str, int]) -> tuple[int, int]:
    """(moment, bytes) at which the most memory is alive."""
    change = np.zeros(max((b.last for b in buffers), default=0) + 2, dtype=np.int64)
    for buffer in buffers:
        size = buffer.bytes(widths)
        change[buffer.first] += size
        change[buffer.last + 1] -= size
    alive = np.cumsum(change)
    return int(alive.argmax()), int(alive.max())


def _buffers(coupling: Coupling) -> list[_Buffer]:
    nodes: list[fx.Node] = list(coupling.traced.graph.nodes)
    owner: dict[fx.Node, fx.Node | None] = {}
    last: dict[fx.Node, int] = {}
    first: dict[fx.Node, int] = {}
    moment_of = {node: moment for moment, node in enumerate(nodes)}
    for node, moment in moment_of.items():
        for argument in node.all_input_nodes:
            source = owner.get(argument)
            if source is not None:
                last[source] = moment
        base = _shares_memory_with(node)
        new = base is None and _allocates(node)
        owner[node] = node if new else owner.get(base)  # type: ignore[arg-type]
        if new:
            # A result taken from a tuple exists from the moment that the tuple does.
            made = moment_of[node.args[0]] if node.target is getitem else moment  # type: ignore[index]
            first[node], last[node] = made, moment
    return [_Buffer(n.name, coupling.shapes[n.name], n.meta["spec"].dtype.itemsize, first[n], last[n]) for n in first]


def _allocates(node: fx.Node) -> bool:
    return node.op in ("placeholder", "call_function") and node.meta.get("spec") is not None


def _shares_memory_with(node: fx.Node) -> fx.Node | None:
    """The argument whose memory a view or in-place operator returns, None if the result is new."""
    target = node.target
    if target is getitem:
        source: fx.Node = node.args[0]  # type: ignore[assignment]
        return _shares_memory_with(source)
    if not isinstance(target, torch._ops.OpOverload):
        # written_through_alias(old, writer): the old memory.
        return node.args[0] if node.op == "call_function" and node.args else None  # type: ignore[return-value]
    aliased = {name for r in target._schema.returns if r.alias_info for name in r.alias_info.before_set}
    for index, argument in enumerate(target._schema.arguments):
        if argument.alias_info and aliased & set(argument.alias_info.before_set):
            value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            if isinstance(value, fx.Node):
                return value
    return None
