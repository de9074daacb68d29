"""The modules and tensors of a model, by name: parameters, buffers, and constants among its attributes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Members:
    """A model's modules, its parameters and buffers, and constants among its attributes, each once, by their first
    qualified name.

    Found in one walk: `nn.Module` walks through the whole model for each kind, and recording asks for all of them
    several times.
    """

    modules: dict[str, nn.Module]
    parameters: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    plain: dict[str, torch.Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> Members:
        """Of all modules but scripted ones and what is in them: those run by themselves (`opaque`)."""
        modules = dict(model.named_modules())
        closed = [name for name, module in modules.items() if isinstance(module, torch.jit.ScriptModule)]
        if closed:
            inside = tuple(f"{name}." for name in closed)
            modules = {n: m for n, m in modules.items() if n not in closed and not n.startswith(inside)}
        parameters, buffers = (in_table(modules, table) for table in ("_parameters", "_buffers"))
        return cls(modules, parameters, buffers, _plain(modules, {**parameters, **buffers}))

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters, then buffers, then constants."""
        return {**self.registered, **self.plain}

    @property
    def registered(self) -> dict[str, torch.Tensor]:
        """Parameters, then buffers."""
        return {**self.parameters, **self.buffers}


def in_table(modules: dict[str, nn.Module], table: str) -> dict[str, torch.Tensor]:
    """The tensors in one table of modules, each once, by their first name: "_parameters", or "_buffers"."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for prefix, module in modules.items():
        for name, tensor in getattr(module, table).items():
            if tensor is not None and id(tensor) not in found:
                found[id(tensor)] = (f"{prefix}.{name}" if prefix else name, tensor)
    return dict(found.values())


def _plain(modules: dict[str, nn.Module], known: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Constant tensors of numbers that are plain attributes (`self.identity = torch.eye(width)`): like buffers."""
    seen = {id(t) for t in known.values()}
    found: dict[str, torch.Tensor] = {}
    for prefix, module in modules.items():
        for name, value in vars(module).items():
            if type(value) is torch.Tensor and id(value) not in seen and _constant(value):
                seen.add(id(value))
                found[f"{prefix}.{name}" if prefix else name] = value
    return found


def _constant(value: torch.Tensor) -> bool:
    return (
        value.is_floating_point()
        and value.layout is torch.strided
        and not (value.requires_grad or value.is_inference())
    )


def named_tensors(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    """Parameters, buffers and constants among the attributes, each once, by their first qualified name."""
    return Members.of(model).tensors.items()


def registered(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of these."""
    return Members.of(model).registered
