"""Frozen values <-> what JSON can hold, by the annotations of their fields."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from .plans import Plan

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Dictionaries, lists, strings and numbers that say the same. A float that is not finite, which JSON does not know,
    becomes "nan", "inf" or "-inf".

    Raises:
        TypeError: something in it is none of what `from_plain` reads.
    """
    if isinstance(value, Plan):
        return json.loads(value.to_json())
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def from_plain(kind: type[T], data: Any) -> T:
    """Inverse of `to_plain`. Fields that `kind` does not have are left out, and fields that are not there have their
    defaults: an older or newer version may have written it.

    Raises:
        ValueError: it is not what `to_plain` makes of such a value.
        PlanError: a plan in it is none.
    """
    made: T = _read(kind, data)
    return made


def _read(kind: Any, data: Any) -> Any:
    if kind is Any:
        return data
    if kind is Plan:
        return Plan.from_json(json.dumps(data))
    if kind is float:
        return _number(data)
    if kind in (str, int, bool, type(None)):
        if type(data) is not kind:
            raise _not(data, f"a {kind.__name__}")
        return data
    if is_dataclass(kind):
        return _record(kind, data)
    outer, inner = get_origin(kind), get_args(kind)
    if outer in (Union, UnionType):
        return _either(inner, data)
    if outer is tuple:
        if not isinstance(data, list) or not (Ellipsis in inner or len(inner) == len(data)):
            raise _not(data, "a list")
        kinds = inner[:1] * len(data) if Ellipsis in inner else inner
        return tuple(_read(k, v) for k, v in zip(kinds, data, strict=True))
    if outer in (Mapping, dict):
        if not isinstance(data, dict):
            raise _not(data, "an object")
        return {k: _read(inner[1], v) for k, v in data.items()}
    raise TypeError(f"fields of type {kind} are not read from JSON")


def _not(data: Any, what: str) -> ValueError:
    return ValueError(f"{data!r:.80} where {what} should be")


def _number(data: Any) -> float:
    if data in ("nan", "inf", "-inf") or (isinstance(data, int | float) and not isinstance(data, bool)):
        try:
            return float(data)
        except OverflowError:
            pass
    raise _not(data, "a number")


def _either(kinds: tuple[Any, ...], data: Any) -> Any:
    for kind in kinds:
        try:
            return _read(kind, data)
        except ValueError as error:
            why = error
    raise why


def _record(kind: Any, data: Any) -> Any:
    if not isinstance(data, dict):
        raise _not(data, f"the fields of a {kind.__name__}")
    try:
        return kind(**{name: _read(hint, data[name]) for name, hint in _hints(kind).items() if name in data})
    except TypeError as error:
        raise ValueError(f"a {kind.__name__} lacks fields: {error}") from error


@cache
def _hints(kind: type) -> dict[str, Any]:
    known = get_type_hints(kind)
    return {f.name: known[f.name] for f in fields(kind)}
