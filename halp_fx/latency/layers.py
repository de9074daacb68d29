"""Coupling -> layers: the operators of a network that do work, each replayable at any widths.

`layers(coupling)` takes a `Coupling` and returns one `Layer` per operator of the traced graph that moves or computes
data. Views, allocations and tuple access cost nothing and are left out. A layer knows which two widths its shapes
follow, so its time, its MACs and its bytes are functions of (n_in, n_out).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from math import gcd
from typing import Any

import torch
from torch import fx

from ..tracing import getitem
from ..types import Coupling, Extent
from .templates import IN, OUT, Size, TensorTemplate, fill, render, templates
from .width_arguments import fit_widths, without_widths

aten = torch.ops.aten

# Operators with tensor arguments that only allocate or relabel.
_FREE = frozenset({"_unsafe_view", "detach", "alias", "lift_fresh", "empty_like", "new_empty", "new_empty_strided"})


@dataclass(frozen=True, slots=True)
class Layer:
    """One operator call of the network.

    Attributes:
        name: "module/node", unique in the network.
        module: qualified name of the innermost module that ran it.
        op: operator name, e.g. "convolution".
        key: signature: operator, dtypes, shapes with "I" and "O" for the two widths, memory order, all other
            arguments. Layers with equal keys cost the same at equal widths.
        inputs: the width that the layer takes in, or for an operator with one width, that width.
        output: the width that it puts out, where that is another one; None where it follows `inputs`.
        dense: (n_in, n_out) of the unpruned network; n_out is 0 where `output` is None.
        function: what is called to replay it.
        args, kwargs: its arguments with a `TensorTemplate` for each tensor.
        results: templates of the results that the network uses.
        nodes: names of the graph's nodes that it stands for (several in a fused unit).
    """

    name: str
    module: str
    op: str
    key: str
    inputs: Extent
    output: Extent | None
    dense: tuple[int, int]
    function: Callable[..., Any] = field(compare=False, repr=False)
    args: tuple[Any, ...] = field(compare=False, repr=False)
    kwargs: Mapping[str, Any] = field(compare=False, repr=False)
    results: tuple[TensorTemplate, ...] = field(compare=False, repr=False)
    nodes: tuple[str, ...] = ()

    def arguments(
        self, n_in: int, n_out: int = 0, device: torch.device | str = "cpu", seed: int = 0
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Random arguments with which `function(*args, **kwargs)` does this layer's work at the given widths.

        The global random state is not touched.
        """
        device = torch.device(device)
        generator = torch.Generator(device).manual_seed(seed)
        build = lambda t: t.build(n_in, n_out, device, generator)  # noqa: E731
        return fit_widths(
            self.function, fill(self.args, build), fill(dict(self.kwargs), build), *self._sizes(n_in, n_out)
        )

    def shapes(self, n_in: int, n_out: int = 0) -> tuple[tuple[Any, ...], dict[str, Any], tuple[tuple[int, ...], ...]]:
        """As `arguments`, with a shape in place of each tensor, and the shapes of the results."""
        make = lambda t: t.shape(n_in, n_out)  # noqa: E731
        return fill(self.args, make), fill(dict(self.kwargs), make), tuple(make(r) for r in self.results)

    def widths(self, widths: Mapping[str, int]) -> tuple[int, int]:
        """(n_in, n_out) when each group is as wide as `widths` says."""
        return self.inputs.at(widths), 0 if self.output is None else self.output.at(widths)

    def bytes(self, n_in: int, n_out: int = 0) -> int:
        """Bytes read and written, each tensor once."""
        return sum(t.bytes(n_in, n_out) for t in (*templates((self.args, self.kwargs)), *self.results))

    @property
    def groups(self) -> frozenset[str]:
        """Groups whose width changes its cost."""
        terms = (*self.inputs.terms, *(self.output.terms if self.output else ()))
        return frozenset(group for group, _ in terms)

    def _sizes(self, n_in: int, n_out: int) -> tuple[float, float]:
        """Widths relative to dense: what constant arguments are scaled by."""
        dense_in, dense_out = self.dense
        return n_in / max(dense_in, 1), n_out / dense_out if dense_out else n_in / max(dense_in, 1)


