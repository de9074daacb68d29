"""Questions to a traced graph: what a node carries (docs/record.md) and is, what leads to it, whose size depends on
values, what comes to nothing, and what is written in place."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import fx, nn

from ..internals import OpOverload
from ..types import RECORD, Record
from .calls import GRAPH_NODE
from .tags import FromSize, Source

# How many boxes it keeps depends on them, though it has no tag that says so.
_UNTAGGED = {"nms"}

# What is made like its first argument, whatever that holds.
_LIKE = re.compile(r"(empty|zeros|ones|full|rand|randn|randint)_like|new_(empty|zeros|ones|full)")

_VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias", "clone", "alias", "detach", "expand"}


FORWARD = "forward"
"""What the model's own forward is called, among names of modules: no module can be called so."""


def written_through_alias(old: Any, writer: Any) -> Any:
    """Node target: the memory of `old` was written by `writer` through another view. Never executed."""
    raise NotImplementedError


def getitem(values: Any, index: int) -> Any:
    """Node target: one result of an operator with several."""
    return values[index]


def of(node: fx.Node) -> Record:
    """What a node carries."""
    record: Record = node.meta[RECORD]
    return record


def keep(node: fx.Node, record: Record) -> None:
    """Give a node its record."""
    node.meta[RECORD] = record


def forget_shapes(node: fx.Node) -> None:
    """Take from a node of a network's own graph what other tools have noted of its result: sizes before pruning."""
    for key in ("val", "tensor_meta", "example_value"):
        node.meta.pop(key, None)


def class_of(model: nn.Module) -> str:
    """The name of a network's class; of an exported graph, that of what was exported."""
    name = type(model).__name__
    if isinstance(model, fx.GraphModule) and name == "GraphModule":
        for node in model.graph.nodes:
            for path, kind in node.meta.get("nn_module_stack", {}).values():
                if not path:
                    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]
    return name


def op(node: fx.Node | None) -> str:
    """The name of the operator that a node runs, without namespace and overload ("convolution"); empty for others."""
    return operator(node.target) if node is not None else ""


def operator(target: Any) -> str:
    """The name of an operator, as `op`, where there is no node."""
    name: str = getattr(target, "_opname", "")
    return name


def overload(node: fx.Node) -> OpOverload:
    """What a node calls that is known to run an operator."""
    assert isinstance(node.target, OpOverload), f"{node.name} runs no operator"
    return node.target


def functional(target: Any) -> Any:
    """For an in-place operator (`relu_`) the packet of the one that it is made from (`relu`); None for others."""
    name = operator(target)
    if not name.endswith("_") or name.startswith("__"):
        return None
    return getattr(getattr(torch.ops, target.namespace), name[:-1], None)


def without_writing(target: Any) -> Any:
    """What an in-place operator computes, as one that writes to nothing; any other as it is."""
    return getattr(functional(target), getattr(target, "_overloadname", ""), target)


def made_by(node: fx.Node) -> fx.Node:
    """The node that computes a value: of one result of several, the operator that has them."""
    if node.target is not getitem:
        return node
    assert isinstance(node.args[0], fx.Node)
    return node.args[0]


def place_of(node: fx.Node | None) -> tuple[str, str]:
    """Where in the program an operator runs: its name, and the line of the source."""
    return (op(node), of(node).source) if node is not None else ("", "")


def spot_of(node: fx.Node) -> str:
    """The same with the module that runs it: what a rule chooses there is noted under this name."""
    return f"{of(node).module}/{op(node)}@{of(node).source}"


def scope_of(node: fx.Node) -> str:
    """The module that runs an operator, for who reads it."""
    return of(node).module or FORWARD


def name_of(node: fx.Node) -> str:
    """An operator among those of its network, for who reads it: "layer1.0/add", "forward/mean"."""
    return f"{scope_of(node)}/{node.name}"


def where(node: fx.Node, what: str = "") -> str:
    """An operator, or what happens at it, for a message: "view in 'layer1.0' (dir/file.py:12)"."""
    record = of(node)
    module = f" in {record.module!r}" if record.module else ""
    # What PyTorch's own modules do alone was called from our recording: no line of the user's.
    own = not record.source or record.source.startswith("tracing/forward.py:")
    line = "" if own else f" ({record.source})"
    return f"{what or op(node) or 'a result'}{module or ('' if line else ' in the model itself')}{line}"


