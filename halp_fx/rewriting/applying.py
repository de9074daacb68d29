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
from ..model.naming import by_group
from ..trials.trials import channel_groups
from ..types import Coupling, Plan
from .dropping import drop
from .slicing import shrink
from .verification import verify


def rewrite(
    model: nn.Module,
    plan: Plan | Mapping[str, Any],
    example_inputs: Any = None,
    *,
    coupling: Coupling | None = None,
    check: bool = True,
) -> nn.Module:
    """A copy of `model` without the channels and branches that `plan` drops.

    Args:
        model: the network the plan was made for; it is not changed.
        plan: kept channels per group, and branches that go; groups not named keep all. A group may be named by any
            layer that produces it, with the output channels that this layer keeps.
        example_inputs: as for `trace`.
        coupling: of this model, if at hand; otherwise found afresh.
        check: run the copy once (on the meta device where it can) and compare every operator's shape and coupling
            with what the plan asks for.

    Raises:
        PlanError: the plan does not fit the model.
        RewriteError: the copy does not do what the plan asks for.
    """
    coupling = coupling or channel_groups(model, example_inputs)
    plan = by_group(plan, coupling)
    gone = find_branches(coupling).named(plan.dropped) if plan.dropped else ()
    small = shrink(model, plan, coupling)
    drop(small, gone)
    coupling = without(coupling, gone)
    if check:
        verify(small, plan, coupling, example_inputs)
    return small
