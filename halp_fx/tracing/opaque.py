"""Parts of a model that are no Python: a recording takes them as one operator each, of which nothing is known.

`torch.jit.script` and `torch.jit.trace` leave modules that run in an interpreter of their own. What reaches them stays
as wide as it is, and so do their own layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..internals import disable_current_modes, tree_leaves


def scripted_module(*tensors: Any) -> Any:
    """Node target: a call of a scripted or traced module. Never executed."""
    raise NotImplementedError


scripted_module._opname = "scripted_module"  # type: ignore[attr-defined]


class _Closed(nn.Module):
    """In place of a scripted module while a recording lasts: runs it unobserved, and writes it down as one operator."""

    def __init__(self, inner: nn.Module, write: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()
        self.training = inner.training
        # Not registered: its layers have no part in the recording.
        self._run = [inner]
        self._write = write

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        # A program that asks where a tensor is would not be told.
        with torch._C.DisableTorchFunction():
            without_values = any(t.is_meta for t in given)
        if without_values:
            raise NotImplementedError("a scripted module needs values")
        with disable_current_modes():
            result = self._run[0](*args, **kwargs)
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self._write(scripted_module, given, result if isinstance(result, torch.Tensor) else results)
        return result


def closed(model: nn.Module, write: Callable[[Any, Any, Any], Any]) -> None:
    """Put the scripted modules of a model, in place, behind a call of `write(target, tensors, results)`."""
    for module in list(model.modules()):
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, child in module._modules.items():
            if isinstance(child, torch.jit.ScriptModule):
                module._modules[name] = _Closed(child, write)
