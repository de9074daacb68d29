"""propagate: a traced graph -> what the rules of its operators say of the labels of every tensor.

Every node's rule moves labels from its arguments to its results and couples them (`algebra`, `rules/`). What follows
from that is found in `settling`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx

from ..errors import HalpError
from ..tracing.graph import getitem, of, op, written_through_alias
from ..types import TensorSpec, Traced
from .algebra import Algebra, Call, Plane, Planes, Value, compact, varying, vector
from .computed import mark_sources, spread_roles
from .groups import Outline
from .reading import pin_values_read
from .rules import find_rule
from .rules.registry import Rule
from .sizes import FACTORIES

# Operators that make a tensor longer by repeating it.
GROWING = {"expand", "repeat"}
# And these make one longer with slots of its own, whether it has any or not.
PADDING = {"constant_pad_nd"}
# Longer ones hold no channels.
_MAX_FACTORY = 1 << 14


@dataclass(frozen=True, slots=True, eq=False)
class Propagated:
    """What the rules found out about a network, before anything is decided about it."""

    traced: Traced
    further: Sequence[Traced]
    algebra: Algebra
    planes: Mapping[fx.Node, Planes]
    outlines: Mapping[fx.Node, Outline]

    def follows(self, choices: Mapping[str, str]) -> bool:
        """Whether rules that are given these choices would come to the same."""
        return all(choices.get(place, choice) == choice for place, choice in self.algebra.choices.items())

    def with_channels(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """Those that are given a tensor with slots of parameters or buffers, or with some coupled with these."""
        if not nodes:
            return []
        classes, lasting = self.algebra.classes(), self.algebra.lasting_classes()
        given = {n: [compact(p).numpy() for p in self.planes.get(n.all_input_nodes[0], ())] for n in nodes}
        return [n for n in nodes if any(lasting[classes[labels]].any() for labels in given[n])]


def propagate(traced: Traced, further: Sequence[Traced], choices: Mapping[str, str]) -> Propagated:
    """The first part of `couple`, which neither ties nor frozen axes change: run the rules of all operators."""
    algebra = Algebra(choices=dict(choices))
    parameters: dict[str, Value] = {}
    planes: dict[fx.Node, Planes] = {}
    for graph in (traced, *further):
        found = _propagate(graph, algebra, parameters)
        pin_values_read(graph, found, algebra)
        planes.update(found)
    algebra.classes()  # Found once for all that is settled from here.
    for graph in (traced, *further):
        spread_roles(graph.graph, planes, algebra)
    for graph in (traced, *further):
        mark_sources(graph.graph, planes, algebra)
    needed = [n for graph in (traced, *(t for t in further if t.run.repeatable)) for n in graph.graph.nodes]
    outlines = {node: Outline.of(node, planes.get(node, ())) for node in (*needed, *(e.node for e in algebra.edits))}
    return Propagated(traced, further, algebra, planes, outlines)


def _propagate(traced: Traced, algebra: Algebra, parameters: dict[str, Value]) -> dict[fx.Node, Planes]:
    """Run every node's rule in order; returns the planes of every tensor-valued node."""
    values: dict[fx.Node, Any] = {}
    kernels = _kernels(traced.graph)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            values[node] = Value(_filled(of(node).one), data=_constant(node), node=node)
        elif node.op == "get_attr":
            values[node] = _attribute(node, algebra, parameters, kernels)
        elif node.op == "output":
            for value in _values(node.args, values):
                for plane in value.planes:
                    algebra.pin(plane, "reaches the model's output")
            if any(of(n).constant and of(n).one.dtype.is_floating_point for n in node.all_input_nodes):
                _pin_open_ends(traced.graph, values, algebra, "may reach an output through code that is no operator")
        else:
            values[node] = _call(node, values, algebra)
        made, spec = values.get(node), of(node).spec
        if spec is not None and 0 in spec.shape and isinstance(made, Value):
            values[node] = replace(made, missing=frozenset(d for d, n in enumerate(spec.shape) if n == 0))
    if not any(node.op == "output" for node in reversed(traced.graph.nodes)):
        reason = "the forward in train mode fails on the example inputs behind this"
        _pin_open_ends(traced.graph, values, algebra, reason)
    return {n: v.planes for n, v in values.items() if isinstance(v, Value)}


def _pin_open_ends(graph: fx.Graph, values: dict[fx.Node, Any], algebra: Algebra, reason: str) -> None:
    """Pin what nothing reads in the graph: code that was not seen may."""
    for node in graph.nodes:
        if not node.users and node in values:
            ends = [values[node]] if isinstance(values[node], Value) else _values(node.args, values)
            algebra.pin_all(ends, reason)


