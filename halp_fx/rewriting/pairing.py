"""The operators of a network and of its pruned copy, one beside the other, and which of them are not compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import product

from torch import fx, nn

from ..coupling.sizes import FACTORIES, takes_size
from ..tracing.graph import (
    ancestors,
    getitem,
    is_view,
    of,
    op,
    sized_by_values,
    values_unused,
    views_of,
    without_writing,
)
from ..types import Extent
from .standins import Silent

# What else may be given a number of boxes.
_TAKES_COUNTS = {"topk", "narrow", "arange", "repeat_interleave"}
_MOST_CONSTANTS = 64


class Loose:
    """Nodes of a network, before and after pruning, whose sizes depend on how many elements values picked; and, if
    `making`, calls that may be made up of other operators than before (`remade`: some were)."""

    def __init__(self, before: fx.Graph, after: fx.Graph | None, making: bool) -> None:
        self._making, self.remade = making, False
        self._graphs = (before.nodes, after.nodes if after is not None else ())
        self._nodes = sized_by_values(before) | (sized_by_values(after) if after is not None else set())
        self._counted = frozenset(self._nodes)
        self._first = next((n for n in before.nodes if n in self._nodes and of(n).sizes_read), None)

    def firm(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """The nodes without these."""
        return [n for n in nodes if n not in self._nodes]

    def counted(self) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Those of them that both networks ran, one beside the other."""
        before, after = ([n for n in nodes if n in self._counted and n.op == "call_function"] for nodes in self._graphs)
        if len(before) == len(after) and list(map(_spot, before)) == list(map(_spot, after)):
            return zip(before, after, strict=True)
        return _ran_in_both(before, after)

    def made_from(self, node: fx.Node) -> bool:
        """Whether a value is computed from a tensor of such a size: how many rows a mask over them has."""
        return not self._nodes.isdisjoint(ancestors([node]))

    def pairs(
        self, before: Sequence[fx.Node], after: Sequence[fx.Node], failed: bool
    ) -> Iterator[tuple[fx.Node | None, fx.Node | None]]:
        """The operators one beside the other. Where the program has read such a size it may go on in another way (no
        box was found): from there on, the operators that both ran."""
        i = j = 0
        while i < len(before) or j < len(after):
            old, new = before[i] if i < len(before) else None, after[j] if j < len(after) else None
            differ = old is None or new is None or does(old) != does(new)
            if differ and op(old) == "slice" and old is not None and values_unused(old):
                # One channel of one is all of them, and no slice; only its shape counts.
                i += 1
                continue
            call = _call(before[i:]) if differ and self._making else None
            if call is not None and call == _call(after[j:]):
                i, j, self.remade = i + _length(before[i:], call), j + _length(after[j:], call), True
                continue
            if differ and not failed and (skipped := _past_constants(before[i:], after[j:])):
                i, j = i + skipped[0], j + skipped[1]
                continue
            loose = not failed and self._first is not None and (old is None or self._first < old)
            if loose and (differ or _spot(old) != _spot(new)):
                yield from _ran_in_both(before[i:], after[j:])
                return
            yield old, new
            i, j = i + 1, j + 1

    def follows(self, old: fx.Node, new: fx.Node, extents: Sequence[Extent], expected: Sequence[int]) -> bool:
        """Whether a result may differ as it does because the program read such a size before and handed it on, or
        because what it is computed from differs so; all sizes that depend on widths must be right."""
        given = takes_size(old) or op(old) in _TAKES_COUNTS or not old.all_input_nodes
        led = any(n in self._nodes for n in old.all_input_nodes)
        shape = of(new).one.shape
        if not led and not (given and self._first is not None and self._first < old):
            return False
        if len(shape) != len(expected):
            return False
        if any(e.terms and n != right for e, n, right in zip(extents, shape, expected, strict=True)):
            return False
        # What only restates them is in no pair.
        self._nodes |= {old, new, *views_of(old), *views_of(new)}
        return True


def _past_constants(before: Sequence[fx.Node], after: Sequence[fx.Node]) -> tuple[int, int] | None:
    """How many operators to skip on either side that only make constants, so that the next ones do the same: one
    forward makes a table, and the other finds it in a cache. What reads it is compared with its values."""
    ours, theirs = (_constants(nodes) for nodes in (before, after))
    for p, q in sorted(product(range(ours + 1), range(theirs + 1)), key=sum)[1:]:
        cached = all(of(n).constant for n in before[:p]) or all(of(n).constant for n in after[:q])
        if cached and p < len(before) and q < len(after) and does(before[p]) == does(after[q]):
            return p, q
    return None


def _constants(nodes: Sequence[fx.Node]) -> int:
    """How many of these are constants, or computed from nothing else, before one that is not."""
    some = nodes[:_MOST_CONSTANTS]
    made = (of(n).constant or (n.op == "call_function" and of(n).fixed and not op(n).endswith("_")) for n in some)
    return next((i for i, fixed in enumerate(made) if not fixed), len(some))


def _ran_in_both(before: Sequence[fx.Node], after: Sequence[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    ours, theirs = (list(map(_spot, nodes)) for nodes in (before, after))
    for a, b, count in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
        yield from zip(before[a : a + count], after[b : b + count], strict=True)


def _spot(node: fx.Node | None) -> tuple[object, ...]:
    return () if node is None else (does(node), of(node).module, of(node).source)


def _call(nodes: Sequence[fx.Node]) -> tuple[str, ...] | None:
    """The Python function that runs the first operator of these, and from where it was called."""
    node = next((n for n in nodes if n.op == "call_function" and n.target is not getitem), None)
    return None if node is None else (of(node).module, of(node).function, of(node).source)


def _length(nodes: Sequence[fx.Node], call: tuple[str, ...]) -> int:
    """How many of them a call runs, and what they read that is read the first time."""
    return next((k for k in range(len(nodes)) if _call(nodes[k : k + 1]) not in (None, call)), len(nodes))


def does(node: fx.Node) -> object:
    """What a node does. Constants are numbered by where they appear, and after a dropped branch nothing is written
    in place."""
    if of(node).constant:
        return "constant"
    target: object = without_writing(node.target)
    return target


def silent_modules(model: nn.Module) -> set[str]:
    """Modules that stand for dropped ones: what they return is no part of the network's structure."""
    return {name for name, module in model.named_modules() if isinstance(module, Silent)}


def working(graph: fx.Graph, silent: set[str], narrow: bool = False, ended: bool = True) -> list[fx.Node]:
    """The nodes that compute. With a width of 1, `einsum` is made up of other operators than before. Where a forward
    has not `ended`, what is idle so far may have been made for later."""
    shown = [n for n in graph.nodes if not (is_view(n) or (ended and idle(n)) or _restates(n))]
    own = [n for n in shown if of(n).module not in silent]
    return [n for n in own if of(n).function != "einsum"] if narrow else own


def _restates(node: fx.Node) -> bool:
    """Whether an operator says of what it is given nothing but its strides, in which dimensions of size 1 are free:
    pooling to 1 x 1 does where images are channels last."""
    return op(node) in ("as_strided", "as_strided_") and of(node).one.shape == of(node.all_input_nodes[0]).one.shape


def idle(node: fx.Node) -> bool:
    """Whether an operator makes a tensor of equal elements, or numbers, that nothing reads (those of heads, of an
    attention whose scores do not depend on them): no width is known for it."""
    return (op(node) in FACTORIES or op(node) == "arange") and all(is_view(n) and not n.users for n in node.users)