def layers(coupling: Coupling) -> tuple[Layer, ...]:
    """Every operator of the network that does work, in the order of the forward."""
    widths = coupling.widths()
    return tuple(_layer(node, coupling, widths) for node in coupling.traced.graph.nodes if does_work(node))


def does_work(node: fx.Node) -> bool:
    """Whether a node of a trace reads or writes tensor data."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    return not target.is_view and target._opname not in _FREE and any(_tensor_nodes(node))


def _tensor_nodes(node: fx.Node) -> Iterator[fx.Node]:
    """Tensor arguments, those in lists too, with repeats, in order."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return (n for n in found if n.meta.get("spec") is not None)


def _layer(node: fx.Node, coupling: Coupling, widths: Mapping[str, int]) -> Layer:
    target: torch._ops.OpOverload = node.target  # type: ignore[assignment]
    results = _result_nodes(node)
    roles = _roles(list(_tensor_nodes(node)), results, coupling, target._opname, node)
    template = _templates(roles, coupling, widths, _written(node))
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), template)  # type: ignore[arg-type]
    args, kwargs = _plain(args), _plain(kwargs)
    key = f"{target.name()}({render(without_widths(target, args))}{', ' if kwargs else ''}{render(kwargs)})"
    return _make(node, target._opname, key, roles, widths, target, tuple(args), kwargs, tuple(map(template, results)))


def layer_of_unit(
    last: fx.Node,
    inputs: list[fx.Node],
    results: list[fx.Node],
    coupling: Coupling,
    function: Callable[..., Any],
    op: str,
    text: str,
) -> Layer:
    """A layer that stands for several operators: `function` takes the tensors of `inputs` in this order.

    Args:
        last: the node that names it.
        op, text: its name, and what its operators do, for the signature.
    """
    widths = coupling.widths()
    roles = _roles(inputs, results, coupling, op, None)
    template = _templates(roles, coupling, widths, set())
    args = tuple(map(template, inputs))
    key = f"{op}({render(args)}) {text}"
    return _make(last, op, key, roles, widths, function, args, {}, tuple(map(template, results)))


def _make(
    node: fx.Node,
    op: str,
    key: str,
    roles: _Roles,
    widths: Mapping[str, int],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    results: tuple[TensorTemplate, ...],
) -> Layer:
    module = str(node.meta.get("module", ""))
    output = roles.output
    dense = (roles.inputs.at(widths), 0 if output is None else output.at(widths))
    name = f"{module}/{node.name}"
    return Layer(name, module, op, key, roles.inputs, output, dense, function, args, kwargs, results, (node.name,))


def _templates(
    roles: _Roles, coupling: Coupling, widths: Mapping[str, int], written: set[fx.Node]
) -> Callable[[fx.Node], TensorTemplate]:
    def template(node: fx.Node) -> TensorTemplate:
        sizes = tuple(roles.size(e, widths) for e in coupling.shapes[node.name])
        return TensorTemplate.of(node.meta["spec"], sizes, node in written, node.meta.get("value"))

    return template


