"""The values of weights that a forward computes from its parameters (`coupling.computed` finds them)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

from ..tracing.graph import of


def evaluated(
    graph: fx.Graph, names: Iterable[str], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor | None]:
    """The values of nodes that are made of parameters; None for one that cannot be computed on its own.

    Args:
        tensors: parameters and buffers by name; they are not written to.
    """
    nodes = {node.name: node for node in graph.nodes}
    known: dict[fx.Node, Any] = {}
    with torch.no_grad():
        return {name: _value(nodes[name], tensors, known) if name in nodes else None for name in names}


def _value(node: fx.Node, tensors: Mapping[str, torch.Tensor], known: dict[fx.Node, Any]) -> Any:
    if node not in known:
        known[node] = _computed(node, tensors, known)
    return known[node]


def _computed(node: fx.Node, tensors: Mapping[str, torch.Tensor], known: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        return of(node).value if of(node).constant else tensors[str(node.target)].detach()
    inputs = {n: _value(n, tensors, known) for n in node.all_input_nodes}
    if any(value is None for value in inputs.values()):
        return None
    schema = getattr(node.target, "_schema", None)
    if schema is not None and schema.is_mutable:
        inputs = {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), inputs.__getitem__)
    try:
        return node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, NotImplementedError, TypeError):
        return None
