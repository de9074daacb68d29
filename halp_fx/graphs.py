"""Questions about memory in a traced graph: what comes to nothing, and what is written in place."""

from __future__ import annotations

from torch import fx


def op_name(node: fx.Node) -> str:
    """The operator's name in ATen, without its overload; empty for other nodes."""
    return str(getattr(node.target, "_opname", ""))


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


def written(node: fx.Node, aside: set[fx.Node]) -> bool:
    """Whether the memory of a value is written in place by an operator that reads it, or a view of it."""
    level = [node]
    while level:
        value = level.pop()
        for user in value.users:
            if user in aside:
                continue
            if op_name(user).endswith("_") and user.args and user.args[0] is value:
                return True
            if getattr(user.target, "is_view", False) or op_name(user) in ("_unsafe_view", "reshape", "alias"):
                level.append(user)
    return False
