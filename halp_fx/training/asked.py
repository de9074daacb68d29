"""asked: the arguments of a Pruner, checked, and in words that two runs can compare."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from ..arguments import MOST_STEPS, check_switches, whole
from ..errors import BudgetError, TrainingError
from ..internals import tree_leaves
from ..model.inputs import Examples
from ..scoring.callables import Importance, check_importance
from ..scoring.losses import Loss, LossFn, check_loss

logger = logging.getLogger("halp_fx")

Mode = Literal["shrink", "mask"]


def check_asked(asked: Mapping[str, Any], optimizers: bool) -> None:
    """See that arguments go together.

    Args:
        asked: by name.
        optimizers: whether there are any.

    Raises:
        BudgetError: steps or interval are out of range.
        TrainingError: a mode that is none, or something that it cannot do.
    """
    whole("steps", asked["steps"], BudgetError, MOST_STEPS)
    whole("interval", asked["interval"], BudgetError)
    check_switches(BudgetError, regrow=asked["regrow"])
    mode = asked["mode"]
    if mode not in get_args(Mode):
        raise TrainingError(f"mode={mode!r} is not one of {', '.join(get_args(Mode))}")
    if mode == "shrink" and asked["regrow"]:
        raise TrainingError("regrow=True needs mode='mask': what is cut cannot return")
    if mode == "mask" and not optimizers:
        raise TrainingError("mode='mask' needs the optimizer: masks are held around its steps")
    if mode == "mask" and asked["branches"]:
        raise TrainingError(
            "mode='mask' holds channels at zero, not branches: leave branches and data out, or use mode='shrink'"
        )
    if asked["solver"] == "mdp":
        raise TrainingError("solver='mdp' takes one step with scores of its own: use prune, then train what it returns")


def importance_of(importance: Importance | None, solver: str) -> Importance:
    """What channels are valued by, where the caller left it open, too.

    Raises:
        SaliencyError: it is none.
    """
    check_importance(importance)
    if importance is None or importance == "auto":
        return "taylor" if solver == "halp" else "fisher"
    return importance


def check_data_asked(
    data: object, branches: object, importance: object, loss_fn: LossFn | None, loss: Loss | None
) -> None:
    """See that data and a loss go with what was asked for; say what is risked without.

    Raises:
        SaliencyError: a loss without data, two of them, or one that is none.
        TrainingError: there is data that nothing would be made of.
    """
    check_loss(data, loss_fn, loss)
    if data is None:
        if branches:
            logger.warning(
                "branches=True without data: a branch is valued by the gradients of what it adds, which says little (a "
                "small transformer lost all of its attention so). Pass data=batches, and what is lost is measured"
            )
        return
    if not branches:
        raise TrainingError(
            "data is what branches are valued by, and none may go: leave branches=False out, or data (channels are "
            "valued by the gradients of the training)"
        )
    if importance != "fisher":
        raise TrainingError(
            f"data tells what is lost without a branch in the unit of importance='fisher', not of {importance!r}: "
            "leave one of them out"
        )


def shapes_of(examples: Examples) -> list[tuple[int, ...]]:
    """Of all tensors in example inputs."""
    return [tuple(leaf.shape) for leaf in tree_leaves(list(examples)) if isinstance(leaf, torch.Tensor)]


def in_words(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as they are compared: plain values as they are, others by what they are called."""
    return {name: _in_words(value) for name, value in asked.items()}


def _in_words(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int | float | tuple | list | dict):
        return value
    return str(value) if isinstance(value, Path) else getattr(value, "__name__", type(value).__name__)
