"""asked: the arguments of a Pruner, checked, and in words that two runs can compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..arguments import MOST_STEPS, check_switches, whole
from ..errors import BudgetError, TrainingError
from ..scoring.callables import Importance, check_importance

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
        raise TrainingError("mode='mask' holds channels at zero, not branches: use mode='shrink' with branches=True")
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


def check_data_asked(data: object, branches: bool, importance: object) -> None:
    """Raises TrainingError where there is data that nothing would be made of."""
    if data is None:
        return
    if not branches:
        raise TrainingError(
            "data is what branches are valued by, and none may go: pass branches=True, or leave data out (channels "
            "are valued by the gradients of the training)"
        )
    if importance != "fisher":
        raise TrainingError(
            f"data tells what is lost without a branch in the unit of importance='fisher', not of {importance!r}: "
            "leave one of them out"
        )


def in_words(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as they are compared: plain values as they are, others by what they are called."""
    return {name: _in_words(value) for name, value in asked.items()}


def _in_words(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int | float | tuple | list | dict):
        return value
    return str(value) if isinstance(value, Path) else getattr(value, "__name__", type(value).__name__)
