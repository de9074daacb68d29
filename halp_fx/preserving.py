"""Contexts for running a model's forward without leaving a trace on it."""

from __future__ import annotations

import gc
import random
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# Tables of `nn.Module` itself: a forward does not use them as caches, and buffers are looked after by value.
INTERNAL = frozenset(vars(nn.Module()))
_ORDERED = (list, deque)
_TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


@dataclass(frozen=True, slots=True)
class Members:
    """A model's modules, and its parameters and buffers, each once, by their first qualified name.

    Found in one walk: `nn.Module` walks through the whole model for each kind, and recording asks for all of them
    several times.
    """

    modules: dict[str, nn.Module]
    parameters: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> Members:
        modules = dict(model.named_modules())
        return cls(modules, *(_members(modules, table) for table in ("_parameters", "_buffers")))

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters, then buffers."""
        return {**self.parameters, **self.buffers}


def _members(modules: dict[str, nn.Module], table: str) -> dict[str, torch.Tensor]:
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for prefix, module in modules.items():
        for name, tensor in getattr(module, table).items():
            if tensor is not None and id(tensor) not in found:
                found[id(tensor)] = (f"{prefix}.{name}" if prefix else name, tensor)
    return dict(found.values())


def named_tensors(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    """Parameters, then buffers, each once, by their first qualified name."""
    return Members.of(model).tensors.items()


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection: thousands of small objects are made at once, and every collection that they set off
    would go through all that PyTorch has loaded."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def preserved(model: nn.Module, members: Members | None = None) -> Iterator[None]:
    """Give back each module's attributes (modes, caches), changed buffers, and the random states at the end."""
    members = members or Members.of(model)
    attributes = [(module, dict(vars(module))) for module in members.modules.values()]
    own = [value for _, found in attributes for name, value in found.items() if name not in INTERNAL]
    tables: list[Any] = [found.get(name) for _, found in attributes for name in _TABLES]
    containers = [(c, dict(c) if isinstance(c, dict) else list(c)) for c in (*tables, *_containers(own))]
    tensors = (*_members(members.modules, "_buffers").values(), *(v for v in own if isinstance(v, torch.Tensor)))
    values = [(tensor, tensor.detach().clone()) for tensor in tensors if not tensor.is_meta]
    devices = sorted({t.device.index or 0 for t in members.tensors.values() if t.device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        try:
            yield
        finally:
            for module, found in attributes:
                # What a forward caches on its module would be wrong later: a trial run works on meta tensors.
                for name in vars(module).keys() - found.keys():
                    del vars(module)[name]
                vars(module).update(found)
            for container, items in containers:
                container.clear()
                (container.extend if isinstance(container, _ORDERED) else container.update)(items)
            random.setstate(python)
            np.random.set_state(numpy)
            with torch.no_grad():
                # Version counters would not tell: below autograd, a BatchNorm updates its statistics unnoticed.
                for tensor, kept in values:
                    if not torch.equal(tensor, kept):
                        tensor.copy_(kept)


def as_modes_of(small: nn.Module, model: nn.Module) -> None:
    """Give each module of a copy the mode of the original's of the same name, or of the module around it."""
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in small.named_modules():
        known = name
        while known not in modes:
            known = known.rpartition(".")[0]
        module.training = modes[known]


def _containers(values: Iterable[Any]) -> Iterator[Any]:
    """Dictionaries, lists and sets among the values, and in them."""
    for value in values:
        if isinstance(value, dict | list | set | deque):
            yield value
            yield from _containers(value.values() if isinstance(value, dict) else value)


@contextmanager
def decomposed() -> Iterator[None]:
    """Attention as matrix products and softmax, for which there are rules, instead of fused operators."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def hollow(model: nn.Module, floating: bool = False, members: Members | None = None) -> Iterator[dict[int, Any]]:
    """The model with meta tensors for its parameters and buffers (or the floating ones), while the context lasts.

    Yields them by the ids of the tensors that they stand for.
    """
    members = members or Members.of(model)
    tables: list[dict[str, Any]] = [t for m in members.modules.values() for t in (m._parameters, m._buffers) if t]
    originals = [dict(table) for table in tables]
    tensors = (t for t in members.tensors.values() if t.is_floating_point() or not floating)
    twins = {id(t): meta_twin(t) for t in tensors}
    try:
        for table in tables:
            table.update({k: twins.get(id(t), t) for k, t in table.items()})
        yield twins
    finally:
        for table, original in zip(tables, originals, strict=True):
            table.clear()
            table.update(original)


def meta_twin(value: Any) -> Any:
    """A tensor like `value` without memory; anything else as it is."""
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)
    return value.detach().to("meta") if isinstance(value, torch.Tensor) else value
