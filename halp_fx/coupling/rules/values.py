"""What can be told about a tensor's values from where it comes from in the trace."""

from __future__ import annotations

from typing import Any

from torch import fx

from ...tracing.graph import getitem, of, op

# They move elements, or take each by itself and leave a zero zero.
_MOVES = frozenset(
    (
        *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "squeeze", "unsqueeze", "clone"),
        *("select", "slice", "split", "split_with_sizes", "unbind", "detach", "alias", "_to_copy"),
        *("relu", "relu_", "neg", "tanh", "contiguous"),
    )
)
_SCALES = frozenset(("mul", "mul_", "div", "div_"))
# Which argument is the weight, whose rows (and bias) make the result.
_LAYERS = {"convolution": 1, "addmm": 2, "mm": 1, "baddbmm": 2, "embedding": 0}


def zero_where_removed(node: Any) -> bool:
    """Whether a tensor holds zeros, in the zeroed twin, where it was removed: a parameter does, and what a layer gives
    with its parameters as they are, seen through views and scaled by numbers."""
    seen_layer = False
    while isinstance(node, fx.Node):
        if node.op == "get_attr":
            return not of(node).constant
        name = op(node)
        if name in _LAYERS and not seen_layer:
            node, seen_layer = node.args[_LAYERS[name]], True
        elif name in _MOVES or node.target is getitem or (name in _SCALES and isinstance(node.args[1], int | float)):
            node = node.args[0]
        else:
            return False
    return False


# They are zero where their first argument is, and have the labels that it has.
_KEEPS_ZEROS = _MOVES | _SCALES | {"sqrt", "sqrt_", "abs", "square", "pow"}
_POSITIVE = frozenset(("exp", "sigmoid", "softplus", "cosh", "_softmax", "clamp", "clamp_", "clamp_min", "clamp_min_"))


def may_vanish(node: Any) -> bool:
    """Whether a tensor may be zero where the parameters are zero that it is computed from: not with a small number
    added, nor where something holds it away from zero."""
    while isinstance(node, fx.Node):
        name = op(node)
        if name in _POSITIVE or (name in ("add", "add_") and isinstance(node.args[1], int | float) and node.args[1]):
            return False
        if name not in _KEEPS_ZEROS:
            return True
        node = node.args[0]
    return True
