"""The numbers that an operator computes with, and the constant tensors."""

from __future__ import annotations

import torch
from torch import fx

from ..tracing.graph import getitem, is_view, of, op

# Their whole numbers take part in what they compute.
_COMPUTES = {
    "full",
    "new_full",
    "full_like",
    "fill",
    "fill_",
    "addmm",
    "baddbmm",
    "addbmm",
    "addmv",
    "addcmul",
    "addcdiv",
}
# What is taken out of a constant tensor as it is.
_PARTS = {"lift_fresh", "detach", "alias", "select", "slice", "unbind", "split", "unsqueeze", "squeeze", "_to_copy"}
_COMPUTES |= {"addcmul_", "addcdiv_", "channel_shuffle", "native_channel_shuffle", "avg_pool2d", "avg_pool3d"}


def numbers_of(node: fx.Node, whole: bool) -> list[float]:
    """Numbers that take part in a computation: of elementwise arithmetic all, else those that are no sizes, and the
    dimension that it runs along (`torch.cross` without one takes the first of length 3). Of a group norm how many
    groups there are, or, where `whole` groups go, how wide each is."""
    name = op(node)
    if name == "native_group_norm":
        width, groups = (int(node.args[i]) for i in (4, 6))  # type: ignore[arg-type]
        return [width / groups if whole else groups]
    given = (*node.args, *(node.kwargs[key] for key in sorted(node.kwargs)))
    values = [a for a in given if isinstance(a, int | float) and not isinstance(a, bool)]
    if torch.Tag.pointwise in getattr(node.target, "tags", ()) or name in _COMPUTES:
        return values
    schema = getattr(node.target, "_schema", None)
    along = [i for i, a in enumerate(schema.arguments) if a.name == "dim"] if schema is not None else []
    dims = [node.args[i] if i < len(node.args) else node.kwargs.get("dim") for i in along]
    return [a for a in values if isinstance(a, float)] + [d for d in dims if isinstance(d, int)]


def other_values(old: fx.Node, new: fx.Node) -> list[fx.Node]:
    """The constant tensors that an operator reads, and that hold other numbers now; one whose shape follows a width is
    another matter, and so is one that only the program reads (`torch.IntTensor([width])[0]` as a place to cut at)."""
    found = []
    pairs = zip(old.all_input_nodes, new.all_input_nodes, strict=False)
    for a, b in pairs if not _counts(old) and not _ends(old) else ():
        if of(a).fixed and of(b).fixed:
            first, second = of(a).known, of(b).known
            if first.shape == second.shape and not torch.allclose(first, second.to(first), 0, 0, equal_nan=True):
                found.append(a)
    return found


def _ends(node: fx.Node) -> bool:
    """Whether no operator makes anything of a constant but parts of it and other such constants (sizes computed as
    tensors), and nothing is written: what the program takes out of them is among the numbers of other operators."""
    level, seen = [node], {node}
    while level:
        found = level.pop()
        part = op(found) in _PARTS or is_view(found) or found.target is getitem
        if found.op != "call_function" or not (part or (of(found).fixed and not op(found).endswith("_"))):
            return False
        level += [user for user in found.users if user not in seen]
        seen.update(found.users)
    return True


def _counts(node: fx.Node) -> bool:
    """Whether an operator writes to a buffer that every forward in train mode counts on, such as the number of batches
    that a norm has seen: training has gone on since the network was recorded."""
    while op(node).endswith("_") and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        if node.op == "get_attr":
            return not of(node).constant
    return False