def _kernels(graph: fx.Graph) -> set[str]:
    """Parameters that are weights of convolutions, or that one is computed from: their kernel dimensions are fixed."""
    found: set[str] = set()
    for node in graph.nodes:
        if op(node) not in _CONVOLUTIONS:
            continue
        level, shape = {node.args[1]}, of(node.args[1]).one.shape
        seen = set(level)
        while level:
            same = [n for n in level if n.op == "get_attr" and of(n).one.shape == shape]
            found.update(str(n.target) for n in same)
            # Beyond a parameter of the weight's shape, and beyond what is no weight any more, there is nothing to find.
            level = {m for n in level if n not in same for m in n.all_input_nodes if m not in seen}
            seen |= level
    return found


_CONVOLUTIONS = {"convolution", "_convolution"}


def _attribute(node: fx.Node, algebra: Algebra, parameters: dict[str, Value], kernels: set[str]) -> Value:
    spec, data = _filled(of(node).one), _constant(node)
    if of(node).constant:
        return Value(spec, parameter=True, data=data, node=node)
    name = str(node.target)
    if name not in parameters:
        planes = algebra.new_planes(name, spec.shape, dims=2 if name in kernels else None)
        parameters[name] = Value(spec, planes, parameter=True, data=data, node=node)
    return parameters[name]


def _constant(node: fx.Node) -> torch.Tensor | None:
    return of(node).value if of(node).fixed else None


def _call(node: fx.Node, values: dict[fx.Node, Any], algebra: Algebra) -> Any:
    """The `Value` of a node, or a list of them for an operator with several results."""
    if node.target is getitem:
        return values[node.args[0]][node.args[1]]  # type: ignore[index]
    if op(node) in FACTORIES and sum(of(node).one.shape) <= _MAX_FACTORY:
        spec = _filled(of(node).one)
        made = algebra.new_planes(node.name, spec.shape, transient=True)
        if op(node) == "eye" and len(made) == 2 and spec.shape[0] == spec.shape[1]:
            # Where rows are channels, columns are the same.
            down, across = (vector(plane, dim) for dim, plane in enumerate(made))
            algebra.couple(down, across, Call(node, node.args, dict(node.kwargs), (spec,)), "diagonal")
        return Value(spec, made, True, _constant(node))
    outputs = _output_specs(node)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    call = Call(node, tuple(args), dict(kwargs), outputs)
    tensors = call.tensors()
    if node.target is written_through_alias:
        parameter = all(v.parameter for v in tensors)
        return _checked(node, Value(_filled(of(node).one), _aliased(call, values, algebra), parameter))
    single = of(node).spec is not None
    planes = _rule_planes(call, tensors, algebra)
    if call.op in GROWING:
        planes = (*planes, *_grown(call, algebra))
    rows = planes if isinstance(planes, list) else [planes] * len(outputs)
    parameter = all(v.parameter for v in tensors)
    results = [
        None if spec is None else _checked(node, Value(spec, row, parameter, _constant(node) if single else None, node))
        for spec, row in zip(outputs, rows, strict=True)
    ]
    return results[0] if single else results


def _grown(call: Call, algebra: Algebra) -> Planes:
    """Slots for dimensions of length 1 that are made longer, and new ones: they follow what they meet."""
    old, new = call.args[0].shape, call.shape
    old = (*(1,) * (len(new) - len(old)), *old)
    longer = [n if m == 1 else 1 for m, n in zip(old, new, strict=True)]
    if sum(longer) > _MAX_FACTORY or set(longer) == {1}:
        return ()
    return tuple(p.expand(new) for p in algebra.new_planes(call.node.name, longer, transient=True))


def _rule_planes(call: Call, tensors: list[Value], algebra: Algebra) -> Planes | list[Planes]:
    algebra.place = call.place
    if not any(v.planes for v in tensors) and call.op not in PADDING:
        return ()
    rule = find_rule(call.node.target)
    if rule is not None:
        known = len(algebra.links), len(algebra.pins)
        planes = _of_nothing(call, rule, tensors, algebra) if _empty(call.node) else rule(call, algebra)
        _pin_left_out(call, tensors, planes, known, algebra)
        return planes
    algebra.pin_all(tensors, f"no rule for operator {call.where}")
    if any(algebra.lasting(p) for v in tensors for p in v.planes):
        algebra.notes.setdefault(f"no rule for operator {call.node.target}: what reaches it is frozen ({call.where})")
    return ()


