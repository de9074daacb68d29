"""Weights that a forward computes from its parameters: masked, normalised, standardised, or made of several tensors.

What a channel is worth is a question about the weight that an operator really gets, not about the tensors that it is
made of: `mask * weight` of a masked channel is zero whatever the weight is, and a standardised weight does not change
with the scale of its parameter. `computed_weights` finds these weights in a trace,
`scoring.evaluated` computes them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import fx

from ..tracing.graph import getitem, of, op, written_through_alias
from ..types import SCORED, ComputedWeight, WeightPart
from .algebra import Algebra, Planes, Value, compact, varying
from .groups import Partition

# The same numbers in another place.
_COPIES = frozenset({"_to_copy", "clone", "detach", "alias", "lift_fresh", "contiguous"})


def spread_roles(graph: fx.Graph, planes: Mapping[fx.Node, Planes], algebra: Algebra) -> None:
    """Give every tensor that a weight is computed from the role that a rule gave to one of them.

    Labels of a product are those of one factor: in `mask * weight` a rule sees, and marks, the mask alone. What only
    scales a weight (buffers, tensors with fewer dimensions) is a "scale" then, and the weight the producer.
    """
    made = made_of_parameters(graph)
    classes = algebra.classes()
    nodes = {str(n.target): n for n in made if n.op == "get_attr"}
    for node in _weights(graph, made):
        marked = _marked(planes.get(node, ()), algebra)
        rank = len(of(node).one.shape)
        # The channels are called after a parameter of the weight's rank, if there is one: what else there is scales it.
        names = sorted(made[node] if marked else (), key=lambda name: (_scales(nodes[name], rank), name))
        produced = np.array([], dtype=np.int64)
        for name in names:
            scales = _scales(nodes[name], rank)
            for plane in planes.get(nodes[name], ()):
                labels = _labels(plane)
                axis = int(algebra.axis_of(labels[:1])[0]) if len(labels) else -1
                if axis < 0:
                    continue
                # In a residual stage both dimensions of a weight hold the same channels.
                likely = sorted(marked, key=lambda m: varying(m[2]) != varying(plane))
                role = next((r for other, r, _ in likely if np.isin(classes[labels], classes[other]).all()), None)
                if role == "producer" and scales and np.isin(classes[labels], produced).any():
                    algebra.roles[axis] = "scale"
                elif role is not None:
                    algebra.roles.setdefault(axis, role)
                    if role == "producer" and not scales:
                        # Of other channels of the product, a factor is no scale: of learnt queries times a layer, say.
                        produced = np.union1d(produced, classes[labels])


def mark_sources(graph: fx.Graph, planes: Mapping[fx.Node, Planes], algebra: Algebra) -> None:
    """Make producers of parameters whose values a layer reads, and that no layer makes: a learnt image from which a
    generator starts, planes of features that are sampled at positions."""
    classes = algebra.classes()
    read, made = np.zeros((2, int(classes.max()) + 1), dtype=bool)
    for labels, _ in algebra.pins:
        made[classes[labels]] = True
    for axis, role in algebra.roles.items():
        if role in ("producer", "consumer"):
            own = classes[algebra.starts[axis] : algebra.starts[axis + 1]]
            (made if role == "producer" else read)[own] = True
    for node in graph.nodes:
        for plane in planes.get(node, ()) if node.op == "get_attr" and of(node).trained else ():
            labels = _labels(plane)
            found = classes[labels]
            if len(labels) and (read & ~made)[found].any():
                algebra.mark(plane, "producer")


def _scales(node: fx.Node, rank: int) -> bool:
    return len(of(node).one.shape) < rank or not of(node).trained


def computed_weights(
    graph: fx.Graph, planes: Mapping[fx.Node, Planes], algebra: Algebra, partition: Partition
) -> tuple[ComputedWeight, ...]:
    """The weights of a trace that are computed from parameters, and where the channels of groups lie in them."""
    found = []
    made = made_of_parameters(graph)
    for node in _weights(graph, made):
        parts: list[WeightPart] = []
        for _, role, plane in _marked(planes.get(node, ()), algebra):
            role = "producer" if role == "scale" else role
            if role not in SCORED:
                continue
            channels = partition.channel_map(Value(of(node).one, (plane,)))
            for dim, (groups, index) in channels.dims.items():
                for g in np.unique(groups[groups >= 0]).tolist():
                    own = np.where(groups == g, index, -1)
                    parts.append(WeightPart(dim, role, partition.groups[g].name, own))
        if parts:
            found.append(ComputedWeight(node.name, made[node], tuple(parts)))
    return tuple(found)


def made_of_parameters(graph: fx.Graph) -> dict[fx.Node, frozenset[str]]:
    """Nodes that depend on parameters, buffers and constants alone, and the names of the parameters and buffers."""
    made: dict[fx.Node, frozenset[str]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            made[node] = frozenset() if of(node).constant else frozenset({str(node.target)})
        elif node.op == "call_function" and _repeatable(node) and all(n in made for n in node.all_input_nodes):
            made[node] = frozenset().union(*(made[n] for n in node.all_input_nodes))
    return made


def _repeatable(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return node.target is not written_through_alias and torch.Tag.nondeterministic_seeded not in tags


def _weights(graph: fx.Graph, made: Mapping[fx.Node, frozenset[str]]) -> list[fx.Node]:
    """Computed tensors that meet an activation, each once; views and copies stand for what they were made of."""
    met: dict[fx.Node, None] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes if node not in made else ():
            if source in made:
                met.setdefault(_origin(source))
    return [node for node in met if node.op == "call_function" and made[node] and of(node).spec is not None]


def _origin(node: fx.Node) -> fx.Node:
    while node.op == "call_function" and node.target is not getitem:
        copy = getattr(node.target, "is_view", False) or op(node) in _COPIES
        if not copy:
            break
        node = node.all_input_nodes[0]
    return node


def _labels(plane: torch.Tensor) -> np.ndarray:
    labels = compact(plane).numpy().reshape(-1)
    return labels[labels > 0]


def _marked(planes: Planes, algebra: Algebra) -> list[tuple[np.ndarray, str, torch.Tensor]]:
    """Labels and role of the planes that name an axis with a role."""
    found = []
    for plane in planes:
        labels = _labels(plane) if varying(plane) else np.array([], dtype=np.int64)
        role = algebra.roles.get(int(algebra.axis_of(labels[:1])[0])) if len(labels) else None
        if role is not None:
            found.append((labels, role, plane))
    return found
