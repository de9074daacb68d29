"""couple: a traced graph -> channel groups.

Every node's rule moves labels from its arguments to its results and couples them (`algebra`, `rules/`). Afterwards
the slots fall into classes, the connected components at slot level: `groups` makes channel groups of them.
Mathematics and invariants: `docs/coupling.md`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx

from ..errors import HalpError
from ..tracing.graph import getitem, of, op, written_through_alias
from ..types import AttributeEdit, Axis, ChannelMap, Coupling, Decisions, Further, Links, TensorSpec, Tie, Traced
from .algebra import Algebra, Call, Plane, Planes, Value, compact, varying
from .computed import computed_weights, spread_roles
from .groups import Outline, Partition, free_dimension
from .mends import with_mends
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


def couple(
    traced: Traced,
    ignore: Sequence[str] = (),
    further: Sequence[Traced] = (),
    decisions: Decisions | None = None,
    frozen: Mapping[Axis, str] | None = None,
) -> Coupling:
    """Find the channel groups of a traced network.

    Args:
        traced: from `trace`. Shapes and costs refer to this graph.
        ignore: names of modules, parameters or groups that must stay as they are.
        further: other traces of the same model (train mode): what they couple is coupled, too.
        decisions: free choices, ties and mended attributes: found by trials, or those of the same network before it
            was pruned.
        frozen: axes that may not shrink, and why.

    Raises:
        ModelError: an entry of `ignore` matches nothing.
    """
    decisions = decisions or Decisions()
    return settle(propagate(traced, further, decisions.choices), ignore, decisions, frozen)


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
    needed = [n for graph in (traced, *(t for t in further if t.run.repeatable)) for n in graph.graph.nodes]
    outlines = {node: Outline.of(node, planes.get(node, ())) for node in (*needed, *(e.node for e in algebra.edits))}
    return Propagated(traced, further, algebra, planes, outlines)


def settle(
    found: Propagated, ignore: Sequence[str], decisions: Decisions, frozen: Mapping[Axis, str] | None
) -> Coupling:
    """The second part of `couple`. `found` stays as it is, and `decisions` must have the choices that it follows."""
    traced, further, planes = found.traced, found.further, found.planes
    algebra = found.algebra.copied(decisions.choices)
    ignored = _pin_ignored(algebra, [ignore] if isinstance(ignore, str) else ignore, traced)
    algebra.settle_pieces()
    _settle_grids(algebra)
    _tie(algebra, decisions.ties)
    for axis, reason in (frozen or {}).items():
        algebra.pin(_labels(algebra, axis), reason)
    partition = Partition.of(algebra)
    partition = partition.with_frozen({name: f"ignored by the caller ({name!r})" for name in ignored})
    partition = partition.without_products(found.outlines, algebra)
    first, *others = (
        Further(
            forward,
            {node.name: partition.extents(found.outlines[node]) for node in forward.graph.nodes},
            {} if forward.run.training else _restricted(forward, algebra, partition),
        )
        for forward in (traced, *(t for t in further if t.run.repeatable))
    )
    edits = dict.fromkeys(
        AttributeEdit(e.module, e.attribute, partition.extents(found.outlines[e.node])[e.dim], e.divisor)
        for e in algebra.edits
    )
    unseen = set(traced.unused).difference(*(set(traced.unused) - set(t.unused) for t in further))
    for name in sorted(unseen):
        algebra.notes.setdefault(f"{name}: not reached by the forward, left as it is")
    roles = tuple(algebra.roles.get(i, "other") for i in range(len(algebra.axes)))
    links = Links(tuple(algebra.axes), np.asarray(algebra.starts), tuple(algebra.links), roles)
    coupling = Coupling(
        traced,
        partition.groups,
        links,
        first.shapes,
        tuple(edits),
        tuple(algebra.notes),
        restricted=first.restricted,
        computed=computed_weights(traced.graph, planes, algebra, partition),
        further=tuple(others),
    )
    return with_mends(coupling, replace(decisions, choices=algebra.choices))


def _restricted(traced: Traced, algebra: Algebra, partition: Partition) -> dict[str, tuple[ChannelMap, ...]]:
    return {
        node.name: tuple(partition.channel_map(v, r.along(i)) for i, v in enumerate(r.call.tensors()))
        for node, r in algebra.restricted.items()
        if node.graph is traced.graph
    }


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
        return Value(spec, algebra.new_planes(node.name, spec.shape, transient=True), True, _constant(node))
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
        return _of_nothing(call, rule, tensors, algebra) if _empty(call.node) else rule(call, algebra)
    algebra.pin_all(tensors, f"no rule for operator {call.where}")
    if any(algebra.lasting(p) for v in tensors for p in v.planes):
        algebra.notes.setdefault(f"no rule for operator {call.node.target}: what reaches it is frozen ({call.where})")
    return ()


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
    """Memory written through another view: fine if the labels there are as before, else nothing is known any more."""
    old, writer = call.args
    node = call.node.args[1]
    assert isinstance(node, fx.Node)
    name = op(node)
    # An in-place operator writes its first argument.
    before = values[node.args[0]] if name.endswith("_") else old  # type: ignore[index]
    left, right = ([p for p in v.planes if varying(p)] for v in (before, writer))
    reason = f"memory is shared between views and written by {name} ({of(node).source})"
    if all(any(_equal(p, q) for q in left) for p in right):
        for plane in left:
            if not any(_equal(plane, q) for q in right):
                algebra.pin(plane, reason)
    else:
        algebra.pin_all((old, writer), reason)
    return tuple(old.planes)


def _equal(a: Plane, b: Plane) -> bool:
    if a.shape != b.shape or varying(a) != varying(b):
        return False
    return a.data_ptr() == b.data_ptr() or torch.equal(compact(a), compact(b))


def _values(args: Any, values: dict[fx.Node, Any]) -> Iterable[Value]:
    found: list[Value] = []
    fx.node.map_arg(args, lambda n: found.append(values[n]))
    return found


def _pin_ignored(algebra: Algebra, ignore: Sequence[str], traced: Traced) -> list[str]:
    """Pin every axis of the ignored modules and parameters; returns the entries that must be names of groups."""
    left = []
    for entry in ignore:
        tensors = {t for t in traced.tensors if t == entry or t.startswith(f"{entry}.")}
        for axis in algebra.axes:
            if axis.tensor in tensors:
                algebra.pin(_labels(algebra, axis), f"ignored by the caller ({entry!r})")
        if not tensors:
            left.append(entry)
    return left


def _settle_grids(algebra: Algebra) -> None:
    """Where a plane varies along several dimensions, make every choice of channels leave a rectangle.

    The classes must depend on one of the dimensions alone. Where consumers have not already seen to that, the same
    inner positions are kept in every outer part, which is what `view(b, groups, c // groups, …)` asks for; or, as the
    other choice, whole outer parts.
    """
    grids = {(g.data_ptr(), tuple(g.shape), g.stride()): (g, place) for g, place in reversed(algebra.grids)}
    if not grids:
        return
    # One pass is enough: ties only merge classes, and what depends on one dimension alone still does afterwards.
    for grid, place in reversed(grids.values()):
        ids = np.where(grid.numpy() > 0, algebra.classes()[grid.numpy()], -1)
        if free_dimension(ids, varying(grid)) is None:
            positions = algebra.choose(f"{place}#axes", "positions") == "positions"
            algebra.tie_labels(grid, varying(grid)[:-1] if positions else varying(grid)[1:])


def _tie(algebra: Algebra, ties: Sequence[Tie]) -> None:
    """Couple the channels along two axes in equal runs: as many as divide both."""
    for tie in ties:
        classes = algebra.classes()
        labels = (_labels(algebra, axis) for axis in (tie.a, tie.b))
        a, b = (row[np.sort(np.unique(classes[row], return_index=True)[1])] for row in labels)
        runs = math.gcd(len(a), len(b))
        if len(a) and len(b):
            first = a[:: len(a) // runs]
            algebra.tie_channels(
                np.concatenate([np.repeat(first, len(row) // runs) for row in (a, b)]), np.concatenate([a, b])
            )


def _labels(algebra: Algebra, axis: Axis) -> np.ndarray:
    """The labels of an axis; none of one that was pruned down to a single slot."""
    if axis not in algebra.axes:
        return np.array([], dtype=np.int64)
    index = algebra.axes.index(axis)
    return np.arange(algebra.starts[index], algebra.starts[index + 1])
