"""Trial networks run with tagged attributes (`tracing.tags`); what operators are given in the network as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from ..errors import TraceError
from ..model.copying import copied, hollowed
from ..model.holding import DEPTH, is_plain, parts_of, row_of, with_parts
from ..model.inputs import Examples
from ..model.preserving import INTERNAL
from ..rewriting.attributes import implied
from ..tracing.forward import run_again
from ..tracing.graph import given_to
from ..tracing.tags import FromAttribute, Source, sizes_tagged, tagged
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
        if isinstance(module, torch.jit.ScriptModule):
            continue
        own, known = vars(module), INTERNAL | implied(module)
        own.update({k: _tagged(name, k, v, shared, DEPTH) for k, v in own.items() if k not in known})
    with sizes_tagged():
        yield


def _tagged(module: str, path: str, value: Any, shared: dict[int, tuple[Any, Any]], depth: int) -> Any:
    """A whole number with the tag that it is what this path leads to; a container with those that it holds. Of objects
    and dictionaries that several modules hold, all get the one that was made for the first (`shared`)."""
    if is_plain(value):
        return tagged(int(value), frozenset((FromAttribute(module, path),)))
    if id(value) in shared:
        return shared[id(value)][1]
    row, parts, found = row_of(value), parts_of(value) if depth else {}, dict[str, Any]()
    for i, (step, part) in enumerate(parts.items()):
        if row is not None and is_plain(part):
            found[step] = tagged(int(part), frozenset((FromAttribute(module, path, i),)))
        elif (new := _tagged(module, path + step, part, shared, depth - 1)) is not part:
            found[step] = new
    made = with_parts(value, found) if found else value
    if row is None and parts:
        shared[id(value)] = value, made
    return made
