"""Ties: an operator that fails in a trial -> pairs of groups whose channels may have to go together.

Where tags say which sizes an operator was given, only groups with these widths come into question. Each operator goes
by what it was given itself: in a stage with one head that need not be what it is in a stage with several.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from torch import fx

from ..coupling.sizes import groups_given, groups_of, own_axis
from ..tracing.graph import of
from ..tracing.tags import Source
from ..types import ChannelGroup, Coupling, Decisions, Tie

_MAX_TIED_GROUPS = 4


def asked(node: fx.Node, coupling: Coupling, sources: frozenset[Source], checked: bool = False) -> list[Tie]:
    """Ties of an operator's groups with those whose sizes it was given.

    Args:
        checked: the program compared sizes before the operator could run (an assertion): the other one is that of a
            tensor which is read further on.
    """
    read = groups_given(sources, coupling)
    own = set(groups_of(node, coupling)) - read
    pairs = _pairs(node, coupling)
    if checked and read and not own:
        groups = {g.name: g for g in coupling.groups}
        ahead = (name for n in _following(node) for name in groups_of(n, coupling) if name not in read)
        own = set(islice(ahead, 1))
        pairs = [(groups[a], groups[b]) for a in read for b in own]
    wanted = [(a, b) for a, b in pairs if {a.name, b.name} & read and {a.name, b.name} & own]
    if read and own and not wanted:
        # The sizes of a tensor that is read elsewhere: `k.reshape(q.shape)`.
        groups = {g.name: g for g in coupling.groups}
        wanted = [(groups[a], groups[b]) for a in sorted(read) for b in groups_of(node, coupling) if b in own]
    return _ties([(a, b) for a, b in wanted if math.gcd(a.size, b.size) > 1], coupling)


def among(sources: frozenset[Source], coupling: Coupling) -> list[Tie]:
    """Ties of the groups whose widths were compared with each other."""
    read = groups_given(sources, coupling)
    groups = [g for g in coupling.groups if g.name in read]
    pairs = [(a, b) for i, b in enumerate(groups) for a in groups[:i]]
    return _ties([(a, b) for a, b in pairs if math.gcd(a.size, b.size) > 1], coupling)


def near(node: fx.Node, coupling: Coupling) -> list[Tie]:
    """Ties of a group at an operator with one of the next groups further up."""
    pairs = _pairs(node, coupling)
    return _ties([(a, b) for a, b in pairs if 1 < min(a.size, b.size) == math.gcd(a.size, b.size)], coupling)


def in_turn(rows: Sequence[Sequence[Tie]]) -> list[Decisions]:
    """From the ties of several operators: the k-th of each in one."""
    turns = range(max(map(len, rows), default=0))
    return [Decisions(ties=tuple(dict.fromkeys(row[min(k, len(row) - 1)] for row in rows if row))) for k in turns]


def _ties(pairs: Iterable[tuple[ChannelGroup, ChannelGroup]], coupling: Coupling) -> list[Tie]:
    axes = [(own_axis(a, coupling), own_axis(b, coupling)) for a, b in pairs]
    return [Tie(a, b) for a, b in axes if a is not None and b is not None]


def _pairs(node: fx.Node, coupling: Coupling) -> list[tuple[ChannelGroup, ChannelGroup]]:
    """Pairs of groups at an operator or near it."""
    groups = {g.name: g for g in coupling.groups}
    names: dict[str, None] = {}
    level, seen = [node], {node}
    while level and len(names) < _MAX_TIED_GROUPS:
        names |= {name: None for n in level for name in groups_of(n, coupling)}
        level = [n for n in dict.fromkeys(a for n in level for a in n.all_input_nodes) if n not in seen]
        seen.update(level)
    if len(names) == 1:
        # A forward that checks its widths fails at whatever operator comes next: it need not read the tensor.
        names |= {name: None for n in _following(node) for name in groups_of(n, coupling)}
    nearest = list(names)[:_MAX_TIED_GROUPS]
    return [(groups[a], groups[b]) for i, b in enumerate(nearest) for a in nearest[:i]]


def _following(node: fx.Node) -> Iterator[fx.Node]:
    """The operators that the same module runs next."""
    module = of(node).module
    while (node := node.next).op != "root" and node.op != "output":
        if node.op == "call_function" and of(node).module == module:
            yield node
