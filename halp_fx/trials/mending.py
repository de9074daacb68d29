"""moves: where a trial with narrower layers fails -> what might be decided otherwise so that it does not.

A forward may repeat a width in three ways: by an attribute (`self.num_heads`), by another size that it computes from
(`C // self.num_heads`), or by a literal. The first is mended by an edit of the attribute, the second by tying the two
groups, and where a rule left two ways to shrink, the other one may avoid the constant. These are proposals, made for
all modules that run the same line of the program at once; `trials` tries them out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice
from typing import Any

from torch import fx, nn

from ..coupling.counts import COUNTED, choice_at, count_at
from ..coupling.rules.cuts import ONE, OWN, is_cut
from ..coupling.sizes import groups_followed, groups_given, groups_of, moving, takes_size
from ..model.holding import has, held
from ..rewriting.attributes import follows_tensors
from ..rewriting.literals import is_literal
from ..tracing.graph import of, op, place_of, views_of
from ..tracing.tags import FromAttribute, FromSize
from ..types import Coupling, Decisions, Mend, Mismatch, Tie
from .choosing import OTHER_WAY
from .following import EXACT, MULTIPLES, Following, Sizes, Widths, owners, source_of
from .tagging import Given
from .tying import asked, in_turn, near

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
    attributes = _attributes(nodes, mismatch)
    if mismatch.by_value:
        counting = [choice_at(node) for node in nodes if count_at(node) is not None]
        if counting:
            yield Decisions(dict.fromkeys(counting, COUNTED))
    if mismatch.by_value and not attributes:
        # The operator computes with a size: at no other width does it compute the same.
        yield from _flip_moves(model, coupling, nodes)
        return
    if nodes and not groups_of(nodes[0], coupling) and groups_followed(mismatch.sources, coupling):
        # What it handles keeps its widths, but an attribute does not, for other operators want it to follow one.
        yield from _constant_moves(coupling, mismatch)
        return
    checked = mismatch.cause is not None and isinstance(mismatch.cause.__cause__, AssertionError)
    wanted = _wanted(coupling, nodes, mismatch, given, checked)
    needed = bool(wanted and wanted[0])
    # An operator that needs a tie is another case than one that does not.
    nodes = [node for node, row in zip(nodes, wanted, strict=True) if bool(row) == needed]
    tied = in_turn(wanted if needed else [near(node, coupling) for node in nodes])
    likely, others = _given_moves(model, coupling, nodes, attributes) if attributes else ([], [])
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
        edits = _attribute_moves(model, coupling, nodes, EXACT)
        yield from edits
        if not needed:
            yield from tied
        if len(edits) > 1:
            yield joined(edits)
        yield from _attribute_moves(model, coupling, nodes, MULTIPLES)
    yield from _flip_moves(model, coupling, nodes)


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


def _is_shape(numbers: Sequence[int | None], node: fx.Node) -> bool:
    """Whether these are the sizes of an operator's result, one after the other."""
    spec = of(node).spec
    fits = spec is not None and len(spec.shape) == len(numbers)
    return fits and all(n in (None, -1, size) for n, size in zip(numbers, spec.shape, strict=True))  # type: ignore[union-attr]


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
        attributes = _attributes(nodes, mismatch)
        if attributes:
            likely, others = _given_moves(model, coupling, nodes, attributes)
            yield from (*likely, *others)[:MAX_EDITS]
        elif not mismatch.by_value:
            yield from islice(_attribute_moves(model, coupling, nodes, EXACT), MAX_EDITS)


