"""upstream: a network and its branches -> the modules that do the same without a branch as with it.

Nothing before a branch depends on it. So where networks that lack one branch each are run on the same inputs, what such
a module puts out may be taken from a run of the whole network. It must then be all that the module does: nothing else
that it computes is read outside of it, and it writes to nothing that it did not make.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from torch import fx

from ..tracing.graph import getitem, is_view, of, written, written_by
from ..types import Coupling, ModuleCall, Traced
from .branches import Branch, Place, forwards


def unaffected(coupling: Coupling, branches: Sequence[Branch]) -> dict[str, tuple[str, ...]]:
    """For each branch the modules whose results do not depend on it, in the order of the forward; none of them runs in
    another one of them. In every forward that runs such a module it must be so."""
    first, *others = (_Forward(view.traced) for view in forwards(coupling))
    found = {}
    for branch in branches:
        place, *places = branch.places
        same = first.unaffected(place)
        for view, there in zip(others, places, strict=True):
            same -= view.modules - view.unaffected(there)
        found[branch.name] = tuple(first.outermost(same))
    return found


class _Forward:
    """One forward: its operators, and the runs of its modules."""

    def __init__(self, traced: Traced) -> None:
        self.nodes: list[fx.Node] = list(traced.graph.nodes)
        self.calls = traced.calls
        self.modules = {call.module for call in self.calls}
        times = Counter(call.module for call in self.calls)
        hooked = self._around(i for i, call in enumerate(self.calls) if call.hooked)
        self._by_name = {node.name: node for node in self.nodes}
        sound = [c for i, c in enumerate(self.calls) if c.module and i not in hooked]
        self._closed = [c for c in sound if times[c.module] == 1 and self._is_closed(c)]

    def unaffected(self, place: Place | None) -> set[str]:
        """Modules that may be left out of a run without this branch; None: this forward does not run it."""
        reached: set[fx.Node] = set()
        left = [] if place is None else [self._by_name[name] for name in {*place.nodes, place.add}]
        while left:
            node = left.pop()
            if node not in reached:
                reached.add(node)
                left += node.users
        return {call.module for call in self._closed if reached.isdisjoint(self._made(call))}

    def outermost(self, modules: set[str]) -> Iterator[str]:
        """Those that run in none of the others."""
        inside: set[int] = set()
        for i, call in enumerate(self.calls):
            if call.parent in inside:
                inside.add(i)
            elif call.module in modules:
                inside.add(i)
                yield call.module

    def _around(self, places: Iterable[int]) -> set[int]:
        """The positions of some runs, and of all that they are part of."""
        found: set[int] = set()
        for at in places:
            while at >= 0:
                found.add(at)
                at = self.calls[at].parent
        return found

    def _made(self, call: ModuleCall) -> list[fx.Node]:
        """What a run computes, its results of several left in one; and constants that it makes beside operators."""
        span = self.nodes[call.start : call.end]
        constants = [n for n in span if n.op == "get_attr" and of(n).constant]
        return [n for n in span if n.op == "call_function" and n.target is not getitem] + constants

    def _is_closed(self, call: ModuleCall) -> bool:
        """Whether a run computes something, its results are all that is read of it, nobody writes to these, and it
        writes to nothing else."""
        made = self._made(call)
        inside = {*made, *(u for n in made for u in n.users if u.target is getitem)}
        results = {self._by_name[name] for name in call.outputs if name}
        read = {n for n in inside if any(user not in inside for user in n.users)}
        return (
            bool(made)
            and read <= results
            and not any(written(result, inside) for result in results)
            and all(self._memory(target) in inside for n in made for target in written_by(n))
        )

    @staticmethod
    def _memory(node: fx.Node) -> fx.Node:
        """What made the memory that a value lies in, as far as operators say."""
        while node.args and isinstance(node.args[0], fx.Node):
            if not (
                node.target is getitem or is_view(node) or getattr(node.target, "is_view", False) or written_by(node)
            ):
                break
            node = node.args[0]
        return node
