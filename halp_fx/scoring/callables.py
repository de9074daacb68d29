"""callables: the caller's own importance, checked, and asked for each group."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..arguments import a_kind, check_called, shown
from ..errors import SaliencyError
from ..model.copying import lent
from ..types import ChannelGroup
from .values import WidthValues

Importance = (
    Literal["auto", "fisher", "batches", "taylor", "magnitude"]
    | Callable[[ChannelGroup], Any]
    | Callable[[ChannelGroup, nn.Module], Any]
)

KINDS = ("auto", "fisher", "batches", "taylor", "magnitude")


def check_importance(importance: Importance | None) -> None:
    """Raises SaliencyError unless `score` can use it."""
    if importance is None or (isinstance(importance, str) and importance in KINDS):
        return
    if isinstance(importance, type):
        name = importance.__name__
        raise SaliencyError(f"importance={name} is a class: pass an instance, {name}(…), that can be called")
    if not callable(importance):
        known = ", ".join(map(repr, KINDS))
        raise SaliencyError(
            f"importance={shown(importance)}: use {known} or a callable from group to scores, or from group and model"
        )
    if isinstance(importance, nn.Module):
        raise SaliencyError(f"importance is {a_kind(importance)}, a network: pass a function from group to scores")
    given, model = ("a group",), "the model"
    if _by_name(importance):
        check_called("importance", importance, SaliencyError, given, {"model": model})
    else:
        more = (model,) if len(_needed(importance)) > 1 else ()
        check_called("importance", importance, SaliencyError, (*given, *more))


def asked(importance: Callable[..., Any], model: nn.Module) -> Callable[[ChannelGroup], Any]:
    """A callable of one argument (group), or of two (group, a copy of the model), as a function of the group. Arguments
    with a default are the callable's own, except one that is called `model`."""
    by_name = _by_name(importance)
    if not by_name and len(_needed(importance)) < 2:
        return importance
    given = lent(model)
    return lambda group: importance(group, model=given) if by_name else importance(group, given)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # Some builtins have none.
        return {}


def _by_name(function: Callable[..., Any]) -> bool:
    """Whether it has an argument that is called `model`."""
    named = _parameters(function).get("model")
    return named is not None and named.kind is not inspect.Parameter.POSITIONAL_ONLY


def _needed(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The arguments that have to be given, by their place."""
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = _parameters(function).values()
    return [p for p in found if p.kind in places and p.default is inspect.Parameter.empty]


def answer_of(ask: Callable[[ChannelGroup], Any], group: ChannelGroup) -> Any:
    """What a callable says of a group. What it raises goes through, with a note."""
    try:
        return ask(group)
    except Exception as error:
        error.add_note(f"raised by importance, given the group {group.name!r}")
        raise


def scores_of(group: ChannelGroup, found: Any) -> np.ndarray:
    """What a callable returned for a group, as float64 scores; of `WidthValues`, what each channel adds in their order.

    Raises:
        SaliencyError: of another shape, not finite, or negative.
    """
    if isinstance(found, WidthValues):
        found = _added(group, found)
    try:
        array = np.asarray(found.detach().cpu() if isinstance(found, torch.Tensor) else found, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SaliencyError(f"importance({group.name!r}) returned {shown(found)}, no scores: {error}") from error
    if found is None:
        raise SaliencyError(f"importance({group.name!r}) returned nothing: it must return {group.size} scores")
    if array.shape != (group.size,):
        raise SaliencyError(
            f"importance({group.name!r}) returned shape {array.shape}, expected ({group.size},): the group as it "
            "stands; after a step it is narrower than in the original network"
        )
    if not np.isfinite(array).all() or (array < 0).any():
        raise SaliencyError(f"importance({group.name!r}) returned NaN, infinite or negative scores")
    return array


def _added(group: ChannelGroup, values: WidthValues) -> np.ndarray:
    """What each channel adds, in the order of the group."""
    order, value = np.asarray(values.order), np.asarray(values.value, dtype=np.float64)
    if value.shape != (group.size + 1,) or not np.array_equal(np.sort(order), np.arange(group.size)):
        raise SaliencyError(
            f"importance({group.name!r}) returned an order of shape {order.shape} and values of shape {value.shape}, "
            f"expected each of {group.size} channels once, and ({group.size + 1},) values"
        )
    scores = np.zeros(group.size)
    scores[order] = np.diff(value)
    return scores