def followed(model: nn.Module, coupling: Coupling, node: fx.Node, given: Iterable[FromAttribute]) -> Decisions:
    """What elements of attributes most likely follow that an operator was given: the size that each equals there."""
    sizes = Sizes.at(node, Widths(coupling))
    if op(node) == "slice" and isinstance(node.args[1], int):
        sizes = replace(sizes, extents=[coupling.shapes[n.name][node.args[1]] for n in (node, source_of(node))])
    rows: dict[tuple[str, str], set[int | None]] = {}
    for source in given:
        rows.setdefault((source.module, source.attribute), set()).add(source.index)
    move = Decisions()
    for (owner, attribute), indices in sorted(rows.items()):
        whole = getattr(model.get_submodule(owner), attribute)
        value = tuple(number if i in indices else None for i, number in enumerate(whole))
        ways = sizes.followed_by(owner, attribute, value, EXACT)
        if _is_shape(whole, node):
            ways = [way for way in ways if not way.misplaced]
        move = _merged(move, min(ways, key=lambda way: way.rank).mends if ways else ())
    return move


@dataclass(frozen=True, slots=True, order=True)
class _Attribute:
    """An attribute that the failing operator was given, in words that hold wherever a module runs the same line: from
    that module `level` modules up, and by `path` down from there. Of a list, the elements that it was given."""

    level: int
    path: str
    name: str
    indices: tuple[int, ...] = ()

    def explains(self, way: Following) -> bool:
        """Whether an element changes that the operator was given."""
        return not self.indices or not {m.index for m in way.mends}.isdisjoint(self.indices)

    def missed(self, way: Following) -> int:
        """How many elements that the operator was given do not change."""
        return len({*self.indices}.difference(m.index for m in way.mends))

    def owner(self, module: str) -> str | None:
        """The module that has it, where `module` runs the line; None if that does not lie so deep."""
        above = list(owners(module))
        return ".".join(filter(None, (above[self.level], self.path))) if self.level < len(above) else None


@dataclass(frozen=True, slots=True)
class _Joint:
    """One attribute at all operators at once: the mends that were there, and a `Following` at each."""

    ways: tuple[Following, ...]
    mends: tuple[Mend, ...]

    @property
    def move(self) -> Decisions:
        return _merged(Decisions(), self.mends)

    @property
    def exact(self) -> bool:
        return any(way.exact for way in self.ways)


@dataclass(frozen=True, slots=True)
class _Reach:
    """An attribute of one module, at one operator: mends that it has, and what it may follow, the likeliest first."""

    known: tuple[Mend, ...]
    ways: tuple[Following, ...]


def _attributes(nodes: Sequence[fx.Node], mismatch: Mismatch) -> list[_Attribute]:
    module = of(nodes[0]).module if nodes and mismatch.node else None
    found: dict[tuple[str, str], set[int]] = {}
    for source in mismatch.sources:
        if isinstance(source, FromAttribute):
            indices = found.setdefault((source.module, source.attribute), set())
            indices |= set() if source.index is None else {source.index}
    if module is None:
        return []
    above, attributes = list(owners(module)), []
    for (owner, attribute), indices in sorted(found.items()):
        level = next(i for i, o in enumerate(above) if not o or owner == o or owner.startswith(f"{o}."))
        path = owner[len(above[level]) :].lstrip(".")
        attributes.append(_Attribute(level, path, attribute, tuple(sorted(indices))))
    return sorted(attributes)


def _given_moves(
    model: nn.Module, coupling: Coupling, nodes: Sequence[fx.Node], attributes: Sequence[_Attribute]
) -> tuple[list[Decisions], list[Decisions]]:
    """Each of these attributes with the size it most likely stands for at every operator: alone where it equals that
    size, all that do at once, and all of them at once. And the less likely moves: with a multiple of a size, and with
    other sizes.

    An attribute that follows another size by now ties the two.
    """
    reached = [found for attribute in attributes if (found := _reaches(model, coupling, nodes, attribute))]
    first: list[Decisions] = []
    later: list[Decisions] = []
    several = len(reached) > 1 and bool(nodes) and is_cut(nodes[0])
    for k in range(max((len(at.ways) for found in reached for at in found), default=0)):
        joint = [_kth(found, k) for found in reached]
        for one in joint:
            (first if k == 0 and one.exact else later).append(one.move)
        if len(joint) > 1:
            exact = [one.move for one in joint if one.exact]
            if k == 0 and several:  # Pieces must make up the whole: one alone seldom does.
                first.insert(0, joined(exact))
            if k == 0 and 1 < len(exact) < len(joint):  # A kernel's size is a quarter of some width, by chance.
                first.append(joined(exact))
            (later if k else first).append(joined([one.move for one in joint]))
    return list(_distinct(first)), list(_distinct(later))


