"""Attributes at failing operators -> moves by which they follow sizes there: those that an operator was given, as tags
say, or where these say nothing all that equal a size.

One attribute is looked at in all modules that run the same line of the program at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import fx, nn

from ..coupling.rules.cuts import is_cut
from ..model.holding import has, held
from ..rewriting.attributes import implied
from ..tracing.graph import of, op
from ..tracing.tags import FromAttribute, FromSize
from ..types import Coupling, Decisions, Mend, Mismatch, Tie
from .following import EXACT, MULTIPLES, Following, Sizes, Widths, owners, source_of


@dataclass(frozen=True, slots=True, order=True)
class Attribute:
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


def attributes_given(nodes: Sequence[fx.Node], mismatch: Mismatch) -> list[Attribute]:
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
        attributes.append(Attribute(level, path, attribute, tuple(sorted(indices))))
    return sorted(attributes)


def given_moves(
    model: nn.Module, coupling: Coupling, nodes: Sequence[fx.Node], attributes: Sequence[Attribute]
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


def compared_moves(
    model: nn.Module, coupling: Coupling, nodes: Sequence[fx.Node], mismatch: Mismatch
) -> Iterator[Decisions]:
    """Attributes that the program compared with sizes before the first of these operators could run: each follows the
    size that it equals. In the other modules as well, that at the same position among the sizes of their operator; and
    in the failing one alone."""
    modules, widths = dict(model.named_modules()), Widths(coupling)
    read = [s for s in mismatch.sources if isinstance(s, FromSize) and s.dim < len(coupling.shapes.get(s.node, ()))]
    extents = [coupling.shapes[s.node][s.dim] for s in sorted(read, key=lambda s: (s.node, s.dim))]
    sizes = [Sizes.at(node, widths).extents for node in nodes]
    places = [i for i, extent in enumerate(sizes[0]) if extent in extents]
    compared = [extents, *([row[i] for i in places if i < len(row)] for row in sizes[1:])]
    for attribute in attributes_given(nodes[:1], mismatch):
        found: list[tuple[Mend, ...]] = []
        for node, row in zip(nodes, compared, strict=True):
            owner = attribute.owner(of(node).module)
            if owner is not None and has(modules.get(owner), attribute.name):
                value = held(modules[owner], attribute.name)
                ways = Sizes(widths, row).followed_by(owner, attribute.name, value, EXACT)
                found.append(ways[0].mends if ways else ())
        if any(found[:1]):
            yield _merged(Decisions(), tuple(mend for mends in found for mend in mends))
            yield _merged(Decisions(), found[0])


def equal_moves(
    model: nn.Module, coupling: Coupling, nodes: Sequence[fx.Node], ratios: Sequence[Fraction]
) -> list[Decisions]:
    """One move for every attribute (by name and class of its module) that equals a size at these operators: those of
    the nearest module first, and those last that would have to stand for several widths."""
    modules, widths = dict(model.named_modules()), Widths(coupling)
    found: dict[tuple[Any, ...], Decisions] = {}
    for node in nodes:
        sizes = Sizes.at(node, widths)
        for distance, owner in enumerate(owners(of(node).module)):
            if owner not in modules:
                continue
            known = implied(modules[owner])
            for name, value in vars(modules[owner]).items():
                if name in known:
                    continue
                for variant, way in enumerate(sizes.followed_by(owner, name, value, ratios)):
                    key = (distance, way.rank, variant, type(modules[owner]), name)
                    found[key] = _merged(found.get(key, Decisions()), way.mends)
    return [found[key] for key in sorted(found, key=lambda k: (len(found[k].ties) > 0, *k[:3]))]


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


def joined(found: Sequence[Decisions]) -> Decisions:
    """All of these; where they let one attribute follow two widths, these are tied."""
    move = Decisions()
    for other in found:
        move = _merged(replace(move, ties=(*move.ties, *other.ties)), other.mends)
    return move


def _reaches(model: nn.Module, coupling: Coupling, nodes: Sequence[fx.Node], attribute: Attribute) -> list[_Reach]:
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


def _merged(move: Decisions, mends: tuple[Mend, ...]) -> Decisions:
    """With further mends; where one attribute stands for the widths of two groups, these are tied."""
    known = {(m.module, m.attribute, m.index): m for m in move.mends}
    ties = list(move.ties)
    for mend in mends:
        other = known.setdefault((mend.module, mend.attribute, mend.index), mend)
        if other != mend and len(other.terms) == len(mend.terms) == 1:
            ties.append(Tie(other.terms[0][0], mend.terms[0][0]))
    return replace(move, ties=tuple(dict.fromkeys(ties)), mends=tuple(known.values()))


def _is_shape(numbers: Sequence[int | None], node: fx.Node) -> bool:
    """Whether these are the sizes of an operator's result, one after the other."""
    spec = of(node).spec
    fits = spec is not None and len(spec.shape) == len(numbers)
    return fits and all(n in (None, -1, size) for n, size in zip(numbers, spec.shape, strict=True))  # type: ignore[union-attr]
