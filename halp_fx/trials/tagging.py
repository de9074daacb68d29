"""Trial networks run with tagged attributes (`tracing.tags`); what operators are given in the network as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from ..errors import TraceError
from ..model.copying import copied, hollowed
from ..model.holding import path_to, table_of, with_table
from ..model.inputs import Examples
from ..model.preserving import INTERNAL
from ..rewriting.attributes import follows_tensors
from ..tracing.forward import run_again
from ..tracing.graph import given_to
from ..tracing.tags import MAX_ELEMENTS, FromAttribute, Source, sizes_tagged, tagged
from ..types import Traced

Given = Mapping[str, frozenset[Source]]
"""Where the numbers come from that operators are given: by node."""


def given_in(model: nn.Module, before: Traced, examples: Examples) -> dict[str, frozenset[Source]]:
    """What each operator of a forward is given, at full width. Nothing is known of a forward that refuses tags."""
    try:
        return {node.name: given_to(run) for node, run in run_tagged(model, before, examples)}
    except TraceError:
        return {}


def run_tagged(model: nn.Module, before: Traced, examples: Examples) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Run a forward once more, at full width and with tags: its operators, and the same ones with tags."""
    used = hollowed(model, floating=True) if before.on_meta else copied(model)
    with tagging(used):
        again = run_again(used, examples, before.run, before.on_meta, really=not before.on_meta)
    pairs = zip(before.graph.nodes, again.graph.nodes, strict=False)
    yield from ((node, run) for node, run in pairs if node.target == run.target)


@contextmanager
def tagging(model: nn.Module) -> Iterator[None]:
    """Tag the model's whole numbers, for good: it is a trial network. While the context lasts, tensors hand out tagged
    sizes."""
    shared: dict[int, tuple[Any, Any]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or follows_tensors(module):
            continue
        own = vars(module)
        own.update({key: _attribute(name, key, value) for key, value in own.items() if key not in INTERNAL})
        for key, value in own.items():
            table = table_of(value) if key not in INTERNAL else None
            if table is not None and any(_attribute(name, key, v) is not v for v in table.values()):
                if id(value) not in shared:
                    found = {k: _attribute(name, path_to(key, value, k), v) for k, v in table.items()}
                    shared[id(value)] = value, with_table(value, found)
                own[key] = shared[id(value)][1]
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