def is_view(node: fx.Node) -> bool:
    """Whether an operator only restates what is there. A reshape is a view, or a copy and a view, as strides (and
    widths of 1) have it."""
    return op(node) in _VIEWS or node.target is written_through_alias


def views_of(node: fx.Node) -> list[fx.Node]:
    """Views of a node's result, and views of these, the nearest first."""
    found: list[fx.Node] = []
    level = [node]
    while level:
        level = [user for n in level for user in n.users if is_view(user)]
        found += level
    return found


def given_to(node: fx.Node) -> frozenset[Source]:
    """Where the numbers come from that made a result's shape: given to this operator, or to a view that led to it."""
    while not of(node).sources and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
        if not is_view(node):
            break
    return of(node).sources


def ancestors(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes, and everything that they are computed from."""
    found = dict.fromkeys(nodes)
    left = list(found)
    while left:
        for node in left.pop().all_input_nodes:
            if node not in found:
                found[node] = None
                left.append(node)
    return list(found)


def sized_by_values(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose shape depends on values, not only on shapes: the boxes that a detector found, and what is computed
    from them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        sizes = {s.node for s in of(node).sources if isinstance(s, FromSize)}
        if (
            makes_a_size_of_values(node)
            or not found.isdisjoint(node.all_input_nodes)
            or (sizes and any(n.name in sizes for n in found))
        ):
            found.add(node)
    return found


def first_counted(graph: fx.Graph) -> fx.Node | None:
    """The first operator that finds more or less of something, by values, where the program may go by how much that is:
    it asks for the size, or goes through it one by one. Nothing in code that nobody wrote decides."""
    sized = sized_by_values(graph)
    for node in graph.nodes:
        if node not in sized or of(node).source.startswith(GRAPH_NODE):
            continue
        if of(node).sizes_read or any(of(user).results for user in node.users):
            return next((n for n in ancestors([node]) if makes_a_size_of_values(n)), node)
    return None


def makes_a_size_of_values(node: fx.Node) -> bool:
    """Whether an operator's result has a shape that depends on the values of its arguments, and these are not known."""
    unknown = [n for n in node.all_input_nodes if not of(n).fixed]
    if op(node) in ("index", "index_put", "index_put_"):
        # Only a mask has another number of elements than of positions that it names.
        picks = [n for n in unknown if n is not node.args[0] and of(n).one.dtype in (torch.bool, torch.uint8)]
        return op(node) == "index" and bool(picks)
    tags = getattr(node.target, "tags", ())
    return bool(unknown) and (torch.Tag.dynamic_output_shape in tags or op(node) in _UNTAGGED)


def unread(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose results come to nothing: scratch memory, and views of memory that is written and not read again."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        lasting = (
            schema is not None and schema.is_mutable and any(n.op != "call_function" for n in node.all_input_nodes)
        )
        if node.op == "call_function" and not lasting and found.issuperset(node.users):
            found.add(node)
    return found


def values_unused(node: fx.Node) -> bool:
    """Whether a result, or views of it, are read, but only for the shape, the dtype and the device."""
    return bool(node.users) and _of_shape_alone(node)


def _of_shape_alone(node: fx.Node) -> bool:
    """Whether all that reads a result does so for its shape; what nothing reads had its sizes read at most."""
    return all(
        user.all_input_nodes == [node]
        and (bool(_LIKE.fullmatch(op(user))) or (_only_views(user) and _of_shape_alone(user)))
        for user in node.users
    )


def _only_views(node: fx.Node) -> bool:
    return is_view(node) or bool(getattr(node.target, "is_view", False))


@cache
def places_written(target: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of the arguments that an operator writes to."""
    arguments = target._schema.arguments if hasattr(target, "_schema") else ()
    return tuple((i, a.name) for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write)


def written_by(node: fx.Node) -> list[fx.Node]:
    """The values that an operator writes to in place."""
    found: list[fx.Node] = []
    for index, name in places_written(node.target):
        fx.node.map_arg(node.args[index] if index < len(node.args) else node.kwargs.get(name), found.append)
    return found


def written(node: fx.Node, aside: set[fx.Node]) -> bool:
    """Whether the memory of a value is written in place by an operator that reads it, or a view of it."""
    level = [node]
    while level:
        value = level.pop()
        for user in value.users:
            if user in aside:
                continue
            if op(user).endswith("_") and user.args and user.args[0] is value:
                return True
            if getattr(user.target, "is_view", False) or op(user) in ("_unsafe_view", "reshape", "alias"):
                level.append(user)
    return False
