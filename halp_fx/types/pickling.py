"""Traced graphs as plain values that can be pickled: for spawned workers, and for results that are kept."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from ..internals import OpOverload
from .records import RECORD, Record


def packed(graph: fx.Graph) -> list[Any]:
    """Nodes in order, operators by name, arguments that are nodes by theirs."""
    rows = []
    for node in graph.nodes:
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: _Reference(n.name))
        rows.append((node.op, node.name, _named(node.target), args, kwargs, _lasting(node.meta[RECORD])))
    return rows


def unpacked(rows: list[Any]) -> fx.Graph:
    """Inverse of `packed`; names of nodes stay."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for op, name, target, args, kwargs, record in rows:
        args, kwargs = _dereferenced((args, kwargs), nodes)
        if op == "output":
            node = graph.output(args[0])
        else:
            node = graph.create_node(op, _found(target), args, kwargs, name=name)
        assert node.name == name
        node.meta[RECORD] = record
        nodes[name] = node
    return graph


def importable(kind: type) -> type:
    """The class, or the nearest base of it that another process can import."""
    return next(base for base in kind.__mro__ if _is_found(base))


def _is_found(kind: type) -> bool:
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind and kind.__module__ != "__main__"


def _lasting(record: Record) -> Record:
    """Without the sources of a trial's tagged numbers, which mean nothing outside of it."""
    return replace(record, layer=importable(record.layer), sources=frozenset())


class _Reference(str):
    """The name of a node."""

    __slots__ = ()


def _dereferenced(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, _Reference):
        return nodes[value]
    if isinstance(value, tuple | list):
        return type(value)(_dereferenced(v, nodes) for v in value)
    if isinstance(value, dict):
        return {k: _dereferenced(v, nodes) for k, v in value.items()}
    return value


def _named(target: Any) -> Any:
    if isinstance(target, OpOverload):
        return (target.namespace, target._opname, target._overloadname)
    return target


def _found(target: Any) -> Any:
    if isinstance(target, tuple):
        namespace, name, overload = target
        return getattr(getattr(getattr(torch.ops, namespace), name), overload)
    return target
