"""Which widths an operator's shapes follow: one it takes in, and perhaps another that it puts out.

All shapes of an operator, arguments and results, are extents over group widths. Extents that are proportional to each
other follow one width. One or two such families are the rule (a norm has one, a convolution two).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from math import gcd
from typing import Any

from torch import fx

from ..types import Coupling, Extent
from .templates import IN, OUT, Size


@dataclass(frozen=True, slots=True)
class Roles:
    """The widths that a layer's shapes follow. `spread`: all follow `inputs`, proportionally."""

    inputs: Extent
    output: Extent | None
    spread: bool = False

    def size(self, extent: Extent, widths: Mapping[str, int]) -> Size:
        if not extent.terms:
            return Size(extent.fixed)
        for axis, width in ((IN, self.inputs), (OUT, self.output)):
            ratio = _ratio(extent, width) if width is not None and width.terms else None
            if ratio is not None and width is not None:
                return Size(extent.fixed, axis, *ratio, base=width.fixed)
        if not self.spread:
            raise AssertionError(f"extent {extent} follows neither width of its layer")
        return Size(0, IN, extent.at(widths), self.inputs.at(widths))


def _ratio(extent: Extent, unit: Extent) -> tuple[int, int] | None:
    """(p, q) with extent's terms = p/q * unit's terms, else None."""
    mine, theirs = dict(extent.terms), dict(unit.terms)
    if mine.keys() != theirs.keys():
        return None
    first = next(iter(mine))
    p, q = mine[first], theirs[first]
    if any(mine[g] * q != theirs[g] * p for g in mine):
        return None
    return p // gcd(p, q), q // gcd(p, q)


def find_roles(
    arguments: list[fx.Node], results: Iterable[fx.Node], coupling: Coupling, op: str, node: fx.Node | None
) -> Roles:
    """Find the one or two widths that vary, and which of them the layer takes in and puts out."""

    def shape(n: fx.Node) -> tuple[Extent, ...]:
        return coupling.shapes[n.name]

    reached = _classes(e for n in arguments for e in shape(n))
    produced = _classes(e for n in results for e in shape(n))
    found = _classes((*reached, *produced))
    fixed = _contraction(op, node, shape) if node is not None else None
    if op == "cat" and len(found) > 1:
        return Roles(next(e for e in produced if e.terms), None, spread=True)
    if len(found) > 2:
        return Roles(_sum(found), None, spread=True)
    consumed = [e for e in found if not any(_ratio(e, p) for p in produced)]
    if len(found) == 2:
        inputs = consumed[0] if consumed else found[0]
        return Roles(inputs, next(e for e in found if e is not inputs))
    if not found:
        return Roles(*fixed) if fixed else Roles(Extent(0), None)
    if fixed and not fixed[0].terms:
        return Roles(fixed[0], found[0])
    if fixed and consumed:
        return Roles(found[0], fixed[1])
    return Roles(found[0], None)


def _classes(extents: Any) -> list[Extent]:
    """Variable extents, one of each family that is proportional; the one with the smallest scales is its unit."""
    units: list[Extent] = []
    for extent in extents:
        if not extent.terms:
            continue
        known = next((i for i, u in enumerate(units) if _ratio(extent, u)), None)
        if known is None:
            units.append(extent)
        elif extent.terms[0][1] < units[known].terms[0][1]:
            units[known] = extent
    return units


def _contraction(
    op: str, node: fx.Node, shape: Callable[[fx.Node], tuple[Extent, ...]]
) -> tuple[Extent, Extent] | None:
    """(input, output) extents of a convolution or matrix product, else None."""
    args: Any = node.args
    if op == "convolution":
        x, weight, groups = shape(args[0]), shape(args[1]), int(args[8])
        if not args[6]:
            return x[1], weight[0]
        return x[1], Extent(weight[1].fixed * groups, tuple((g, s * groups) for g, s in weight[1].terms))
    first = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}.get(op)
    return None if first is None else (shape(args[first])[-1], shape(args[first + 1])[-1])


def _sum(extents: list[Extent]) -> Extent:
    """An extent that grows with every one of `extents`."""
    terms: dict[str, int] = {}
    for extent in extents:
        for group, scale in extent.terms:
            terms[group] = terms.get(group, 0) + scale
    step = reduce(gcd, terms.values())
    return Extent(0, tuple((g, s // step) for g, s in terms.items()))
