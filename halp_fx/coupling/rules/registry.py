"""The registry of operator rules: one rule per operator, a second registration is an error."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from ...arguments import shown
from ...internals import OpOverload
from ...tracing.graph import functional, operator
from ..algebra import Algebra, Call, Planes

_Packet = type(torch.ops.aten.relu)
_NAMED = re.compile(r"\w+::[\w.]+")

Rule = Callable[[Call, Algebra], "Planes | list[Planes]"]

_REGISTRY: dict[Any, Rule] = {}
# What `find_rule` found, until another rule is registered.
_FOUND: dict[Any, Rule | None] = {}


def register_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for operators: `torch.ops.namespace.name` packets, single overloads, or names such as
    "torchvision::roi_align" for libraries that may not be loaded.

    The ready-made rules `halp_fx.rules.pointwise`, `spatial`, `reduction`, `contraction` and `shape_only` cover most
    operators that a user would add:

        register_rule(torch.ops.mylib.fast_gelu)(halp_fx.rules.pointwise)

    Raises:
        ValueError: a target has a rule already, or is no operator.
    """
    for target in targets:
        named = isinstance(target, str) and _NAMED.fullmatch(target)
        if not (named or isinstance(target, OpOverload | _Packet | torch.Tag)):
            raise ValueError(
                "register_rule takes operators such as torch.ops.aten.relu, or names such as 'torchvision::roi_align', "
                f"not {shown(target)}"
            )

    def add(rule: Rule) -> Rule:
        for target in targets:
            if target in _REGISTRY:
                raise ValueError(f"{target} has a rule already: {_REGISTRY[target].__qualname__}")
            _REGISTRY[target] = rule
        _FOUND.clear()
        return rule

    return add


def find_rule(target: Any) -> Rule | None:
    """The rule of an operator: its overload's, its packet's, its functional form's, or the elementwise rule if ATen
    tags it so."""
    if target not in _FOUND:
        _FOUND[target] = _searched(target)
    return _FOUND[target]


def _searched(target: Any) -> Rule | None:
    packet = getattr(target, "overloadpacket", None)
    plain = functional(target)
    schema = getattr(target, "_schema", None)
    for key in (target, packet, plain, getattr(schema, "name", None)):
        if key is not None and key in _REGISTRY:
            return _REGISTRY[key]
    return _REGISTRY[torch.Tag.pointwise] if _is_pointwise(target, plain) else None


def _is_pointwise(target: Any, packet: Any) -> bool:
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return True
    if getattr(target, "namespace", "") == "prims":  # Which are not tagged; ATen has them by the same names.
        packet = getattr(torch.ops.aten, operator(target), None)
    if packet is None:
        return False
    return any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads())
