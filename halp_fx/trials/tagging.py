"""Trial networks run with tagged attributes (`tracing.tags`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..model.preserving import INTERNAL
from ..rewriting.attributes import follows_tensors
from ..tracing.tags import MAX_ELEMENTS, FromAttribute, sizes_tagged, tagged


@contextmanager
def tagging(model: nn.Module) -> Iterator[None]:
    """Tag the model's whole numbers, for good: it is a trial network. While the context lasts, tensors hand out tagged
    sizes."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or follows_tensors(module):
            continue
        own = vars(module)
        own.update({key: _attribute(name, key, value) for key, value in own.items() if key not in INTERNAL})
    with sizes_tagged():
        yield


def _attribute(module: str, name: str, value: Any) -> Any:
    if type(value) is int:
        return tagged(value, frozenset((FromAttribute(module, name),)))
    if type(value) not in (list, tuple, torch.Size) or not 0 < len(value) <= MAX_ELEMENTS:
        return value
    if not any(type(v) is int for v in value):
        return value
    tags = (frozenset((FromAttribute(module, name, i),)) for i in range(len(value)))
    return type(value)([tagged(v, t) if type(v) is int else v for v, t in zip(value, tags, strict=True)])
