"""unlifted: the graph that Dynamo hands to a backend -> the network that it is, with parameters under their names.

Dynamo passes parameters and buffers as inputs, real tensors each, and names where the program found them:
`L['self']._modules['layer1']._parameters['weight']`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..internals import dynamo_variable, source_name

NAMELESS = "CompiledFunction"
"""What a network is called whose class nobody knows."""

_STEP = re.compile(r"\._(modules|parameters|buffers)\['([^']+)'\]")


@dataclass(frozen=True, slots=True)
class Unlifted:
    """A network, and how Dynamo's inputs become its own.

    Attributes:
        network: shares the parameters.
        names: names of parameters and buffers, in the order of `positions`.
        positions: which of Dynamo's inputs they are.
        others: which are the network's own inputs.
        examples: these, sizes as plain numbers.
        single: whether it returns the one element of the tuple that Dynamo's graph returns, as the model most likely
            does: losses are computed with that.
    """

    network: fx.GraphModule
    names: tuple[str, ...]
    positions: tuple[int, ...]
    others: tuple[int, ...]
    examples: tuple[Any, ...]
    single: bool


def unlifted(graph: fx.GraphModule, inputs: Sequence[Any]) -> Unlifted:
    """The network of a graph of Dynamo's. The graph is not changed."""
    root = nn.Module()
    new = fx.Graph()
    held: dict[fx.Node, fx.Node] = {}
    found: list[tuple[fx.Node, str, Any]] = []
    positions, others = [], []
    for i, (node, value) in enumerate(_given(graph, inputs)):
        name = _name(node, value)
        if name is None:
            held[node] = new.node_copy(node, held.__getitem__)
            others.append(i)
        else:
            found.append((node, name, value))
            positions.append(i)
    taken: set[str] = set()
    names = []
    for node, name, value in found:
        while name in taken:  # Another model's, in a function that runs two.
            name = f"{name}_"
        taken.add(name)
        names.append(name)
        _register(root, name, value)
        held[node] = new.get_attr(name)
    for path, child in graph.named_children():
        root.add_module(path, child)
    for node in graph.graph.nodes:
        if node.op == "get_attr" and not hasattr(root, str(node.target).partition(".")[0]):
            first = str(node.target).partition(".")[0]
            setattr(root, first, getattr(graph, first))
        if node not in held:
            held[node] = new.node_copy(node, held.__getitem__)
    _compute_for_each_use(new, {held[node] for node, value in _given(graph, inputs) if isinstance(value, torch.SymInt)})
    output = next(iter(reversed(new.nodes)))
    single = len(output.args[0]) == 1
    if single:
        output.args = (output.args[0][0],)
    network = fx.GraphModule(root, new, _called(source_name(node) for node, _, _ in found)).eval()
    plain = tuple(_plain(inputs[i]) for i in others)
    return Unlifted(network, tuple(names), tuple(positions), tuple(others), plain, single)


def _called(sources: Iterable[str]) -> str:
    """The class of the model that a graph was made of, by where its parameters were found; `NAMELESS` of a function, of
    several models, and where Dynamo does not say."""
    begins = {source.partition("]")[0] + "]" for source in sources}
    models = {id(found): found for begin in begins if isinstance(found := dynamo_variable(begin), nn.Module)}
    return type(*models.values()).__name__ if len(models) == len(begins) == 1 else NAMELESS


def _given(graph: fx.GraphModule, inputs: Sequence[Any]) -> Iterator[tuple[fx.Node, Any]]:
    return zip(graph.graph.find_nodes(op="placeholder"), inputs, strict=True)


def _compute_for_each_use(graph: fx.Graph, sizes: set[fx.Node]) -> None:
    """Dynamo computes a size once (the batch times 64), though several widths may be its factor: here every use gets a
    computation of its own, so that their numbers may come to differ.

    Args:
        sizes: inputs that are sizes left open; computed ones join them.
    """
    computed = []
    for node in graph.nodes:
        of_numbers = all(isinstance(arg, int) or (isinstance(arg, fx.Node) and arg in sizes) for arg in node.args)
        if node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator" and of_numbers:
            sizes.add(node)
            computed.append(node)
    for node in reversed(computed):  # What it is computed from comes to have as many uses, and is copied next.
        for user in list(node.users)[1:]:
            with graph.inserting_before(user):
                own = graph.node_copy(node)
            user.replace_input_with(node, own)


def _plain(value: Any) -> Any:
    """A size that the code leaves open, as it is in this call: without a guard that would close it."""
    return value.node.hint if isinstance(value, torch.SymInt) else value


def _name(node: fx.Node, value: Any) -> str | None:
    """The `state_dict` name of a parameter or buffer; None of what is neither."""
    steps = _STEP.findall(source_name(node))
    if not isinstance(value, torch.Tensor) or not steps or steps[-1][0] == "modules":
        return None
    return ".".join(step for _, step in steps)


def _register(root: nn.Module, name: str, value: torch.Tensor) -> None:
    *path, last = name.split(".")
    for step in path:
        if step not in root._modules:
            root.add_module(step, nn.Module())
        root = root.get_submodule(step)
    if isinstance(value, nn.Parameter):
        root.register_parameter(last, value)
    else:
        root.register_buffer(last, value)
