"""fisher: channel groups + data -> what each group is worth at every width, by the Fisher information of what goes.

The rows of `gates`, for each group multiplied into E[s s'], and `sets.elimination` over it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..model.preserving import preserved
from ..types import Coupling
from .gates import Gates, Rows
from .sampled import Sampled
from .sets import elimination
from .values import WidthValues


def fisher_values(
    model: nn.Module, coupling: Coupling, data: Iterable[Any], loss: Sampled, batches: int
) -> tuple[dict[str, WidthValues], Rows]:
    """The value of every width of every group that may shrink, in the unit of the loss of a sample.

    Raises:
        SaliencyError: as `Gates.rows`.
    """
    gates = Gates.of(model, coupling, loss)
    with preserved(model):
        found = gates.rows(data, batches)
    gates.clear_masked(found.rows, coupling.prunable)
    values = {}
    for group in coupling.prunable:
        start = gates.starts[group.name]
        own = found.rows[:, start : start + group.size]
        gram = (own.T @ own / len(own)).double().cpu().numpy()
        values[group.name] = WidthValues.of_losses(*elimination(gram))
    return values, found
