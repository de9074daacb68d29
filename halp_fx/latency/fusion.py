"""Runs of elementwise operators and norms that a compiler turns into one kernel.

An operator joins its consumer's unit if that consumer is its only reader, and both are elementwise: such a unit is a
tree, so no path can leave it and come back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from ..tracing.graph import getitem, made_by, op, without_writing
from ..types import Coupling
from .layers import Layer, does_work, layer_of_unit, layers

_ACTIVATIONS = ("relu", "relu6", "hardtanh", "clamp", "hardswish", "hardsigmoid", "silu", "sigmoid", "tanh", "gelu")
_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
_FUSIBLE = frozenset((*_ACTIVATIONS, *_NORMS, "elu", "leaky_relu", "add", "sub", "mul", "div"))


def fused_layers(coupling: Coupling, channels_last: frozenset[str] = frozenset()) -> tuple[Layer, ...]:
    """The layers of the network with runs of elementwise operators as one `Layer` each, in order of their ends.

    Args:
        channels_last: as for `layers`.
    """
    single = {layer.nodes[0]: layer for layer in layers(coupling, channels_last)}
    result = []
    for members in _runs(coupling.traced.graph):
        if len(members) == 1 and not _half_read(members[0]):
            result.append(single[members[0].name])
        else:
            result.append(_unit(members, coupling, channels_last))
    return tuple(result)


def _half_read(node: fx.Node) -> bool:
    """Whether a compiler leaves out a part of what an operator makes: where a maximum was found, if nobody asks."""
    read = {user.args[1] for user in node.users if user.target is getitem and user.users}
    return op(node).startswith("max_pool") and read == {0}


def _runs(graph: fx.Graph) -> list[list[fx.Node]]:
    """Every node that does work, with those that are fused into it, in order."""
    run_of: dict[fx.Node, list[fx.Node]] = {}
    runs: list[list[fx.Node]] = []
    for node in graph.nodes:
        if not does_work(node):
            continue
        run: list[fx.Node] = []
        for producer in dict.fromkeys(made_by(a) for a in node.all_input_nodes):
            if producer in run_of and _fusible(node) and _fusible(producer) and _only_reader(producer) is node:
                run += run_of.pop(producer)
        run.append(node)
        run_of[node] = run
    order = {node: i for i, node in enumerate(graph.nodes)}
    runs = [sorted(run, key=order.__getitem__) for run in run_of.values()]
    return sorted(runs, key=lambda run: order[run[-1]])


def _fusible(node: fx.Node) -> bool:
    return op(node).rstrip("_") in _FUSIBLE


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The one node that reads the result (through the access to a tuple), None if there are several or none."""
    readers: list[fx.Node] = []
    for user in node.users:
        readers += list(user.users) if user.target is getitem else [user]
    return readers[0] if len(set(readers)) == 1 else None


def _unit(members: list[fx.Node], coupling: Coupling, channels_last: frozenset[str]) -> Layer:
    """One layer for a run: its function is a graph module of the members, without in-place writes."""
    graph = fx.Graph()
    inside: dict[fx.Node, Any] = {}
    outer: list[fx.Node] = []
    for member in members:
        for argument in member.all_input_nodes:
            if argument not in inside and made_by(argument) not in members:
                inside[argument] = graph.placeholder(argument.name)
                outer.append(argument)
    # Placeholders come first in a graph, so the members are copied in a second pass.
    for member in members:
        copied = graph.node_copy(member, lambda n: inside[n])
        copied.target = without_writing(copied.target)  # As a compiler has it.
        inside[member] = copied
        for user in member.users:
            if user.target is getitem:
                inside[user] = graph.call_function(getitem, (copied, user.args[1]))
    last = members[-1]
    result = next((u for u in last.users if u.target is getitem), last)
    graph.output(inside[result])
    module = fx.GraphModule(torch.nn.Module(), graph)
    text = _text(graph)
    name = "+".join(op(m).rstrip("_") for m in members)
    layer = layer_of_unit(last, outer, [result], coupling, module, name, text, channels_last)
    return replace(layer, nodes=tuple(m.name for m in members))


def _text(graph: fx.Graph) -> str:
    """What the unit does, with nodes numbered: equal units have equal texts."""
    number = {node: f"%{i}" for i, node in enumerate(graph.nodes)}
    calls = (node for node in graph.nodes if node.op == "call_function" and node.target is not getitem)
    return "; ".join(
        f"{number[n]} = {n.target}{fx.node.map_arg((n.args, n.kwargs), number.__getitem__)}" for n in calls
    )
