"""What a network costs as a function of its widths: one interface for measured and for counted costs.

`cost.tables(coupling, options)` gives the solver's tables, `cost.total(coupling, widths)` the predicted total. The
costs here are counted from shapes, so they do not depend on the machine: multiply-accumulates, parameters, a
roofline, and a caller's own function. `memory.MemoryCost` and `measured.MeasuredLatency` have the same interface.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Protocol, runtime_checkable

import numpy as np
from torch import fx, nn

from ..arguments import check_called, is_positive, shown
from ..errors import LatencyError
from ..solver import CostTable, Term
from ..tracing.graph import of
from ..types import Coupling, Extent, Inputs
from .grids import Grid, Range, adaptive_grid
from .layers import Layer, layers

Options = Mapping[str, Sequence[int]]
"""Ascending widths that each group may have."""

# Counted costs are nearly always bilinear in the two widths, which three lines reveal. For the others (a quadratic
# attention, the corner of a roofline), lines are added up to this number.
_MOST_LINES = 17


Sized = tuple[nn.Module, Coupling, Mapping[str, int] | None]
"""A network, its coupling, and the widths of its groups (None: all channels)."""


@dataclass(frozen=True, slots=True)
class Measured:
    """End-to-end costs of networks, and how quiet the machine was.

    Attributes:
        costs: of each network.
        scatter: quartile distance of the first network's times, relative to their median; 0 for a counted cost.
        waited: as in `NetworkTiming`.
    """

    costs: tuple[float, ...]
    scatter: float = 0.0
    waited: float = 0.0


@runtime_checkable
class Cost(Protocol):
    """A resource that a network uses, additive over tables.

    Attributes:
        resource: name of the budget it counts towards ("latency", "macs", "params", "memory", or any other).
        unit: of its figures, for display.
        timed: whether networks must be timed to know their cost, of which the tables' total is an estimate then.
    """

    @property
    def resource(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def timed(self) -> bool: ...

    def tables(self, coupling: Coupling, options: Options) -> tuple[CostTable, ...]:
        """What each layer costs at the widths that the groups may have."""
        ...

    def total(self, coupling: Coupling, widths: Mapping[str, int] | None = None) -> float:
        """The predicted total at given widths (None: dense), in `unit`."""
        ...

    def limits(self, coupling: Coupling, amount: float) -> dict[str, float]:
        """The resources of `tables` that have to stay within an amount of this cost, each with its limit."""
        ...

    def measure(self, networks: Sequence[Sized], inputs: Inputs) -> Measured:
        """End-to-end cost of each network."""
        ...


class CountedCost:
    """A cost that does not depend on the machine: equal networks cost the same, so nothing needs calibrating."""

    resource = ""
    unit = ""
    timed = False

    def tables(self, coupling: Coupling, options: Options) -> tuple[CostTable, ...]:
        """See `Cost`."""
        raise NotImplementedError

    def total(self, coupling: Coupling, widths: Mapping[str, int] | None = None) -> float:
        """See `Cost`."""
        raise NotImplementedError

    def limits(self, coupling: Coupling, amount: float) -> dict[str, float]:
        """See `Cost`."""
        return {self.resource: amount}

    def measure(self, networks: Sequence[Sized], inputs: Inputs) -> Measured:
        """See `Cost`."""
        return Measured(tuple(self.total(coupling, widths) for _, coupling, widths in networks))


class LayerCost(CountedCost):
    """A cost that is the sum over layers of a function of (layer, n_in, n_out)."""

    def at(self, layer: Layer, n_in: int, n_out: int) -> float:
        """What one layer costs, in `unit`."""
        raise NotImplementedError

    def tables(self, coupling: Coupling, options: Options) -> tuple[CostTable, ...]:
        dense = coupling.widths()
        grids: dict[tuple[str, Range, Range], Grid] = {}
        found = []
        for layer in layers(coupling):
            ranges = Range.of(layer.inputs, options, dense), Range.of(layer.output, options, dense)
            key = (layer.key, *ranges)
            if key not in grids:
                grids[key] = exact_grid(*ranges, lambda i, o, layer=layer: self.at(layer, i, o))  # type: ignore[misc]
            found.append(cost_table(layer, grids[key], self.resource))
        return tuple(found)

    def total(self, coupling: Coupling, widths: Mapping[str, int] | None = None) -> float:
        widths = coupling.widths() if widths is None else widths
        return float(sum(self.at(layer, *layer.widths(widths)) for layer in layers(coupling)))


class MacsCost(LayerCost):
    """Multiply-accumulates of convolutions, matrix products and attention (formulas of `torch.utils.flop_counter`)."""

    resource = "macs"
    unit = "MACs"

    def at(self, layer: Layer, n_in: int, n_out: int) -> float:
        return macs(layer, n_in, n_out)


@dataclass(frozen=True, slots=True)
class RooflineCost(LayerCost):
    """Latency bound per layer: the longer of computing (2 FLOP a MAC) and moving bytes, in milliseconds.

    Attributes:
        flops_per_s: sustained floating point operations per second.
        bytes_per_s: sustained memory bandwidth.
    """

    flops_per_s: float
    bytes_per_s: float
    resource = "latency"
    unit = "ms"

    def __post_init__(self) -> None:
        for name in ("flops_per_s", "bytes_per_s"):
            value = getattr(self, name)
            if not is_positive(value):
                raise LatencyError(f"RooflineCost({name}={shown(value)}): give a positive number, e.g. 19.5e12")

    def at(self, layer: Layer, n_in: int, n_out: int) -> float:
        compute = 2 * macs(layer, n_in, n_out) / self.flops_per_s
        return 1e3 * max(compute, layer.bytes(n_in, n_out) / self.bytes_per_s)


@dataclass(frozen=True, slots=True)
class CallableCost(LayerCost):
    """A caller's own function (layer, n_in, n_out) -> cost.

    Attributes:
        function: must give a finite number of at least 0 for every layer; 0 for those that do not count.
        resource, unit: its budget's name and the unit of its figures.
    """

    function: Callable[[Layer, int, int], float]
    resource: str = "latency"
    unit: str = "ms"

    def __post_init__(self) -> None:
        check_called("function", self.function, LatencyError, ("a layer", "its n_in", "its n_out"))

    def at(self, layer: Layer, n_in: int, n_out: int) -> float:
        found = self.function(layer, n_in, n_out)
        try:
            value = float(found)
        except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers.
            value = nan
        if not (isfinite(value) and value >= 0):
            raise LatencyError(
                f"the cost function returned {shown(found)} for {layer.name} at widths ({n_in}, {n_out}): it must "
                "return a finite number of at least 0"
            )
        return value


class ParamsCost(CountedCost):
    """Number of parameters, each tensor once however often it is used.

    Buffers do not count. The trace does not mark them: they are told by what reads them (running statistics), by an
    integer dtype, or, where the forward does not reach them, by their absence from `Traced.unused`.
    """

    resource = "params"
    unit = "parameters"

    def tables(self, coupling: Coupling, options: Options) -> tuple[CostTable, ...]:
        return tuple(
            counted_table(name, shape, 1, coupling, options, self.resource)
            for name, shape in parameter_shapes(coupling).items()
        )

    def total(self, coupling: Coupling, widths: Mapping[str, int] | None = None) -> float:
        widths = coupling.widths() if widths is None else widths
        return float(sum(np.prod([e.at(widths) for e in shape]) for shape in parameter_shapes(coupling).values()))


def macs(layer: Layer, n_in: int, n_out: int = 0) -> float:
    """Multiply-accumulates of one layer; 0 for operators without products of matrices."""
    if layer.op in _RECURRENT:
        return _recurrent_macs(layer, n_in, n_out)
    if layer.op == "_trilinear":
        return _trilinear_macs(layer, n_in, n_out)
    from torch.utils.flop_counter import flop_registry  # It imports Triton.

    formula = flop_registry.get(getattr(layer.function, "overloadpacket", None))
    if formula is None:
        return 0.0
    args, kwargs, results = layer.shapes(n_in, n_out)
    return float(formula(*args, **kwargs, out_val=results[0])) / 2


_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


def _recurrent_macs(layer: Layer, n_in: int, n_out: int) -> float:
    """Every weight matrix is used once for every step of every sequence."""
    args, _, _ = layer.shapes(n_in, n_out)
    packed = layer.function._overloadname == "data"  # type: ignore[attr-defined]
    steps = math.prod(args[0][:-1])
    return float(steps * sum(math.prod(shape) for shape in args[2 + packed] if len(shape) == 2))


def _trilinear_macs(layer: Layer, n_in: int, n_out: int) -> float:
    """Every weight is used once for every pair of rows: `rules.matrices.bilinear` says what the arguments are."""
    (a, weight, b), expands = layer.shapes(n_in, n_out)[0][:3], layer.args[3:6]
    shapes = []
    for shape, expand in zip((a, weight, b), expands, strict=True):
        row = list(shape)
        for dim in sorted(expand):
            row.insert(dim, 1)
        shapes.append(row)
    return float(math.prod(max(sizes) for sizes in zip(*shapes, strict=True)))


def parameter_shapes(coupling: Coupling) -> dict[str, tuple[Extent, ...]]:
    """Shape of every parameter as extents, by `state_dict` name; those the forward does not reach keep theirs."""
    traced = coupling.traced
    statistics, unused = _running_statistics(traced.graph), set(traced.unused)
    reached = {str(n.target): n.name for n in traced.graph.nodes if n.op == "get_attr" and not of(n).constant}
    found: dict[str, tuple[Extent, ...]] = {}
    for name, spec in traced.tensors.items():
        if name in unused:
            found[name] = tuple(map(Extent, spec.shape))
        elif name in reached and name not in statistics and spec.dtype.is_floating_point:
            found[name] = coupling.shapes[reached[name]]
    return found


def _running_statistics(graph: fx.Graph) -> set[str]:
    """Buffers that batch norms read as running mean and variance."""
    found = set()
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        for argument, value in zip(schema.arguments if schema else (), node.args, strict=False):
            if argument.name.startswith("running_") and isinstance(value, fx.Node):
                found.add(str(value.target))
    return found


def exact_grid(in_range: Range, out_range: Range, function: Callable[[int, int], float]) -> Grid:
    """The grid of a cost that is cheap to evaluate."""
    return adaptive_grid(
        in_range,
        out_range,
        lambda points: [function(i, o) for i, o in points],
        lambda values: 1e-9 + 1e-3 * float(np.abs(values).max()),
        first=3,
        most=_MOST_LINES,
    )


def cost_table(layer: Layer, grid: Grid, resource: str) -> CostTable:
    """A layer's grid in the solver's terms."""
    return CostTable(layer.name, *_axes(layer.inputs, layer.output), *_grid_arrays(grid), resource=resource)


def _axes(inputs: Extent, output: Extent | None) -> tuple[tuple[Term, ...], tuple[Term, ...], int, int]:
    output = output or Extent(0)
    terms = tuple(tuple(Term(group, scale) for group, scale in e.terms) for e in (inputs, output))
    return terms[0], terms[1], inputs.fixed, output.fixed


def _grid_arrays(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.array(grid.in_widths), np.array(grid.out_widths), grid.values


def counted_table(
    name: str, shape: Sequence[Extent], unit: float, coupling: Coupling, options: Options, resource: str
) -> CostTable:
    """`unit` times the number of elements of a tensor, as a table over its one or two varying dimensions."""
    dense = coupling.widths()
    inputs, output, count = _two_extents(shape)
    ranges = Range.of(inputs, options, dense), Range.of(output, options, dense)
    grid = exact_grid(*ranges, lambda i, o: unit * count(i, o))
    return CostTable(name, *_axes(inputs, output), *_grid_arrays(grid), resource=resource)


def _two_extents(shape: Sequence[Extent]) -> tuple[Extent, Extent | None, Callable[[int, int], float]]:
    """The two varying dimensions of a tensor (input last), and its size as a function of them."""
    varying = [e for e in shape if e.terms]
    fixed = float(np.prod([e.fixed for e in shape if not e.terms]))
    if not varying:
        return Extent(0), None, lambda _i, _o: fixed
    if len(varying) == 1:
        return varying[0], None, lambda i, _o: fixed * i
    if len(varying) > 2:
        raise LatencyError(
            f"a tensor with {len(varying)} prunable dimensions cannot be counted: ignore one of its layers"
        )
    return varying[1], varying[0], lambda i, o: fixed * i * o