def _reaches(model: nn.Module, coupling: Coupling, nodes: Sequence[fx.Node], attribute: _Attribute) -> list[_Reach]:
    """The attribute at every operator where it may follow something."""
    modules, widths = dict(model.named_modules()), Widths(coupling)
    found = []
    for node in nodes:
        owner = attribute.owner(of(node).module)
        if owner is None or not has(modules.get(owner), attribute.name):
            continue
        sizes, value = Sizes.at(node, widths), held(modules[owner], attribute.name)
        ways = [w for ratios in (EXACT, MULTIPLES) for w in sizes.followed_by(owner, attribute.name, value, ratios)]
        if ways:
            known = tuple(m for m in coupling.decisions.mends if (m.module, m.attribute) == (owner, attribute.name))
            # A list that is not that of the pieces is cut again elsewhere, or has other numbers, too.
            loose = isinstance(value, list | tuple) and is_cut(node) and [*value] != node.args[1]
            ways.sort(key=lambda way: (not attribute.explains(way), attribute.missed(way) * loose, way.rank))
            found.append(_Reach(known, tuple(ways)))
    return found


def _kth(found: Sequence[_Reach], k: int) -> _Joint:
    """The k-th likeliest at every operator; the last where there are fewer."""
    ways = [at.ways[min(k, len(at.ways) - 1)] for at in found]
    mends = tuple(mend for at, way in zip(found, ways, strict=True) for mend in (*at.known, *way.mends))
    return _Joint(tuple(ways), mends)


def _distinct(found: Sequence[Decisions]) -> Iterator[Decisions]:
    return (move for i, move in enumerate(found) if move not in found[:i])


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


def _attribute_moves(
    model: nn.Module, coupling: Coupling, nodes: Sequence[fx.Node], ratios: Sequence[Fraction]
) -> list[Decisions]:
    """One move for every attribute (by name and class of its module) that equals a size at these operators: those of
    the nearest module first, and those last that would have to stand for several widths."""
    modules, widths = dict(model.named_modules()), Widths(coupling)
    found: dict[tuple[Any, ...], Decisions] = {}
    for node in nodes:
        sizes = Sizes.at(node, widths)
        for distance, owner in enumerate(owners(of(node).module)):
            if owner not in modules or follows_tensors(modules[owner]):
                continue
            for name, value in vars(modules[owner]).items():
                for variant, way in enumerate(sizes.followed_by(owner, name, value, ratios)):
                    key = (distance, way.rank, variant, type(modules[owner]), name)
                    found[key] = _merged(found.get(key, Decisions()), way.mends)
    return [found[key] for key in sorted(found, key=lambda k: (len(found[k].ties) > 0, *k[:3]))]


def _merged(move: Decisions, mends: tuple[Mend, ...]) -> Decisions:
    """With further mends; where one attribute stands for the widths of two groups, these are tied."""
    known = {(m.module, m.attribute, m.index): m for m in move.mends}
    ties = list(move.ties)
    for mend in mends:
        other = known.setdefault((mend.module, mend.attribute, mend.index), mend)
        if other != mend and len(other.terms) == len(mend.terms) == 1:
            ties.append(Tie(other.terms[0][0], mend.terms[0][0]))
    return replace(move, ties=tuple(dict.fromkeys(ties)), mends=tuple(known.values()))


def joined(found: Sequence[Decisions]) -> Decisions:
    """All of these; where they let one attribute follow two widths, these are tied."""
    move = Decisions()
    for other in found:
        move = _merged(replace(move, ties=(*move.ties, *other.ties)), other.mends)
    return move


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
