"""moves: where a trial with narrower layers fails -> what might be decided otherwise so that it does not.

A forward may repeat a width in three ways: by an attribute (`self.num_heads`), by another size that it computes from
(`C // self.num_heads`), or by a literal. The first is mended by an edit of the attribute, the second by tying the two
groups, and where a rule left two ways to shrink, the other one may avoid the constant. These are proposals, made for
all modules that run the same line of the program at once; `trials` tries them out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice, product
from typing import Any

import torch
from torch import fx, nn

from ..coupling.sizes import groups_of, own_axis, takes_size
from ..rewriting.attributes import follows_tensors
from ..rewriting.literals import is_literal
from ..tracing.graph import is_view, of, op, place_of
from ..tracing.tags import MAX_ELEMENTS, FromAttribute, FromSize
from ..types import Coupling, Decisions, Extent, Mend, Mismatch, Tie

MAX_MOVES = 16
"""Proposals that are tried at one place before its groups are frozen."""

MAX_EDITS = 4
"""Attributes that are tried in addition to a tie or another choice."""

_OTHER = {"whole": "positions", "positions": "whole"}
_RATIOS = (Fraction(1), Fraction(2), Fraction(1, 2), Fraction(3), Fraction(1, 3), Fraction(4), Fraction(1, 4))
_MAX_TIED_GROUPS = 4


def moves(model: nn.Module, coupling: Coupling, mismatch: Mismatch) -> Iterator[Decisions]:
    """Proposals for a failing operator, the likeliest first: attributes that equal a size there, ties to groups
    further up, all these attributes at once, attributes that equal a simple multiple of a size; then the other choice
    of a rule, which changes the numbers that a forward computes from sizes (1 / sqrt(head dimension)).

    Where tags say which attributes the operator was given, or which sizes, only these are proposed.
    """
    for nodes in _places(coupling, mismatch):
        yield from islice(_moves_at(model, coupling, nodes, mismatch), MAX_MOVES)


def _moves_at(
    model: nn.Module, coupling: Coupling, nodes: Sequence[fx.Node], mismatch: Mismatch
) -> Iterator[Decisions]:
    given = _given(nodes, mismatch)
    if mismatch.by_value and not given:
        # The operator computes with a size: at no other width does it compute the same.
        yield from _flip_moves(model, coupling, nodes)
        return
    ties, needed = _tie_moves(coupling, nodes, mismatch)
    if needed:
        yield from ties
    if given:
        likely, others = _given_moves(model, coupling, nodes, given)
        yield from likely
        if not needed:
            yield from ties
        yield from _constant_moves(coupling, mismatch)
        yield from others
    else:
        edits = _attribute_moves(model, coupling, nodes, _RATIOS[:1])
        yield from edits
        if not needed:
            yield from ties
        if len(edits) > 1:
            yield joined(edits)
        yield from _attribute_moves(model, coupling, nodes, _RATIOS[1:])
    yield from _flip_moves(model, coupling, nodes)


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


def edits(model: nn.Module, coupling: Coupling, mismatch: Mismatch) -> Iterator[Decisions]:
    """Attributes that equal a size where a proposal still fails: two things may have to change at once."""
    for nodes in _places(coupling, mismatch)[:1]:
        given = _given(nodes, mismatch)
        if given:
            likely, others = _given_moves(model, coupling, nodes, given)
            yield from (*likely, *others)[:MAX_EDITS]
        elif not mismatch.by_value:
            yield from islice(_attribute_moves(model, coupling, nodes, _RATIOS[:1]), MAX_EDITS)


def followed(model: nn.Module, coupling: Coupling, node: fx.Node, given: Iterable[FromAttribute]) -> Decisions:
    """What elements of attributes most likely follow that an operator was given: the size that each equals there."""
    widths, sizes = coupling.widths(), _sizes(node, coupling)
    if op(node) == "slice" and isinstance(node.args[1], int):
        sizes = [coupling.shapes[n.name][node.args[1]] for n in (node, _source(node))]
    rows: dict[tuple[str, str], set[int | None]] = {}
    for source in given:
        rows.setdefault((source.module, source.attribute), set()).add(source.index)
    move = Decisions()
    for (owner, attribute), indices in sorted(rows.items()):
        whole = getattr(model.get_submodule(owner), attribute)
        value = tuple(number if i in indices else None for i, number in enumerate(whole))
        ways = _mends(owner, attribute, value, sizes, coupling, widths, _RATIOS[:1])
        if _is_shape(whole, node):
            ways = [way for way in ways if way[0] == 0]
        move = _merged(move, min(ways, key=lambda way: way[0])[1] if ways else ())
    return move


def _given(nodes: Sequence[fx.Node], mismatch: Mismatch) -> list[tuple[int, str, str]]:
    """The attributes that the failing operator was given: how many levels above its module they are, by what path
    down from there, and their names. So they can be found where other modules run the same line."""
    module = next((of(n).module for n in nodes if n.name == mismatch.node), None)
    found = {(s.module, s.attribute) for s in mismatch.sources if isinstance(s, FromAttribute)}
    if module is None:
        return []
    given = []
    for owner, attribute in sorted(found):
        common = next(o for o in _owners(module) if not o or owner == o or owner.startswith(f"{o}."))
        given.append((list(_owners(module)).index(common), owner[len(common) :].lstrip("."), attribute))
    return sorted(given)


def _given_moves(
    model: nn.Module, coupling: Coupling, nodes: Sequence[fx.Node], given: Sequence[tuple[int, str, str]]
) -> tuple[list[Decisions], list[Decisions]]:
    """Each of these attributes with the size it most likely stands for at every operator: alone where it equals that
    size, and all of them at once. And the less likely moves: with a multiple of a size, and with other sizes.

    An attribute that follows another size by now ties the two.
    """
    modules, widths = dict(model.named_modules()), coupling.widths()
    # By attribute and operator, the likeliest first: what it might follow.
    rows: list[list[list[tuple[bool, tuple[Mend, ...]]]]] = []
    for level, path, attribute in given:
        found = []
        for node in nodes:
            above = list(_owners(of(node).module))
            owner = ".".join(filter(None, (above[level], path))) if level < len(above) else None
            if owner is None or not hasattr(modules.get(owner), attribute):
                continue
            sizes, value = _sizes(node, coupling), getattr(modules[owner], attribute)
            known = tuple(m for m in coupling.decisions.mends if (m.module, m.attribute) == (owner, attribute))
            ways = []
            for ratios in (_RATIOS[:1], _RATIOS[1:]):
                likely = sorted(
                    _mends(owner, attribute, value, sizes, coupling, widths, ratios), key=lambda way: way[0]
                )
                ways += [(ratios == _RATIOS[:1], known + mends) for _, mends in likely]
            if ways:
                found.append(ways)
        if found:
            rows.append(found)
    first: list[Decisions] = []
    later: list[Decisions] = []
    for k in range(max((len(ways) for row in rows for ways in row), default=0)):
        best = [[ways[min(k, len(ways) - 1)] for ways in row] for row in rows]
        at_once = [_merged(Decisions(), tuple(mend for _, mends in row for mend in mends)) for row in best]
        for row, move in zip(best, at_once, strict=True):
            (first if k == 0 and any(exact for exact, _ in row) else later).append(move)
        if len(at_once) > 1:
            (later if k else first).append(joined(at_once))
    return list(_distinct(first)), list(_distinct(later))


def _distinct(found: Sequence[Decisions]) -> Iterator[Decisions]:
    return (move for i, move in enumerate(found) if move not in found[:i])


def _places(coupling: Coupling, mismatch: Mismatch) -> list[list[fx.Node]]:
    """The operators that a failure may be due to, by place in the program, each in all modules that run it."""
    nodes = list(coupling.traced.graph.nodes)
    if mismatch.node:
        alike = [n for n in nodes if place_of(n) == mismatch.place]
        ordinal = _ordinals(alike)
        failed = next(n for n in alike if n.name == mismatch.node)
        return [[n for n in alike if ordinal[n] == ordinal[failed]]]
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


def _sizes(node: fx.Node, coupling: Coupling) -> list[Extent]:
    """The sizes that an operator deals with: of its result (or of its pieces), of views of it, and of what leads to
    it."""
    pieces = [coupling.shapes[user.name] for user in node.users] if of(node).spec is None else []
    if pieces:
        dims = [d for d in range(len(pieces[0])) if any(p[d] != coupling.shapes[_source(node).name][d] for p in pieces)]
        found = [piece[d] for d in dims[:1] for piece in pieces]
    else:
        found = list(coupling.shapes[node.name])
    below = [node] if is_view(node) else []
    while below:
        below = [user for n in below for user in n.users if is_view(user)]
        found += [e for n in below for e in coupling.shapes[n.name]]
    above = node.all_input_nodes
    while above:
        found += [e for n in above for e in coupling.shapes[n.name]]
        above = [source for n in above if is_view(n) for source in n.all_input_nodes]
    # Heads, for one, where batch and heads are one dimension.
    return found + [Extent(0, ((name, 1),)) for name in groups_of(node, coupling)]


def _source(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _attribute_moves(
    model: nn.Module, coupling: Coupling, nodes: Sequence[fx.Node], ratios: Sequence[Fraction]
) -> list[Decisions]:
    """One move for every attribute (by name and class of its module) that equals a size at these operators: those of
    the nearest module first, and those last that would have to stand for several widths."""
    modules, widths = dict(model.named_modules()), coupling.widths()
    found: dict[tuple[Any, ...], Decisions] = {}
    for node in nodes:
        sizes = _sizes(node, coupling)
        for distance, owner in enumerate(_owners(of(node).module)):
            if owner not in modules or follows_tensors(modules[owner]):
                continue
            for name, value in vars(modules[owner]).items():
                for variant, (rank, mends) in enumerate(_mends(owner, name, value, sizes, coupling, widths, ratios)):
                    key = (distance, rank, variant, type(modules[owner]), name)
                    found[key] = _merged(found.get(key, Decisions()), mends)
    return [found[key] for key in sorted(found, key=lambda k: (len(found[k].ties) > 0, *k[:3]))]


def _mends(
    owner: str,
    name: str,
    value: Any,
    sizes: Sequence[Extent],
    coupling: Coupling,
    widths: Mapping[str, int],
    ratios: Sequence[Fraction],
) -> list[tuple[int, tuple[Mend, ...]]]:
    """The ways in which an attribute may follow sizes, each with the rank of the size: for a number, one for every
    size that it equals."""
    known = set(coupling.decisions.mends)

    def matching(number: Any, among: Sequence[Extent], index: int | None) -> dict[Mend, int]:
        found: dict[Mend, int] = {}
        if isinstance(number, int) and not isinstance(number, bool) and number > 1:
            for (rank, extent), ratio in product(enumerate(among), ratios):
                may_shrink = any(widths[group] > 1 for group, _ in extent.terms)
                if may_shrink and extent.at(widths) * ratio == number:
                    mend = _mend(owner, name, index, extent, ratio, coupling)
                    if mend is not None and mend not in known:
                        found.setdefault(mend, rank)
        return found

    if isinstance(value, int):
        return [(rank, (mend,)) for mend, rank in matching(value, sizes, None).items()]
    if type(value) not in (list, tuple, torch.Size) or not 0 < len(value) <= MAX_ELEMENTS:
        return []
    placed = [matching(v, sizes[i : i + 1], i) for i, v in enumerate(value)]
    anywhere = [found or matching(value[i], sizes, i) for i, found in enumerate(placed)]
    rows = {tuple(next(iter(m)) for m in elements if m): rank for rank, elements in ((99, anywhere), (0, placed))}
    return [(rank, row) for row, rank in rows.items() if row]


def _mend(owner: str, name: str, index: int | None, extent: Extent, ratio: Fraction, coupling: Coupling) -> Mend | None:
    """The attribute as `extent * ratio`, in slots of axes; None if a group has no axis of its own."""
    groups = {g.name: g for g in coupling.groups}
    terms = []
    for group, scale in extent.terms:
        axis = own_axis(groups[group], coupling)
        if axis is None:
            return None
        each = next(m.slots.shape[1] for m in groups[group].members if m.axis == axis)
        terms.append((axis, Fraction(scale, each) * ratio))
    fixed = extent.fixed * ratio
    return Mend(owner, name, index, int(fixed), tuple(terms)) if fixed.denominator == 1 else None


def _owners(module: str) -> Iterator[str]:
    """The module's name and those of the modules around it."""
    while module:
        yield module
        module = module.rpartition(".")[0]
    yield ""


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


