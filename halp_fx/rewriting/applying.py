"""rewrite: plan -> smaller network, checked.

The model is deep-copied with smaller tensors in place of those that shrink, so the class, the forward, `state_dict`
names, hooks, modes, `requires_grad`, tied weights, parametrisations, memory format and dtype stay as they are. Modules
of dropped branches are replaced (`dropping`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..coupling.branches import without
from ..coupling.residual import find_branches
from ..errors import RewriteError
from ..model.naming import by_group
from ..types import Coupling, Plan
from .descent import ancestry, descend
from .dropping import drop
from .literals import lowered
from .slicing import shrink
from .verification import verify


def rewrite(
    model: nn.Module,
    plan: Plan | Mapping[str, Any],
    example_inputs: Any = None,
    *,
    coupling: Coupling,
    check: bool = True,
) -> nn.Module:
    """As `halp_fx.rewrite`, for a coupling at hand.

    Raises:
        RewriteError: what `verify` found.
    """
    plan = by_group(plan, coupling)
    gone = find_branches(coupling).named(plan.dropped) if plan.dropped else ()
    small = shrink(model, plan, coupling)
    drop(small, gone)
    lowered(small)
    found = verify(small, plan, without(coupling, gone), example_inputs, defined=True) if check else None
    if found is not None:
        raise RewriteError(found.message, found.groups, found.place, found.node) from found.cause
    vars(small).pop("halp", None)  # The report of the network that was copied.
    descend(small, ancestry(model, example_inputs), plan)
    return small
