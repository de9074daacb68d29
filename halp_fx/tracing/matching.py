"""Two recordings of one network -> whether they did the same, but for sizes and for noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..types import Traced
from .graph import getitem, of, op


def alike(a: Traced, b: Traced) -> bool:
    """Whether two forwards ran the same operators at the same places on the same things, up to sizes."""
    found = matched(a, b)
    return found is not None and not found.noisy


@dataclass(frozen=True, slots=True)
class Matched:
    """Two forwards of which the second does what the first one does, but for random numbers that something is
    computed with, element by element (stochastic depth).

    Attributes:
        pairs: the operators, one beside the other.
        noisy: operators of the second with noise, beside the operator of the first whose result they take, and the
            dimensions along which the noise varies.
    """

    pairs: list[tuple[fx.Node, fx.Node]]
    noisy: list[tuple[fx.Node, fx.Node, set[int]]]

    def touches(self, channels: Callable[[fx.Node], set[int]]) -> bool:
        """Whether noise varies along a dimension of which `channels` says that it has some, or the second forward
        reads the size of one that the first does not read."""
        if any(dims & channels(old) for old, _, dims in self.noisy):
            return True
        for old, new in (*self.pairs, *(row[:2] for row in self.noisy)):
            read = of(new).sizes_read - of(old).sizes_read
            if read and read & channels(old):
                return True
        return False


def matched(a: Traced, b: Traced) -> Matched | None:
    """How two forwards go together; None if the second does something else, or reads other values. Dropout, which does
    nothing in eval mode, is looked through."""
    if set(a.unused) - set(b.unused) or {r.where for r in b.reads} - {r.where for r in a.reads}:
        return None
    number: dict[fx.Node, int] = {}
    rows: list[tuple[fx.Node, tuple[Any, ...]]] = []
    for node in _lasting(a.graph):
        if not _looked_through(node, number):
            number[node] = len(rows)
            rows.append((node, _wiring(node, number)))
    found = Matched([], [])
    noise: set[fx.Node] = set()
    ordinal: dict[fx.Node, int] = {}
    for node in _lasting(b.graph):
        if _looked_through(node, ordinal):
            continue
        real = [n for n in node.all_input_nodes if n not in noise]
        following = len(found.pairs)
        if (
            following < len(rows)
            and len(real) == len(node.all_input_nodes)
            and _wiring(node, ordinal) == rows[following][1]
        ):
            ordinal[node] = following
            found.pairs.append((rows[following][0], node))
        elif _is_noise(node, real):
            noise.add(node)
        elif len(real) == 1 and _elementwise(node, real[0]):
            ordinal[node] = ordinal[real[0]]
            found.noisy.append((rows[ordinal[node]][0], node, _wide(node, noise)))
        else:
            return None
    return found if len(found.pairs) == len(rows) else None


def _lasting(graph: fx.Graph) -> Iterator[fx.Node]:
    counting = _counting(graph)
    return (node for node in graph.nodes if node not in counting)


def _looked_through(node: fx.Node, number: dict[fx.Node, int]) -> bool:
    """Whether a node is known by the number of what it takes: dropout, and copies, which a reshape makes or not as the
    batch size has it."""
    dropout = op(node) == "native_dropout" or (
        node.target is getitem and op(node.all_input_nodes[0]) == "native_dropout"
    )
    if not (dropout or op(node) == "clone") or node.all_input_nodes[0] not in number:
        return False
    number[node] = number[node.all_input_nodes[0]]
    return True


def _wiring(node: fx.Node, number: dict[fx.Node, int]) -> tuple[Any, ...]:
    """What an operator is and reads, and where."""
    kind = str(node.target) if node.op == "call_function" else node.op
    name: Any = node.target if node.op == "get_attr" and not of(node).constant else ""
    if node.target is getitem:
        name = node.args[1]
    elif op(node) in ("view", "_unsafe_view"):
        kind = "view"
    return kind, name, tuple(number.get(n) for n in node.all_input_nodes), of(node).source


def _is_noise(node: fx.Node, real: Sequence[fx.Node]) -> bool:
    """Whether an operator makes numbers out of nothing but a shape, or computes with such."""
    name = op(node)
    return node.op == "call_function" and (not real or name.startswith("new_") or name.endswith("_like"))


def _elementwise(node: fx.Node, taken: fx.Node) -> bool:
    before, after = of(taken).spec, of(node).spec
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return pointwise and before is not None and after is not None and before.shape == after.shape


def _wide(node: fx.Node, noise: set[fx.Node]) -> set[int]:
    """Dimensions of an operator's result along which its noise varies. That of PyTorch's dropouts has the shape of what
    they are given."""
    if "dropout" in of(node).function:
        return set()
    rank = len(of(node).one.shape)
    shapes = [of(n).one.shape for n in node.all_input_nodes if n in noise]
    return {rank - len(shape) + d for shape in shapes for d, size in enumerate(shape) if size > 1}


def _counting(graph: fx.Graph) -> set[fx.Node]:
    """Buffers that are counted up and not read otherwise, and the operators that do it: how often a norm has run."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        counts = node.op == "call_function" and all(n.op == "get_attr" for n in node.all_input_nodes)
        spec = of(node).spec
        whole = spec is not None and not spec.dtype.is_floating_point
        if whole and ((counts and not node.users) or (node.op == "get_attr" and found.issuperset(node.users))):
            found.add(node)
    return found