def _plain(tree: Any) -> Any:
    """fx's immutable lists and dicts as plain ones."""
    if isinstance(tree, dict):
        return {k: _plain(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_plain(v) for v in tree]
    if type(tree) is tuple:
        return tuple(_plain(v) for v in tree)
    return tree


def _result_nodes(node: fx.Node) -> tuple[fx.Node, ...]:
    if node.meta.get("spec") is not None:
        return (node,)
    return tuple(u for u in node.users if u.target is getitem and u.meta.get("spec") is not None)


def _written(node: fx.Node) -> set[fx.Node]:
    """Arguments that the operator writes to."""
    schema = node.target._schema  # type: ignore[union-attr]
    if not schema.is_mutable:
        return set()
    found: list[fx.Node] = []
    for index, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            fx.node.map_arg(value, found.append)
    return set(found)


@dataclass(frozen=True, slots=True)
class _Roles:
    """The widths that a layer's shapes follow. `spread`: all follow `inputs`, proportionally."""

    inputs: Extent
    output: Extent | None
    spread: bool = False

    def size(self, extent: Extent, widths: Mapping[str, int]) -> Size:
        if not extent.terms:
            return Size(extent.fixed)
        for axis, width in ((IN, self.inputs), (OUT, self.output)):
            ratio = _ratio(extent, width) if width is not None and width.terms else None
            if ratio is not None and width is not None:
                return Size(extent.fixed, axis, *ratio, base=width.fixed)
        if not self.spread:
            raise AssertionError(f"extent {extent} follows neither width of its layer")
        return Size(0, IN, extent.at(widths), self.inputs.at(widths))


def _ratio(extent: Extent, unit: Extent) -> tuple[int, int] | None:
    """(p, q) with extent's terms = p/q * unit's terms, else None."""
    mine, theirs = dict(extent.terms), dict(unit.terms)
    if mine.keys() != theirs.keys():
        return None
    first = next(iter(mine))
    p, q = mine[first], theirs[first]
    if any(mine[g] * q != theirs[g] * p for g in mine):
        return None
    return p // gcd(p, q), q // gcd(p, q)


def _roles(
    arguments: list[fx.Node], results: Iterable[fx.Node], coupling: Coupling, op: str, node: fx.Node | None
) -> _Roles:
    """Find the one or two widths that vary, and which of them the layer takes in and puts out."""
    shape = lambda n: coupling.shapes[n.name]  # noqa: E731
    reached = _classes(e for n in arguments for e in shape(n))
    produced = _classes(e for n in results for e in shape(n))
    found = _classes((*reached, *produced))
    fixed = _contraction(op, node, shape) if node is not None else None
    if op == "cat" and len(found) > 1:
        return _Roles(next(e for e in produced if e.terms), None, spread=True)
    if len(found) > 2:
        return _Roles(_sum(found), None, spread=True)
    consumed = [e for e in found if not any(_ratio(e, p) for p in produced)]
    if len(found) == 2:
        inputs = consumed[0] if consumed else found[0]
        return _Roles(inputs, next(e for e in found if e is not inputs))
    if not found:
        return _Roles(*fixed) if fixed else _Roles(Extent(0), None)
    if fixed and not fixed[0].terms:
        return _Roles(fixed[0], found[0])
    if fixed and consumed:
        return _Roles(found[0], fixed[1])
    return _Roles(found[0], None)


def _classes(extents: Any) -> list[Extent]:
    """Variable extents, one of each family that is proportional; the one with the smallest scales is its unit."""
    units: list[Extent] = []
    for extent in extents:
        if not extent.terms:
            continue
        known = next((i for i, u in enumerate(units) if _ratio(extent, u)), None)
        if known is None:
            units.append(extent)
        elif extent.terms[0][1] < units[known].terms[0][1]:
            units[known] = extent
    return units


def _contraction(
    op: str, node: fx.Node, shape: Callable[[fx.Node], tuple[Extent, ...]]
) -> tuple[Extent, Extent] | None:
    """(input, output) extents of a convolution or matrix product, else None."""
    args: Any = node.args
    if op == "convolution":
        x, weight, groups = shape(args[0]), shape(args[1]), int(args[8])
        if not args[6]:
            return x[1], weight[0]
        return x[1], Extent(weight[1].fixed * groups, tuple((g, s * groups) for g, s in weight[1].terms))
    first = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}.get(op)
    return None if first is None else (shape(args[first])[-1], shape(args[first + 1])[-1])


def _sum(extents: list[Extent]) -> Extent:
    """An extent that grows with every one of `extents`."""
    terms: dict[str, int] = {}
    for extent in extents:
        for group, scale in extent.terms:
            terms[group] = terms.get(group, 0) + scale
    step = reduce(gcd, terms.values())
    return Extent(0, tuple((g, s // step) for g, s in terms.items()))