def _tie_moves(coupling: Coupling, nodes: Sequence[fx.Node], mismatch: Mismatch) -> tuple[list[Decisions], bool]:
    """Ties of a group at these operators with one of the next groups further up; the k-th of every operator in one.

    And whether they are needed: tags say that the failing operator was given the size of another group. Then only
    ties with that one are returned.
    """
    rows = [_ties(node, coupling) for node in nodes]
    moves = range(max(map(len, rows), default=0))
    sizes = (s for s in mismatch.sources if isinstance(s, FromSize) and s.dim < len(coupling.shapes.get(s.node, ())))
    read = {group for s in sizes for group, _ in coupling.shapes[s.node][s.dim].terms}
    needed: list[int] = []
    for node, row in zip(nodes, rows, strict=True):
        if node.name == mismatch.node:
            own = set(groups_of(node, coupling))
            needed = [k for k, (a, b, _) in enumerate(row) if {a, b} & read and {a, b} & (own - read)]
    ties = [[tie for _, _, tie in row] for row in rows]
    found = [
        Decisions(ties=tuple(dict.fromkeys(row[min(k, len(row) - 1)] for row in ties if row))) for k in needed or moves
    ]
    return found, bool(needed)


def _ties(node: fx.Node, coupling: Coupling) -> list[tuple[str, str, Tie]]:
    """Pairs of groups, and the tie of each."""
    groups = {g.name: g for g in coupling.groups}
    near: dict[str, None] = {}
    level, seen = [node], {node}
    while level and len(near) < _MAX_TIED_GROUPS:
        near |= {name: None for n in level for name in groups_of(n, coupling)}
        level = [n for n in dict.fromkeys(a for n in level for a in n.all_input_nodes) if n not in seen]
        seen.update(level)
    if len(near) == 1:
        # A forward that checks its widths fails at whatever operator comes next: it need not read the tensor.
        near |= {name: None for n in _following(node) for name in groups_of(n, coupling)}
    names = list(near)[:_MAX_TIED_GROUPS]
    pairs = [(groups[a], groups[b]) for i, b in enumerate(names) for a in names[:i]]
    axes = [(a, b, own_axis(a, coupling), own_axis(b, coupling)) for a, b in pairs if _divide(a.size, b.size)]
    return [(a.name, b.name, Tie(x, y)) for a, b, x, y in axes if x is not None and y is not None]


def _following(node: fx.Node) -> Iterator[fx.Node]:
    """The operators that the same module runs next."""
    module = of(node).module
    while (node := node.next).op != "root" and node.op != "output":
        if node.op == "call_function" and of(node).module == module:
            yield node


def _divide(a: int, b: int) -> bool:
    return min(a, b) > 1 and max(a, b) % min(a, b) == 0


def _flip_moves(model: nn.Module, coupling: Coupling, nodes: Sequence[fx.Node]) -> list[Decisions]:
    """The other choice at each place in the modules that run these operators, or in modules within these."""
    modules = dict(model.named_modules())
    scopes = {_scope(of(n).module, modules) for n in nodes}
    flips: dict[str, dict[str, str]] = {}
    for key, choice in coupling.decisions.choices.items():
        module, _, place = key.partition("/")
        if choice in _OTHER and any(s == module or module.startswith(f"{s}.") for s in scopes):
            flips.setdefault(place, {})[key] = _OTHER[choice]
    return [Decisions(choices) for choices in flips.values()]


def _scope(module: str, modules: Mapping[str, nn.Module]) -> str:
    """The module itself, or the one around it if it is a layer."""
    return module.rpartition(".")[0] if module in modules and follows_tensors(modules[module]) else module
