"""Values that a program takes into Python: what they come from must stay as it is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from ..tracing.graph import ancestors, sized_by_values
from ..types import Traced
from .algebra import Algebra, Planes


def pin_values_read(traced: Traced, planes: Mapping[fx.Node, Planes], algebra: Algebra) -> None:
    """Pin all that values come from which the program takes into Python: with fewer channels they would be others, and
    what it does with them is not seen. How many boxes a detector found is another matter: what is made of those is not
    compared, and may come out otherwise."""
    if not traced.reads:
        return
    nodes = {node.name: node for node in traced.graph.nodes}
    loose = sized_by_values(traced.graph)
    free: list[str] = []
    for read in traced.reads:
        node = nodes[read.node]
        before = ancestors([node])
        if any(n in loose for n in before):
            continue
        reason = f"values computed from it are read into Python, by {read.where}"
        for source in before:
            for plane in planes.get(source, ()):
                algebra.pin(plane, reason)
        if not read.straight and not any(planes.get(source) for source in before):
            free.append(read.where)
    if free:
        algebra.notes.setdefault(
            f"the forward decides by values of its inputs ({free[0]}): what the example inputs do not "
            "reach was not seen; pass a list of examples that take every branch"
        )
