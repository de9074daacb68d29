"""The scores a channel can have, as data: what is summed per element, and what is done to the sum.

    score(channel) = final( sum over every element of the channel of element(w, g) )

The first-order Taylor forms are from Molchanov et al., arXiv 1906.10771 (eq. 8 and section 3.1); "taylor" is
the form of HALP (arXiv 2110.10811, section 3.2): the layers that a channel spans are summed before the
absolute value.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ..errors import SaliencyError


class Element(IntEnum):
    """What one element contributes; the kernel is compiled for one of these."""

    PRODUCT = 0
    ABS_PRODUCT = 1
    SQUARED_PRODUCT = 2
    ABS = 3
    SQUARE = 4


class Final(IntEnum):
    """What happens to a channel's sum, once, after every element is in."""

    IDENTITY = 0
    ABS = 1
    SQUARE = 2
    SQRT = 3


@dataclass(frozen=True, slots=True)
class Variant:
    """One kind of score.

    Attributes:
        name: the key in `VARIANTS`.
        element: contribution of one element.
        final: function applied to the sum.
        formula: the score in words, for messages and docs.
    """

    name: str
    element: Element
    final: Final
    formula: str

    @property
    def needs_grad(self) -> bool:
        return self.element <= Element.SQUARED_PRODUCT


VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        Variant("taylor", Element.PRODUCT, Final.ABS, "|sum w*g|"),
        Variant("taylor_signed", Element.PRODUCT, Final.IDENTITY, "sum w*g"),
        Variant("taylor_abs", Element.ABS_PRODUCT, Final.IDENTITY, "sum |w*g|"),
        Variant("taylor_squared", Element.SQUARED_PRODUCT, Final.IDENTITY, "sum (w*g)^2"),
        Variant("taylor_sum_squared", Element.PRODUCT, Final.SQUARE, "(sum w*g)^2"),
        Variant("l1", Element.ABS, Final.IDENTITY, "sum |w|"),
        Variant("l2", Element.SQUARE, Final.SQRT, "sqrt(sum w^2)"),
    )
}


def resolve(variant: str | Variant) -> Variant:
    """The variant of that name.

    Raises:
        SaliencyError: there is none.
    """
    if isinstance(variant, Variant):
        return variant
    if variant not in VARIANTS:
        known = ", ".join(f"{v.name!r} = {v.formula}" for v in VARIANTS.values())
        raise SaliencyError(f"no saliency variant {variant!r}; there are {known}")
    return VARIANTS[variant]
