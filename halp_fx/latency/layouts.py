"""Which tensors inductor lays out channels last, whatever the network has.

On a CPU it does so with all that a convolution reads and makes (`decide_layout_opt` of `torch._inductor.graph`), and
what runs between them element by element follows. Weights stay as the network has them, so they are copied in every
call: for a 3 x 3 convolution of 512 channels at 4 x 4 pixels that takes as long as the products. Layers timed as eager
code has them miss it: a quarter of a ResNet-18 at 128 pixels.
"""

from __future__ import annotations

import torch
from torch import fx

from ..tracing.graph import getitem, of, op
from ..types import Coupling

_WITH_A_LAYOUT = (4, 5)
"""Dimensions of what a memory format can be given to."""

_PARTS = frozenset({"slice", "split", "split_with_sizes", "chunk", "narrow", "alias", "detach", "lift_fresh"})
"""Views in whose results the dimensions lie as they did."""


def channels_last(coupling: Coupling, weights: bool = False) -> frozenset[str]:
    """Names of the nodes whose tensors lie channels last in the code that inductor makes.

    Args:
        weights: those of convolutions, too: they are constants, and were laid out once.
    """
    if not (torch.backends.mkldnn.enabled and torch.backends.mkldnn.is_available()):
        return frozenset()
    found: set[fx.Node] = set()
    for node in coupling.traced.graph.nodes:
        if node.op != "call_function":
            continue
        if op(node) == "convolution":
            read = node.all_input_nodes[: 2 if weights else 1]
            found |= {n for n in (*read, node) if _fits(n)}
        # What has several results stands for those that are read.
        elif (of(node).spec is None or _fits(node)) and _follows(node) and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return frozenset(node.name for node in found)


def _fits(node: fx.Node) -> bool:
    spec = of(node).spec
    return spec is not None and len(spec.shape) in _WITH_A_LAYOUT and spec.device.type == "cpu"


def _follows(node: fx.Node) -> bool:
    """Whether the result lies as the argument does: all but what moves dimensions about."""
    return node.target is getitem or not getattr(node.target, "is_view", False) or op(node) in _PARTS
