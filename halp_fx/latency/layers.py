"""Coupling -> layers: the operators of a network that do work, each replayable at any widths.

`layers(coupling)` takes a `Coupling` and returns one `Layer` per operator of the traced graph that moves or computes
data. Views, allocations and tuple access cost nothing and are left out. A layer knows which two widths its shapes
follow, so its time, its MACs and its bytes are functions of (n_in, n_out).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..internals import OpOverload
from ..tracing.graph import getitem, name_of, of, op, overload, written_by
from ..types import Coupling, Extent
from .roles import Roles, find_roles
from .templates import TensorTemplate, fill, render, templates
from .width_arguments import fit_widths, without_widths

aten = torch.ops.aten

# Operators with tensor arguments that only allocate or relabel.
_FREE = frozenset({"_unsafe_view", "detach", "alias", "lift_fresh", "empty_like", "new_empty", "new_empty_strided"})


@dataclass(frozen=True, slots=True)
class Layer:
    """One operator call of the network.

    Attributes:
        name: "module/node", unique in the network; "forward/node" for what the model's own forward runs.
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

        def build(template: TensorTemplate) -> torch.Tensor:
            return template.build(n_in, n_out, device, generator)

        return fit_widths(
            self.function, fill(self.args, build), fill(dict(self.kwargs), build), *self._sizes(n_in, n_out)
        )

    def shapes(self, n_in: int, n_out: int = 0) -> tuple[tuple[Any, ...], dict[str, Any], tuple[tuple[int, ...], ...]]:
        """As `arguments`, with a shape in place of each tensor, and the shapes of the results."""

        def make(template: TensorTemplate) -> tuple[int, ...]:
            return template.shape(n_in, n_out)

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


def layers(coupling: Coupling, channels_last: frozenset[str] = frozenset()) -> tuple[Layer, ...]:
    """Every operator of the network that does work, in the order of the forward. Found once for each coupling: who
    looks for widths asks for the costs of many.

    Args:
        channels_last: nodes whose tensors lie so, however the network has them (`layouts`).
    """
    known = _known.get(id(coupling))
    if known is None:
        known = _known[id(coupling)] = {}
        weakref.finalize(coupling, _known.pop, id(coupling), None)
    if channels_last not in known:
        widths, nodes = coupling.widths(), coupling.traced.graph.nodes
        known[channels_last] = tuple(_layer(node, coupling, widths, channels_last) for node in nodes if does_work(node))
    return known[channels_last]


_known: dict[int, dict[frozenset[str], tuple[Layer, ...]]] = {}
"""By the identity of a coupling, as long as that lives: it holds mappings, and has no hash."""


def does_work(node: fx.Node) -> bool:
    """Whether a node of a trace reads or writes tensor data."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, OpOverload):
        return False
    relabels = target.is_view or torch.Tag.inplace_view in target.tags
    return not relabels and op(node) not in _FREE and any(_tensor_nodes(node))


def _tensor_nodes(node: fx.Node) -> Iterator[fx.Node]:
    """Tensor arguments, those in lists too, with repeats, in order."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return (n for n in found if of(n).spec is not None)


def _layer(node: fx.Node, coupling: Coupling, widths: Mapping[str, int], channels_last: frozenset[str]) -> Layer:
    target = overload(node)
    results = _result_nodes(node)
    roles = find_roles(list(_tensor_nodes(node)), results, coupling, op(node), node)
    template = _templates(roles, coupling, widths, {*written_by(node)}, channels_last)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), template)  # type: ignore[arg-type]
    args, kwargs = _plain(args), _plain(kwargs)
    key = f"{target.name()}({render(without_widths(target, args))}{', ' if kwargs else ''}{render(kwargs)})"
    return _make(node, op(node), key, roles, widths, target, tuple(args), kwargs, tuple(map(template, results)))


def layer_of_unit(
    last: fx.Node,
    inputs: list[fx.Node],
    results: list[fx.Node],
    coupling: Coupling,
    function: Callable[..., Any],
    op: str,
    text: str,
    channels_last: frozenset[str] = frozenset(),
) -> Layer:
    """A layer that stands for several operators: `function` takes the tensors of `inputs` in this order.

    Args:
        last: the node that names it.
        op, text: its name, and what its operators do, for the signature.
        channels_last: as for `layers`.
    """
    widths = coupling.widths()
    roles = find_roles(inputs, results, coupling, op, None)
    template = _templates(roles, coupling, widths, set(), channels_last)
    args = tuple(map(template, inputs))
    key = f"{op}({render(args)}) {text}"
    return _make(last, op, key, roles, widths, function, args, {}, tuple(map(template, results)))


def _make(
    node: fx.Node,
    op: str,
    key: str,
    roles: Roles,
    widths: Mapping[str, int],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    results: tuple[TensorTemplate, ...],
) -> Layer:
    output = roles.output
    dense = (roles.inputs.at(widths), 0 if output is None else output.at(widths))
    return Layer(
        *(name_of(node), of(node).module, op, key, roles.inputs, output, dense),
        *(function, args, kwargs, results, (node.name,)),
    )


def _templates(
    roles: Roles,
    coupling: Coupling,
    widths: Mapping[str, int],
    written: set[fx.Node],
    channels_last: frozenset[str],
) -> Callable[[fx.Node], TensorTemplate]:
    def template(node: fx.Node) -> TensorTemplate:
        sizes = tuple(roles.size(e, widths) for e in coupling.shapes[node.name])
        found = TensorTemplate.of(of(node).one, sizes, node in written, of(node).value)
        return found.channels_last() if node.name in channels_last else found

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
    if of(node).spec is not None:
        return (node,)
    return tuple(u for u in node.users if u.target is getitem and of(u).spec is not None)
