"""Whole numbers that stand in the nodes of an `fx.GraphModule`: lifted into attributes, and put back.

A graph that was captured has for a literal what a forward had for an attribute or a size: `view(x, 2, 64, -1)`,
`split(x, [32, 32])`. Lifted, the numbers of node `view` are the attribute `sizes_of_view = (2, 64, -1)` of its module,
and the node reads them there. So whatever finds attributes that repeat a width, and keeps them in step, finds these.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, TypeGuard

from torch import fx, nn
from torch.fx.node import map_aggregate

from ..model.copying import copied
from ..model.holding import MAX_ELEMENTS
from ..model.members import named_tensors
from ..tracing.graph import forget_shapes
from ..tracing.tags import FromAttribute, Source

PREFIX = "sizes_of_"


def lifted(model: nn.Module) -> nn.Module:
    """A copy with the same tensors and with the literals of its graphs as attributes; the model itself if it has no
    graph, or is such a copy."""
    graphs = [m for m in model.modules() if isinstance(m, fx.GraphModule)]
    if not graphs or has_literals(model):
        return model
    made = copied(model, {id(tensor): tensor for _, tensor in named_tensors(model)})
    for module in made.modules():
        if isinstance(module, fx.GraphModule):
            _lift(module)
    return made


def lowered(model: nn.Module) -> nn.Module:
    """The model itself, its literals in the nodes again, with the values that the attributes have by now."""
    for module in model.modules():
        if isinstance(module, fx.GraphModule) and _is_lifted(module):
            _lower(module)
    return model


def has_literals(model: nn.Module) -> bool:
    """Whether a model is such a copy and its graphs have literals."""
    return any(isinstance(module, fx.GraphModule) and _is_lifted(module) for module in model.modules())


def is_literal(source: Source) -> TypeGuard[FromAttribute]:
    """Whether a number comes from a lifted literal."""
    return isinstance(source, FromAttribute) and source.attribute.startswith(PREFIX)


def _is_lifted(module: nn.Module) -> bool:
    return any(name.startswith(PREFIX) for name in vars(module))


def _lift(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if node.op not in ("call_function", "call_method"):
            continue
        # The positions of the others are those of the result's sizes, where an operator takes these.
        first = 1 if node.args and isinstance(node.args[0], fx.Node) else 0
        numbers = list(_numbers((node.args[first:], node.kwargs)))
        while numbers and numbers[-1] is None:
            numbers.pop()
        if not any(map(_may_be_a_width, numbers)) or len(numbers) > MAX_ELEMENTS:
            continue
        name = f"{PREFIX}{node.name}"
        vars(module)[name] = tuple(numbers)
        with module.graph.inserting_before(node):
            row = module.graph.create_node("get_attr", name)
            read = {
                i: module.graph.call_function(operator.getitem, (row, i))
                for i, number in enumerate(numbers)
                if _may_be_a_width(number)
            }
        args, kwargs = _with((node.args[first:], node.kwargs), read)
        node.args, node.kwargs = (*node.args[:first], *args), kwargs
    module.recompile()


def _lower(module: fx.GraphModule) -> None:
    values: dict[fx.Node, int] = {}
    rows = [n for n in module.graph.nodes if n.op == "get_attr" and str(n.target).startswith(PREFIX)]
    for row in rows:
        numbers = vars(module).pop(str(row.target))
        values |= {user: numbers[user.args[1]] for user in row.users}
    for node in module.graph.nodes:
        if not values.keys().isdisjoint(node.all_input_nodes):
            node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values.get(n, n))
        forget_shapes(node)
    for node in (*values, *rows):
        module.graph.erase_node(node)
    module.recompile()


def _numbers(arguments: Any) -> Iterator[Any]:
    """The arguments one after the other, those in lists and slices, too; None for each that is no whole number."""
    if isinstance(arguments, slice):
        arguments = (arguments.start, arguments.stop, arguments.step)
    elif isinstance(arguments, dict):
        arguments = tuple(arguments.values())
    if isinstance(arguments, list | tuple):
        for argument in arguments:
            yield from _numbers(argument)
    else:
        yield arguments if type(arguments) is int else None


def _with(arguments: Any, nodes: Mapping[int, fx.Node]) -> Any:
    """The arguments with nodes for some, which are counted as `_numbers` does."""
    places = count()
    return map_aggregate(arguments, lambda old: nodes.get(next(places), old))


def _may_be_a_width(number: Any) -> bool:
    return number is not None and number > 1
