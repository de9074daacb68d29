"""What residual branches are found by: the operators of a trace as a NetworkX graph, and which run of a module runs
which of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from torch import fx, nn

from ..lazy import Lazily
from ..tracing.graph import getitem, op, unread
from ..types import ModuleCall, Traced

if TYPE_CHECKING:
    import networkx as nx
else:
    nx = Lazily("networkx")

# Behind everything that lasts: post-dominators need one end, and a network may have several outputs.
_END = "end"


class Flow:
    """Which value is read by which operator.

    Attributes:
        nodes: all nodes of the trace, in order.
        unread: those whose results come to nothing. They keep nothing in the network, so `reads` is without them.
        reads: an edge from every value to each operator that reads it.
    """

    def __init__(self, traced: Traced) -> None:
        self.nodes: list[fx.Node] = list(traced.graph.nodes)
        self.by_name = {node.name: node for node in self.nodes}
        self.unread = unread(traced.graph)
        self.reads: nx.DiGraph = nx.DiGraph()
        self.reads.add_nodes_from(n for n in self.nodes if n not in self.unread)
        self.reads.add_edges_from((n, user) for n in list(self.reads) for user in n.users if user not in self.unread)

    def leads(self, first: fx.Node, last: fx.Node) -> bool:
        """Whether a value is, or is computed from, another one."""
        return bool(nx.has_path(self.reads, first, last))

    def serving(self, value: fx.Node, reader: fx.Node) -> tuple[set[fx.Node], set[fx.Node]]:
        """The nodes that serve only to give one operator this value, and the values that they read from outside."""
        if value.op == "placeholder" or list(self.reads.successors(value)) != [reader]:
            return set(), {value}
        behind = {value, *nx.descendants(self._through, value)}
        inside = {node for node in behind if node.op != "placeholder"}
        return inside, {source for node in inside for source in node.all_input_nodes if source not in inside}

    @cached_property
    def _through(self) -> nx.DiGraph:
        """The tree of post-dominators: a node hangs below the first one that all which becomes of it goes through."""
        backwards = nx.DiGraph((reader, node) for node, reader in self.reads.edges)
        backwards.add_edges_from([(_END, node) for node, readers in self.reads.out_degree() if not readers])
        first = nx.immediate_dominators(backwards, _END)
        return nx.DiGraph((above, node) for node, above in first.items() if node != _END)


class Runs:
    """The runs of modules as a tree, and the operators that each runs."""

    def __init__(self, traced: Traced, flow: Flow) -> None:
        self.calls = traced.calls
        self.flow = flow
        self.position = {node: i for i, node in enumerate(flow.nodes)}
        self.children: dict[int, list[int]] = {}
        self.times: dict[str, int] = {}
        for i, call in enumerate(self.calls):
            self.children.setdefault(call.parent, []).append(i)
            self.times[call.module] = self.times.get(call.module, 0) + 1

    def span(self, call: ModuleCall) -> list[fx.Node]:
        return self.flow.nodes[call.start : call.end]

    def work(self, call: ModuleCall) -> list[fx.Node]:
        """The operators that are computed in a run, those of its children too."""
        return [n for n in self.span(call) if self._works(n)]

    def home(self, nodes: Iterable[fx.Node]) -> int:
        """The innermost run (its position in `calls`) that all nodes are part of."""
        places = [self.position[n] for n in nodes if self._works(n)]
        low, high = min(places), max(places)
        return [i for i, c in enumerate(self.calls) if c.start <= low and high < c.end][-1]

    def inner(self, home: int) -> list[ModuleCall]:
        """The runs of its children in a run."""
        return [self.calls[i] for i in self.children.get(home, [])]

    def passes(self, call: ModuleCall) -> bool:
        """Whether a run gives back what it was given, in training, too: an identity, or a sequence of such."""
        if call.kind is nn.Sequential and not self.work(call):
            return all(map(self.passes, self.inner(self.calls.index(call))))
        return call.kind is nn.Identity

    def items(self, home: int) -> list[fx.Node | ModuleCall]:
        """The operators that a module runs itself, and the runs of its children, in order."""
        inner = self.inner(home)
        covered = {n for call in inner for n in self.work(call)}
        own = [((self.position[n], 1, 0), n) for n in self.work(self.calls[home]) if n not in covered]
        runs = [((call.start, 0, i), call) for i, call in enumerate(inner)]
        return [item for _, item in sorted([*own, *runs], key=lambda row: row[0])]  # type: ignore[misc]

    def _works(self, node: fx.Node) -> bool:
        return node.op == "call_function" and node.target is not getitem and node not in self.flow.unread


def zero_if(node: fx.Node) -> list[fx.Node]:
    """The value that makes an operator's result zero if it is zero itself; nothing where that is not known."""
    name = op(node).rstrip("_")
    computed = [n for n in node.args if isinstance(n, fx.Node) and n.op != "get_attr"]
    if name == "mul" or (name in _MOVING and node.all_input_nodes == computed):
        return computed[:1]
    return []


# Without one of these, a block that does it to the result of a module before the add (in its own forward, beside other
# branches) keeps the branch. Of 79 networks of torchvision and timm none does: what they move, a child module moves.
_MOVING = (
    *("view", "_unsafe_view", "alias", "reshape", "permute", "transpose", "unsqueeze", "squeeze"),
    *("clone", "roll", "neg"),
)
