"""following: an attribute and the sizes at an operator -> the ways in which the one may follow the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import product
from numbers import Integral
from typing import Any

from torch import fx

from ..coupling.propagation import PADDING
from ..coupling.sizes import FACTORIES, Width, axes_by_groups, groups_of, shares_of, widths_by_axes
from ..model.holding import row_of
from ..tracing.graph import is_view, of, op, views_of
from ..types import Axis, Coupling, Extent, Mend

EXACT = (Fraction(1),)
"""An attribute that equals a size follows it, most often."""

MULTIPLES = (Fraction(2), Fraction(1, 2), Fraction(3), Fraction(1, 3), Fraction(4), Fraction(1, 4))
"""And sometimes one that is a simple multiple of a size does."""


@dataclass(frozen=True, slots=True)
class Following:
    """A way in which an attribute may follow sizes.

    Attributes:
        mends: one for a number; for a list, one for each element that follows a size.
        exact: it equals the sizes, and is no multiple of them.
        misplaced: an element of a list follows another size than the one at its own position.
        position: of the size that a number follows among those of the operator (`Sizes`); 0 for a list.
    """

    mends: tuple[Mend, ...]
    exact: bool
    misplaced: bool = False
    position: int = 0

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """Lower is likelier."""
        return not self.exact, self.misplaced, self.position


@dataclass(frozen=True)
class Widths:
    """The widths of a coupling's groups, found once for all operators that are looked at."""

    coupling: Coupling

    @cached_property
    def now(self) -> Mapping[str, int]:
        """As they are."""
        return self.coupling.widths()

    @cached_property
    def by_axes(self) -> Mapping[str, Width]:
        """By the lengths of axes."""
        return widths_by_axes(self.coupling)

    @cached_property
    def together(self) -> Mapping[Any, Width]:
        """Of groups that lie on axes together: the shares of each in the axis, and its length by what counts once."""
        return axes_by_groups(self.coupling)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that an operator deals with, the likeliest to be repeated by an attribute first."""

    widths: Widths
    extents: Sequence[Extent]

    @classmethod
    def at(cls, node: fx.Node, widths: Widths) -> Sizes:
        """Sizes of its result (or of its pieces), of views of it, and of what leads to it."""
        coupling = widths.coupling
        pieces = _pieces(node, coupling)
        whole = coupling.shapes[source_of(node).name] if pieces else ()
        # Statistics beside a result are no pieces of what they are of.
        if pieces and all(len(piece) == len(whole) for piece in pieces if piece):
            dims = [d for d in range(len(whole)) if any(p and p[d] != whole[d] for p in pieces)]
            found = [piece[d] if piece else Extent(0) for d in dims[:1] for piece in pieces]
        else:
            found = list(coupling.shapes[node.name])
        if op(node) in PADDING:
            found = [*_padded(node, coupling), *found]
        found += [e for n in (views_of(node) if is_view(node) else ()) for e in coupling.shapes[n.name]]
        above = node.all_input_nodes
        while above:
            found += [e for n in above for e in coupling.shapes[n.name]]
            above = [source for n in above if is_view(n) for source in n.all_input_nodes]
        if op(node) in FACTORIES:
            # What a tensor is made for: zeros fill something up to a width (`planes - x.shape[1]` of them).
            readers = [user for n in (node, *views_of(node)) for user in n.users]
            found += [e for user in readers for e in coupling.shapes.get(user.name, ())]
        # Heads, for one, where batch and heads are one dimension.
        found += [Extent(0, ((name, 1),)) for name in groups_of(node, coupling)]
        return cls(widths, found)

    def followed_by(self, owner: str, name: str, value: Any, ratios: Sequence[Fraction]) -> list[Following]:
        """The ways in which an attribute of a module may follow these sizes times one of the ratios: for a number, one
        for every size; for a list, with each element at its own position where that fits, and wherever it fits."""
        exact, everywhere = ratios == EXACT, range(len(self.extents))
        if isinstance(value, Integral):
            alone = self._matching(owner, name, None, value, everywhere, ratios)
            return [Following((mend,), exact, position=position) for mend, position in alone.items()]
        row = row_of(value)
        if row is None:
            return []
        anywhere: list[Mend] = []
        placed: list[Mend] = []
        for i, element in enumerate(row):
            own = self._matching(owner, name, i, element, everywhere[i : i + 1], ratios)
            placed += list(own)[:1]
            anywhere += list(own or self._matching(owner, name, i, element, everywhere, ratios))[:1]
        found = [Following(tuple(anywhere), exact, misplaced=anywhere != placed)] if anywhere else []
        return found + ([Following(tuple(placed), exact)] if placed and placed != anywhere else [])

    def _matching(
        self,
        owner: str,
        name: str,
        index: int | None,
        number: Any,
        positions: Sequence[int],
        ratios: Sequence[Fraction],
    ) -> dict[Mend, int]:
        """New mends by which a number follows sizes at these positions; each with the first that it follows."""
        found: dict[Mend, int] = {}
        if not isinstance(number, Integral) or number is True or number <= 1:
            return found
        for position, ratio in product(positions, ratios):
            extent = self.extents[position]
            may_shrink = any(self.widths.now[group] > 1 for group, _ in extent.terms)
            if may_shrink and extent.at(self.widths.now) * ratio == number:
                mend = _mend(owner, name, index, extent, ratio, self.widths)
                if mend is not None and mend not in self.widths.coupling.decisions.mends:
                    found.setdefault(mend, position)
        return found


def _pieces(node: fx.Node, coupling: Coupling) -> list[tuple[Extent, ...]]:
    """The shapes of the pieces that an operator returns, each at its position; () for one that nothing reads.

    The graph has them in the order in which they are read first.
    """
    pieces = node.users if of(node).spec is None else ()
    read = {int(piece.args[1]): coupling.shapes[piece.name] for piece in pieces}  # type: ignore[arg-type]
    return [read.get(i, ()) for i in range(max(read, default=-1) + 1)]


def _padded(node: fx.Node, coupling: Coupling) -> list[Extent]:
    """How much each number of a padding adds: as many at both ends where both have some (`planes // 4` of them)."""
    before, after = coupling.shapes[source_of(node).name], coupling.shapes[node.name]
    pad: Any = node.args[1]
    rows = []
    for i, sides in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        old, new = before[-1 - i], after[-1 - i]
        scales = dict(new.terms)
        for name, scale in old.terms:
            scales[name] = scales.get(name, 0) - scale
        ends = sum(side != 0 for side in sides) or 1
        terms = tuple((name, scale // ends) for name, scale in scales.items() if scale)
        rows += [Extent((new.fixed - old.fixed) // ends, terms) if side else Extent(0) for side in sides]
    return rows


def source_of(node: fx.Node) -> fx.Node:
    """What a view is of."""
    return node.all_input_nodes[0]


def owners(module: str) -> Iterator[str]:
    """The module's name and those of the modules around it."""
    while module:
        yield module
        module = module.rpartition(".")[0]
    yield ""


def _mend(owner: str, name: str, index: int | None, extent: Extent, ratio: Fraction, widths: Widths) -> Mend | None:
    """The attribute as `extent * ratio`, in slots of axes; None if no axes tell how long that is."""
    fixed, terms = extent.fixed * ratio, dict[Axis, Fraction]()
    parts = [(widths.by_axes.get(group), Fraction(scale)) for group, scale in extent.terms]
    if any(width is None for width, _ in parts):
        parts = [(widths.together.get(shares_of(extent.terms)), Fraction(sum(n for _, n in extent.terms)))]
    for width, scale in parts:
        if width is None:
            return None
        fixed += width[0] * scale * ratio
        for axis, each in width[1].items():
            terms[axis] = terms.get(axis, Fraction(0)) + each * scale * ratio
    found = tuple((axis, factor) for axis, factor in terms.items() if factor)
    return Mend(owner, name, index, int(fixed), found) if fixed.denominator == 1 else None
