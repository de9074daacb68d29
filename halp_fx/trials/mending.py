"""moves: where a trial with narrower layers fails -> what might be decided otherwise so that it does not.

A forward may repeat a width in three ways: by an attribute (`self.num_heads`), by another size that it computes from
(`C // self.num_heads`), or by a literal. The first is mended by an edit of the attribute, the second by tying the two
groups, and where a rule left two ways to shrink, the other one may avoid the constant. These are proposals, made for
all modules that run the same line of the program at once; `trials` tries them out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice

from torch import fx, nn

from ..coupling.counts import COUNTED, choice_at, count_at, sums_at
from ..coupling.rules.cuts import ONE, OWN
from ..coupling.sizes import groups_followed, groups_given, groups_of, moving, takes_size
from ..rewriting.attributes import follows_tensors
from ..rewriting.literals import is_literal
from ..tracing.graph import of, place_of, views_of
from ..tracing.tags import FromSize
from ..types import Coupling, Decisions, Mismatch, Tie
from .attributes import attributes_given, compared_moves, equal_moves, given_moves, joined
from .choosing import OTHER_WAY
from .following import EXACT, MULTIPLES
from .tagging import Given
from .tying import among, asked, in_turn, near

MAX_MOVES = 16
"""Proposals that are tried at one place before its groups are frozen."""

MAX_EDITS = 4
"""Attributes that are tried in addition to a tie or another choice."""

_OTHER = OTHER_WAY | {"follow": "stay", "rows": "columns", "columns": "rows"}


def moves(model: nn.Module, coupling: Coupling, mismatch: Mismatch, given: Given) -> Iterator[Decisions]:
    """Proposals for a failing operator, the likeliest first: attributes that equal a size there, ties to groups
    further up, all these attributes at once, attributes that equal a simple multiple of a size; then the other choice
    of a rule, which changes the numbers that a forward computes from sizes (1 / sqrt(head dimension)).

    Where tags say which attributes the operator was given, or which sizes, only these are proposed.

    Args:
        given: what operators are given at full width: modules that run the same line may be given other sizes.
    """
    for nodes in _places(coupling, mismatch):
        yield from islice(_moves_at(model, coupling, nodes, mismatch, given), MAX_MOVES)


def _moves_at(
    model: nn.Module, coupling: Coupling, nodes: Sequence[fx.Node], mismatch: Mismatch, given: Given
) -> Iterator[Decisions]:
    attributes = attributes_given(nodes, mismatch)
    if mismatch.by_value:
        counting = [choice_at(node) for node in nodes if count_at(node) is not None]
        if counting:
            yield Decisions(dict.fromkeys(counting, COUNTED))
    if mismatch.by_value and not attributes:
        # The operator computes with a size: at no other width does it compute the same.
        yield from _value_moves(model, coupling, nodes)
        return
    if nodes and not groups_of(nodes[0], coupling) and groups_followed(mismatch.sources, coupling):
        # What it handles keeps its widths, but an attribute does not, for other operators want it to follow one.
        yield from _constant_moves(coupling, mismatch)
        return
    if mismatch.compared:
        yield from compared_moves(model, coupling, nodes, mismatch)
        yield from in_turn([among(mismatch.sources, coupling)])
    checked = mismatch.cause is not None and isinstance(mismatch.cause.__cause__, AssertionError)
    wanted = _wanted(coupling, nodes, mismatch, given, checked)
    needed = bool(wanted and wanted[0])
    # An operator that needs a tie is another case than one that does not.
    nodes = [node for node, row in zip(nodes, wanted, strict=True) if bool(row) == needed]
    tied = in_turn(wanted if needed else [near(node, coupling) for node in nodes])
    likely, others = given_moves(model, coupling, nodes, attributes) if attributes else ([], [])
    if needed and nodes and _handles(nodes[0], coupling, mismatch):
        # Each size may be that of a dimension of its own, such as rows and columns of a kernel.
        yield from likely
    if needed:
        yield from tied
    if attributes:
        yield from likely
        if not needed:
            yield from tied
        yield from _constant_moves(coupling, mismatch)
        yield from others
    elif not _explained(nodes[0], coupling, mismatch):
        edits = equal_moves(model, coupling, nodes, EXACT)
        yield from edits
        if not needed:
            yield from tied
        if len(edits) > 1:
            yield joined(edits)
        yield from equal_moves(model, coupling, nodes, MULTIPLES)
    yield from _value_moves(model, coupling, nodes) if mismatch.by_value else _flip_moves(model, coupling, nodes)


def _value_moves(model: nn.Module, coupling: Coupling, nodes: Sequence[fx.Node]) -> Iterator[Decisions]:
    """The other choices where a number follows a width (whole heads do not change the root of a head's width); before
    those of other modules, that numbers of scaled products count what these sum over."""
    flips = _flip_moves(model, coupling, nodes)
    modules = {of(node).module for node in nodes}
    own = [flip for flip in flips if any(place.partition("/")[0] in modules for place in flip.choices)]
    yield from own
    counts = {choice_at(node): ways for node in nodes if (ways := sums_at(node))}
    for i in range(max(map(len, counts.values()), default=0)):
        yield Decisions({place: ways[min(i, len(ways) - 1)] for place, ways in counts.items()})
    yield from (flip for flip in flips if flip not in own)


def _handles(node: fx.Node, coupling: Coupling, mismatch: Mismatch) -> bool:
    """Whether the widths that an operator was given are all of groups that it handles."""
    return groups_given(mismatch.sources, coupling) <= set(groups_of(node, coupling))


def _wanted(
    coupling: Coupling, nodes: Sequence[fx.Node], mismatch: Mismatch, given: Given, checked: bool = False
) -> list[list[Tie]]:
    """Of operators, the first of which failed, the ties that are needed by what they were given."""
    given = {**given, mismatch.node: mismatch.sources}
    return [asked(node, coupling, given.get(node.name, frozenset()), checked) for node in nodes]


def _explained(node: fx.Node, coupling: Coupling, mismatch: Mismatch) -> bool:
    """Whether the sizes of tensors that an operator was given are all that it was given: `reshape(b, n, c)`."""
    records = {n.name: of(n) for n in coupling.traced.graph.nodes}
    sizes = [s for s in mismatch.sources if isinstance(s, FromSize) and s.node in records]
    read = {1, *(records[s.node].one.shape[s.dim] for s in sizes)}
    results = [n for n in (node, *views_of(node)) if of(n).spec is not None]
    return len(read) > 1 and any(read.issuperset(of(n).one.shape) for n in results)


def _constant_moves(coupling: Coupling, mismatch: Mismatch) -> Iterator[Decisions]:
    """Literals that were taken to follow a width, and stay as they are instead."""
    given = {(s.module, s.attribute, s.index): s for s in mismatch.sources if is_literal(s)}
    known = [m for m in coupling.decisions.mends if m.terms and (m.module, m.attribute, m.index) in given]
    axes = coupling.traced.tensors
    fixed = []
    for mend in known:
        value = mend.fixed + sum(factor * axes[axis.tensor].shape[axis.dim] for axis, factor in mend.terms)
        fixed.append(replace(mend, fixed=int(value), terms=()))
    if len(fixed) > 1:
        yield Decisions(mends=tuple(fixed))
    yield from (Decisions(mends=(mend,)) for mend in fixed)


def edits(model: nn.Module, coupling: Coupling, mismatch: Mismatch, given: Given) -> Iterator[Decisions]:
    """Ties that are needed and attributes that equal a size where a proposal still fails: two things may have to change
    at once."""
    for nodes in _places(coupling, mismatch)[:1]:
        wanted = _wanted(coupling, nodes, mismatch, given)
        if wanted and wanted[0]:
            yield in_turn(wanted)[0]
            continue
        attributes = attributes_given(nodes, mismatch)
        if attributes:
            likely, others = given_moves(model, coupling, nodes, attributes)
            yield from (*likely, *others)[:MAX_EDITS]
        elif not mismatch.by_value:
            yield from islice(equal_moves(model, coupling, nodes, EXACT), MAX_EDITS)


def _places(coupling: Coupling, mismatch: Mismatch) -> list[list[fx.Node]]:
    """The operators that a failure may be due to, by place in the program, each in all modules that run it from there
    on: the failing one first."""
    nodes = list(coupling.traced.graph.nodes)
    if mismatch.node:
        alike = [n for n in nodes if place_of(n) == mismatch.place]
        failed = next(n for n in alike if n.name == mismatch.node)
        ordinal, moves = _ordinals(alike), moving(failed, coupling)
        # Those before it did not fail, and where other dimensions can shrink something else may help.
        rest = alike[alike.index(failed) :]
        return [[n for n in rest if ordinal[n] == ordinal[failed] and moving(n, coupling) == moves]]
    # All shapes are right, but channels are coupled to others than before: something was cut elsewhere.
    cut = [n for n in nodes if takes_size(n) and not set(mismatch.groups).isdisjoint(groups_of(n, coupling))]
    return [[n for n in cut if place_of(n) == place] for place in dict.fromkeys(map(place_of, cut))]


def _ordinals(nodes: Sequence[fx.Node]) -> dict[fx.Node, int]:
    """How many of these operators the same module has run before each."""
    seen: Counter[str] = Counter()
    ordinals = {}
    for node in nodes:
        module = of(node).module
        ordinals[node] = seen[module]
        seen[module] += 1
    return ordinals


def _flip_moves(model: nn.Module, coupling: Coupling, nodes: Sequence[fx.Node]) -> list[Decisions]:
    """The other choice at each place in the modules that run these operators, or in modules within these; and at all of
    these places."""
    modules = dict(model.named_modules())
    scopes = {_scope(of(n).module, modules) for n in nodes}
    flips: dict[str, dict[str, str]] = {}
    for key, choice in coupling.decisions.choices.items():
        module, _, place = key.partition("/")
        # "0,1": of several pieces these follow a width, and others stay.
        other = "all" if choice[:1].isdigit() else _OTHER.get(choice)
        if choice.startswith(OWN):
            other = choice.replace(OWN, ONE)
        if other and any(not s or s == module or module.startswith(f"{s}.") for s in scopes):
            flips.setdefault(place, {})[key] = other
    if "" in scopes and len(flips) > 1:
        # The model's own forward runs everything: what is near comes first.
        flips = dict(sorted(flips.items(), key=lambda flip: _distance(nodes, {k.partition("/")[0] for k in flip[1]})))
    every = [dict(chain.from_iterable(choices.items() for choices in flips.values()))] if len(flips) > 1 else []
    return [Decisions(choices) for choices in (*flips.values(), *every)]


def _distance(nodes: Sequence[fx.Node], modules: Collection[str]) -> int:
    """How many operators lie between the first of these and what one of these modules runs."""
    order = list(nodes[0].graph.nodes)
    at = order.index(nodes[0])
    return min(
        (abs(i - at) for i, n in enumerate(order) if n.op == "call_function" and of(n).module in modules), default=0
    )


def _scope(module: str, modules: Mapping[str, nn.Module]) -> str:
    """The module itself, or the one around it if it is a layer."""
    return module.rpartition(".")[0] if module in modules and follows_tensors(modules[module]) else module
