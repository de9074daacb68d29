"""Standard deviations over what is left: of a single element, with the usual correction, there is none."""

from __future__ import annotations

from math import prod

from torch import fx

from ..tracing.graph import of, op

_SPREADS = ("std", "var", "std_mean", "var_mean")


def freedom(node: fx.Node) -> int | None:
    """How many elements a deviation or variance is taken over, less its correction: none at all, and it is NaN. None
    where the operator takes none."""
    if op(node) not in _SPREADS:
        return None
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    shape, dims = of(given["self"]).one.shape, given.get("dim")
    along = [dims] if isinstance(dims, int) else list(dims or range(len(shape)))
    correction = given.get("correction") if "correction" in names else int(bool(given.get("unbiased", True)))
    return prod(shape[d] for d in along) - (1 if correction is None else int(correction))
