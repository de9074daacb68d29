"""Attributes that a trial found to repeat a width, as functions of the widths of groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from ..types import AttributeEdit, ChannelGroup, Coupling, Decisions, Extent, Mend


def with_mends(coupling: Coupling, decisions: Decisions) -> Coupling:
    """The same groups, with the attributes mended that `decisions` names."""
    found = (resolve(mend, coupling.groups) for mend in decisions.mends)
    return replace(coupling, decisions=decisions, mended=tuple(edit for edit in found if edit is not None))


def resolve(mend: Mend, groups: Sequence[ChannelGroup]) -> AttributeEdit | None:
    """A mended attribute as a function of widths, None if it would not always be a whole number."""
    terms, factors = [], dict(mend.terms)
    # An axis that was pruned down to a single slot has no label, but it is as long as that.
    left = factors.keys() - {m.axis for group in groups for m in group.members if m.axis in factors}
    fixed = Fraction(mend.fixed) + sum(factors[axis] for axis in left)
    for group in groups:
        each = sum(factors[m.axis] * m.slots.shape[1] for m in group.members if m.axis in factors)
        if group.frozen is not None:
            fixed += each * group.size
        elif each:
            terms.append((group.name, Fraction(each)))
    if any(number.denominator != 1 for number in (fixed, *(each for _, each in terms))):
        return None
    extent = Extent(int(fixed), tuple((name, int(each)) for name, each in terms))
    return AttributeEdit(mend.module, mend.attribute, extent, 1, mend.index)
