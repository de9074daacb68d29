"""The tensors of a model under all their names, and those of what it puts out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import nn

from ..internals import tree_leaves
from ..types import Signature


def every_tensor(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Every name of every parameter and buffer, with the tensor, and whether it is in the `state_dict`."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        passing = getattr(module, "_non_persistent_buffers_set", ())
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    yield f"{prefix}.{name}" if prefix else name, tensor, name not in passing


def overwrite(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Give some tensors of a model, by any of their names, the numbers of others of the same shapes."""
    own = {name: tensor for name, tensor, _ in every_tensor(model)}
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def parameter_count(model: nn.Module) -> int:
    """Numbers in all parameters, each tensor once."""
    return sum(p.numel() for p in model.parameters())


PROTOBUF = (1 << 31) - (1 << 20)
"""Bytes of weights that an ONNX file holds by itself: protobuf ends at 2 GiB."""


def weight_bytes(model: nn.Module) -> int:
    """Of all parameters and buffers, each tensor once."""
    return sum({id(t): t.numel() * t.element_size() for _, t, _ in every_tensor(model)}.values())


def first_names(model: nn.Module) -> dict[str, str]:
    """For every further name of a tensor that has several, the first one."""
    first: dict[int, tuple[str, torch.Tensor]] = {}  # With the tensor: scripted modules make one at every look.
    names = ((name, first.setdefault(id(tensor), (name, tensor))[0]) for name, tensor, _ in every_tensor(model))
    return {name: one for name, one in names if name != one}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def signature(model: nn.Module) -> Signature:
    """Names, shapes and dtypes of what is in the `state_dict` of a model."""
    kept = {name: tensor for name, tensor, stays in every_tensor(model) if stays}
    return Signature(
        {name: tuple(tensor.shape) for name, tensor in kept.items()},
        {name: dtype_name(tensor.dtype) for name, tensor in kept.items()},
        {name: first for name, first in first_names(model).items() if name in kept and first in kept},
    )


def state_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a network's state dict. What else it keeps there (`get_extra_state`) has none."""
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}


def tensors_in(output: Any) -> list[torch.Tensor]:
    """The tensors in what a network puts out: in containers, in an object's attributes, in dataclasses in these."""
    return list(_inside(output, set(), outermost=True))


def _inside(value: Any, seen: set[int], outermost: bool = False) -> Iterator[torch.Tensor]:
    for leaf in tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        # Not any object in an object: a cache of keys and values, say, is the network's own affair.
        elif (outermost or is_dataclass(leaf)) and not isinstance(leaf, nn.Module | type) and id(leaf) not in seen:
            seen.add(id(leaf))
            yield from _inside(_attributes(leaf), seen)


def _attributes(value: Any) -> dict[str, Any]:
    """Of an object, also of one with `__slots__`."""
    slots = (slot for kind in type(value).__mro__ for slot in vars(kind).get("__slots__", ()))
    return getattr(value, "__dict__", {}) | {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)}
