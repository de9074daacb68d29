"""What must hold of every `Traced`, whoever recorded it: the contract of docs/record.md, as code."""

from __future__ import annotations

from torch import fx

from ..errors import HalpError
from ..types import RECORD, Record, TensorSpec, Traced
from .graph import getitem, of, op, written_through_alias


def check_traced(traced: Traced) -> None:
    """Check that a trace is one that the stages can read.

    Raises:
        HalpError: names the first node that breaks the contract, and how.
    """
    position = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in position:
        why = _wrong(node, position, traced)
        if why:
            raise HalpError(f"node {node.name} of a trace {why}: whoever recorded it did not keep docs/record.md")
    _check_parts(traced, {node.name for node in position})


def _wrong(node: fx.Node, position: dict[fx.Node, int], traced: Traced) -> str:
    """How a node breaks the contract, empty if it does not."""
    late = [n.name for n in node.all_input_nodes if position.get(n, len(position)) >= position[node]]
    if late:
        return f"reads {late[0]}, which does not come before it"
    if not isinstance(node.meta.get(RECORD), Record):
        return "has no record"
    if node.op == "output":
        return ""
    record = of(node)
    if record.spec is None and not any(record.results):
        return "has neither a spec nor results"
    if record.spec is not None and record.results:
        return "has a spec and results: one of them must be empty"
    if record.fixed and record.value is None:
        return "is fixed, but its value is not known"
    if record.spec is not None and not record.sizes_read <= set(range(len(record.spec.shape))):
        return f"has {len(record.spec.shape)} dimensions, of which sizes {sorted(record.sizes_read)} were read"
    if node.op == "call_function":
        return _wrong_call(node)
    return _wrong_attribute(node, traced) if node.op == "get_attr" else ""


def _wrong_call(node: fx.Node) -> str:
    record = of(node)
    if record.constant or record.trained:
        return "is an operator: it can be neither constant nor trained"
    if node.target is getitem:
        source, index = node.args
        assert isinstance(source, fx.Node)
        results = of(source).results
        if not isinstance(index, int) or index >= len(results) or not _same(record.spec, results[index]):
            return f"is not what {source.name} has as result {index}"
    elif node.target is not written_through_alias and not op(node):
        return f"calls {node.target}, which is no operator"
    return ""


def _wrong_attribute(node: fx.Node, traced: Traced) -> str:
    record, name = of(node), str(node.target)
    if record.constant:
        return f"is constant, but called like the parameter or buffer {name}" if name in traced.tensors else ""
    if name not in traced.tensors:
        return f"is {name}, which the model does not have; only a constant may be called otherwise"
    if not _same(record.spec, traced.tensors[name]):
        return f"is not of the shape and dtype of {name}"
    return ""


def _same(a: TensorSpec | None, b: TensorSpec | None) -> bool:
    """Strides and device may differ: a recording may run on other memory than the model's."""
    return a is not None and b is not None and (a.shape, a.dtype) == (b.shape, b.dtype)


def _check_parts(traced: Traced, names: set[str]) -> None:
    """What a trace says beside its graph refers to what is there."""
    reached = {str(n.target) for n in traced.graph.nodes if n.op == "get_attr"}
    beside = [f"{name} is said to be unused, but read" for name in traced.unused if name in reached]
    beside += [f"{name} is said to be unused, but unknown" for name in traced.unused if name not in traced.tensors]
    beside += [f"values of {read.node} are read, which is no node" for read in traced.reads if read.node not in names]
    for call in traced.calls:
        strange = [name for name in (*call.inputs, *call.outputs) if name is not None and name not in names]
        if strange or not call.start <= call.end:
            beside.append(f"a run of module {call.module!r} deals with {strange or (call.start, call.end)}")
    if beside:
        raise HalpError(f"in a trace, {beside[0]}: whoever recorded it did not keep docs/record.md")
