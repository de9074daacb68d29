"""Values that a forward computes from constants alone: index tables, grids, masks of a fixed size.

An index into channels can be followed only if it is known. Its value does not depend on the input or the parameters
if everything it was computed from does not. Each node's record has

* `value`: what a small tensor held in this forward, and
* `fixed`: True if that does not depend on the input or on parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .graph import of, op

# Larger tensors keep no value.
_MAX_KEPT_VALUE = 1 << 20

_INDEXING = frozenset({"index", "index_select", "gather", "take", "take_along_dim", "repeat_interleave"})
_ARBITRARY = frozenset({"empty", "empty_strided", "new_empty", "new_empty_strided", "empty_like"})
_FILLS = {"new_zeros": 0, "zeros_like": 0, "new_ones": 1, "ones_like": 1}


class Constants:
    """Follows values through a recording, on meta tensors by computing them on the side."""

    def __init__(self, on_meta: bool) -> None:
        self.on_meta = on_meta
        # Whether the program took values out of tensors: what it makes from now on may hold them.
        self.values_read = False

    def seen(self, node: fx.Node, original: torch.Tensor, plain: bool = False) -> None:
        """An input, parameter or buffer: only whole numbers are taken for constants (index tables). Or a `plain`
        attribute: that is one."""
        if not original.is_meta and (plain or not (original.is_floating_point() or original.is_complex())):
            _keep(node, original)

    def given(self, node: fx.Node, original: torch.Tensor) -> None:
        """A tensor from outside the forward, or made by it from numbers."""
        if not original.is_meta and not self.values_read:
            _keep(node, original)

    def follow(self, node: fx.Node, result: Any) -> None:
        """Note the value of an operator's result, if it is one small tensor."""
        if not isinstance(result, torch.Tensor) or result.numel() > _MAX_KEPT_VALUE:
            return
        fixed = _computed_from_constants(node)
        if not self.on_meta or not result.is_meta:
            if fixed:
                _keep(node, result)
            elif not result.is_floating_point() and not result.is_complex():
                # A layer that is timed should meet the indices it really gets.
                of(node).value = result.detach().clone()
        elif fixed:
            value = _computed(node, result)
            if value is not None:
                _keep(node, value)

    def lacks(self, node: fx.Node) -> str:
        """The operator's name if it picks by a value that a real forward would know and this one does not."""
        if not self.on_meta or op(node) not in _INDEXING:
            return ""
        unknown = (n for n in node.all_input_nodes[1:] if not of(n).fixed)
        return str(node.target) if any(True for _ in unknown) else ""


def _keep(node: fx.Node, value: torch.Tensor) -> None:
    if value.numel() <= _MAX_KEPT_VALUE and value.layout == torch.strided:
        record = of(node)
        record.value, record.fixed = value.detach().clone(), True  # It may be written to later.


def _computed_from_constants(node: fx.Node) -> bool:
    name = op(node)
    if name in _FILLS:
        return True
    if name in _ARBITRARY or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return False
    return all(of(n).fixed for n in node.all_input_nodes)


def _computed(node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    """The operator's value, from those of its arguments."""
    name = op(node)
    if name in _FILLS:
        return torch.full(result.shape, _FILLS[name], dtype=result.dtype, device="cpu")
    args, kwargs = fx.node.map_aggregate((node.args, dict(node.kwargs)), _value)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    try:
        value = node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, NotImplementedError):
        return None
    return value if isinstance(value, torch.Tensor) and not value.is_meta else None


def _value(argument: Any) -> Any:
    # A copy: the operator may write to it.
    return of(argument).known.to("cpu", copy=True) if isinstance(argument, fx.Node) else argument


def says_finite(node: fx.Node) -> bool | None:
    """What the answer is if all numbers are finite, where a program asks just that: `torch.isfinite(x).all()`; None
    where it asks something else."""
    name = op(node)
    if name in ("all", "any", "alias", "detach", "_to_copy", "clone"):
        return says_finite(node.all_input_nodes[0])
    if name in ("logical_not", "bitwise_not"):
        answer = says_finite(node.all_input_nodes[0])
        return None if answer is None else not answer
    return {"isfinite": True, "isinf": False, "isnan": False}.get(of(node).function)