def _pin_left_out(
    call: Call, tensors: list[Value], planes: Planes | list[Planes], known: tuple[int, int], algebra: Algebra
) -> None:
    """Pin what lies in the further tensors of an operator and the rule says nothing of: the grid of a sampler, weights
    per sample. Without that it would shrink, whatever the operator does with it.

    Args:
        known: how many links and pins there were before the rule.
    """
    further = [p for v in tensors[1:] if v is not tensors[0] and not v.missing for p in v.planes]
    if not further:
        return
    results = [q for row in (planes if isinstance(planes, list) else [planes]) for q in row]
    rows = [side for link in algebra.links[known[0] :] for side in (link.b, link.a)]
    rows += [labels for labels, _ in algebra.pins[known[1] :]]
    rows += [compact(q).numpy() for q in results]
    for plane in further:
        labels = compact(plane).numpy().reshape(-1)
        labels = labels[labels > 0]
        if not labels.size:
            continue
        # Most are found by their first label.
        if not any((row == labels[:1]).any() for row in rows) and not any(np.isin(labels, row).any() for row in rows):
            algebra.pin(plane, f"{call.where} needs all of it")


def _empty(node: fx.Node) -> bool:
    """Whether an operator deals with a tensor without elements, e.g. the boxes of a detector that found nothing."""
    results = of(node).results or (of(node).spec,)
    specs = (*results, *(of(n).spec for n in node.all_input_nodes))
    return any(spec is not None and 0 in spec.shape for spec in specs)


def _filled(spec: TensorSpec) -> TensorSpec:
    """Labels of an empty tensor are those that it would have with one element: what is coupled must not depend on
    how many boxes were found."""
    return replace(spec, shape=tuple(max(n, 1) for n in spec.shape)) if 0 in spec.shape else spec


def _of_nothing(call: Call, rule: Rule, tensors: list[Value], algebra: Algebra) -> Planes | list[Planes]:
    """A rule on empty tensors, taken to have one element; where its arguments contradict that, nothing is known."""
    try:
        planes = rule(call, algebra)
        rows = planes if isinstance(planes, list) else [planes] * len(call.outputs)
        fits = all(
            tuple(p.shape) == spec.shape for spec, row in zip(call.outputs, rows, strict=True) if spec for p in row
        )
    except (RuntimeError, IndexError, ValueError):
        fits = False
    if fits:
        return planes
    algebra.pin_all(tensors, f"{call.where} ran on an empty tensor: the example inputs do not exercise it")
    return ()


def _output_specs(node: fx.Node) -> tuple[Any, ...]:
    """Specs of a node's results, None for those that nothing uses."""
    if of(node).spec is not None:
        return (_filled(of(node).one),)
    used = {user.args[1]: _filled(of(user).one) for user in node.users if user.target is getitem}
    schema = getattr(node.target, "_schema", None)
    declared = 0 if schema is None else len(schema.returns)
    count = max([declared, *(int(i) + 1 for i in used)])  # type: ignore[arg-type]
    return tuple(used.get(i) for i in range(count))


def _checked(node: fx.Node, value: Value) -> Value:
    for plane in value.planes:
        if tuple(plane.shape) != value.shape:
            raise HalpError(
                f"the rule of {node.target} returned labels of shape {tuple(plane.shape)} for a result of shape "
                f"{value.shape} at {node.name}: this is a defect of the rule"
            )
    return value


def _aliased(call: Call, values: dict[fx.Node, Any], algebra: Algebra) -> Planes:
    """Memory written through another view: fine if the labels there are as before, or can go together with those;
    else nothing is known any more."""
    old, writer = call.args
    node = call.node.args[1]
    assert isinstance(node, fx.Node)
    name = op(node)
    # An in-place operator writes its first argument.
    before = values[node.args[0]] if name.endswith("_") else old  # type: ignore[index]
    left, right = ([p for p in v.planes if varying(p)] for v in (before, writer))
    reason = f"memory is shared between views and written by {name} ({of(node).source})"
    partners = [_partner(p, left) for p in right]
    if any(partner is None for partner in partners):
        algebra.pin_all((old, writer), reason)
        return tuple(old.planes)
    for plane, partner in zip(right, partners, strict=True):
        if partner is not None and not _equal(plane, partner):
            algebra.couple(partner, plane, call, "written")
    for plane in left:
        if not any(partner is plane or _equal(plane, p) for p, partner in zip(right, partners, strict=True)):
            algebra.pin(plane, reason)
    return tuple(old.planes)


def _partner(plane: Plane, others: Sequence[Plane]) -> Plane | None:
    """Of the labels that the same elements had before those that are equal; or that lie along the same dimensions, or
    more of them (heads and their positions, where whole heads are written): all of these go with them."""
    dims = set(varying(plane))
    near = [other for other in others if other.shape == plane.shape and dims <= set(varying(other))]
    return next((other for other in near if _equal(plane, other)), near[0] if near else None)


def _equal(a: Plane, b: Plane) -> bool:
    if a.shape != b.shape or varying(a) != varying(b):
        return False
    return a.data_ptr() == b.data_ptr() or torch.equal(compact(a), compact(b))


def _values(args: Any, values: dict[fx.Node, Any]) -> Iterable[Value]:
    found: list[Value] = []
    fx.node.map_arg(args, lambda n: found.append(values[n]))
    return found
