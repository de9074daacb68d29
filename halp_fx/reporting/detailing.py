"""A closed session -> the parts of its report: groups, modules, layers, conditions."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import torch
from torch import nn

from ..internals import tree_leaves
from ..latency import Cost, MacsCost, MeasuredLatency, TableLatency
from ..latency.costs import macs
from ..latency.fingerprint import Fingerprint
from ..latency.layers import layers
from ..latency.lookup import cost_at, costs_along
from ..latency.runtimes import device_of
from ..pruning.blocks import in_blocks
from ..pruning.choosing import options_of
from ..pruning.session import Session
from ..solver import CostTable
from ..tracing.graph import FORWARD, class_of, sized_by_values
from ..types import Coupling, Plan
from ..version import __version__
from .details import Conditions, GroupReport, LayerChange, ModuleChange, StepReport, WidthCurve

_MOST_POINTS = 33
"""Of a curve: a report is read, and stays below a megabyte."""


def groups_of(session: Session, widths: Mapping[str, int]) -> tuple[GroupReport, ...]:
    """Every group that could shrink, with what its widths cost and lose.

    Args:
        widths: of the groups in the network that came out; none for a group that went with its branch.
    """
    coupling = session.yardstick.coupling
    options = in_blocks(options_of(coupling, Plan(), session.request), session.yardstick.blocks)
    left, tables, _ = session.yardstick.left(session.best.network.plan)
    own = _touching(_own_tables(session, tables))
    saliency = session.best.network.saliency
    known = saliency.known if saliency is not None else {}
    made: dict[str, list[str]] = {g.name: [] for g in coupling.groups}
    for layer in layers(coupling):
        for name in {n for n, _ in (layer.output.terms if layer.output else ())}:
            made[name].append(layer.module or FORWARD)
    found = []
    for group in coupling.prunable:
        kept = widths.get(group.name, 0)
        at = _thinned({*options[group.name], kept} - {0})
        cost = lost = WidthCurve()
        if kept and group.name in own:
            chosen = {**left.widths(), **widths}
            sums = np.sum([costs_along(t, chosen, group.name, at) for t in own[group.name]], axis=0)
            cost = WidthCurve(at, tuple(map(float, sums)))
        if group.name in known:
            value = known[group.name].value
            there = tuple(w for w in at if w < len(value))
            lost = WidthCurve(there, tuple(float(value[-1] - value[w]) for w in there))
        axes = tuple(str(m.axis) for m in group.members)
        found.append(
            GroupReport(group.name, group.size, kept, axes, tuple(dict.fromkeys(made[group.name])), cost, lost)
        )
    return tuple(found)


def flows_of(coupling: Coupling) -> tuple[tuple[str, str], ...]:
    """Pairs of groups of which a layer computes the second from the first, in the order of the forward."""
    found = {
        (source, target): None
        for layer in layers(coupling)
        if layer.output is not None
        for source, _ in layer.inputs.terms
        for target, _ in layer.output.terms
        if source != target
    }
    return tuple(found)


def changes_of(session: Session, widths: Mapping[str, int]) -> tuple[LayerChange, ...]:
    """Every layer with its cost before and after; empty where nothing was removed."""
    yardstick = session.yardstick
    coupling, cost = yardstick.coupling, yardstick.goals.cost
    if yardstick.tables is None:
        return ()
    left, tables, _ = yardstick.left(session.best.network.plan)
    stay = {t.name for t in tables}
    units = cost.layers(coupling) if isinstance(cost, MeasuredLatency) else layers(coupling)
    known = {layer.name: layer for layer in units}
    dense, chosen = coupling.widths(), {**left.widths(), **widths}
    found = []
    for table in _own_tables(session, yardstick.tables):
        layer = known.get(table.name)
        here = table.name in stay
        found.append(
            LayerChange(
                table.name,
                layer.op if layer else "parameter",
                layer.dense if layer else (0, 0),
                layer.widths(chosen) if layer and here else (0, 0),
                (cost_at(table, dense), cost_at(table, chosen) if here else 0.0),
            )
        )
    return tuple(found)


def modules_of(session: Session, macs: tuple[Mapping[str, float], Mapping[str, float]]) -> tuple[ModuleChange, ...]:
    """Every module with parameters of its own, before and after.

    Args:
        macs: of modules by name, before and after.
    """
    before, after = macs
    small = dict(session.best.network.model.named_modules())
    found = []
    for name, module in session.yardstick.model.named_modules():
        if not list(module.parameters(recurse=False)):
            continue
        now = small.get(name)
        gone = now is None or not list(now.parameters(recurse=False))
        found.append(
            ModuleChange(
                name,
                _described(module),
                "" if now is None or gone else _described(now),
                (_own(module), 0 if now is None else _own(now)),
                (before.get(name, 0.0), after.get(name, 0.0)),
            )
        )
    return tuple(found)


def steps_of(session: Session) -> tuple[StepReport, ...]:
    """The steps before the last, which is the network that came out."""
    return tuple(
        StepReport(
            stop.aim,
            session.yardstick.predict(session.yardstick.total(stop.plan)),
            stop.parameters,
        )
        for stop in session.trail
    )


def given_by(cost: Cost) -> str:
    """What gives times though no network is timed, in words; "" for times that are measured, and other costs."""
    if isinstance(cost, TableLatency):
        return f"the table of {cost.measured.fingerprint.device}"
    return "" if cost.timed or cost.unit != "ms" else f"{type(cost).__name__}, a cost of yours"


def conditions_of(session: Session) -> Conditions:
    """What was pruned, and on what."""
    yardstick = session.yardstick
    args, kwargs = yardstick.inputs
    # A compiled graph is given the numbers of its layers (the epsilons of norms), too.
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.ndim]
    shapes = tuple(f"{'x'.join(map(str, t.shape))} {str(t.dtype).removeprefix('torch.')}" for t in tensors)
    software = f"halp_fx {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"
    name, cost = class_of(yardstick.model), yardstick.goals.cost
    if isinstance(cost, TableLatency):
        there = cost.measured.fingerprint
        timer = f"the sum of layers as timed there: {there.timer}"
        return Conditions(name, shapes, there.device, there.runtime, there.threads, timer, software, given_by(cost))
    if not isinstance(cost, MeasuredLatency):
        return Conditions(name, shapes, software=software, by=given_by(cost))
    here = Fingerprint.of(device_of(args, kwargs), cost.runtime, cost.threads)
    return Conditions(name, shapes, here.device, here.runtime, here.threads, here.timer, software)


def macs_by_module(coupling: Coupling, widths: Mapping[str, int]) -> dict[str, float]:
    """Multiply-accumulates of each module."""
    cost = MacsCost()
    found: dict[str, float] = {}
    for layer in layers(coupling):
        found[layer.module] = found.get(layer.module, 0.0) + cost.at(layer, *layer.widths(widths))
    return found


def work_by_values(coupling: Coupling) -> tuple[float, tuple[str, ...]]:
    """The share of multiply-accumulates that are in layers of which the input's values say how much they do (the heads
    of a detector, for each box that was found), and the modules that these are in."""
    loose = {node.name for node in sized_by_values(coupling.traced.graph)}
    found: dict[str, float] = {}
    total = 0.0
    for layer in layers(coupling) if loose else ():
        count = macs(layer, *layer.dense)
        total += count
        if count and not loose.isdisjoint(layer.nodes):
            name = layer.module or FORWARD
            found[name] = found.get(name, 0.0) + count
    return sum(found.values()) / (total or 1.0), tuple(found)


def _own_tables(session: Session, tables: Sequence[CostTable]) -> list[CostTable]:
    """Those of the cost that steers."""
    steering = session.yardstick.steering
    return [t for t in tables if t.resource in steering]


def _touching(tables: Sequence[CostTable]) -> dict[str, list[CostTable]]:
    found: dict[str, list[CostTable]] = {}
    for table in tables:
        for name in {term.group for term in (*table.inputs, *table.output)}:
            found.setdefault(name, []).append(table)
    return found


def _thinned(widths: set[int]) -> tuple[int, ...]:
    """At most `_MOST_POINTS` of some widths, ascending, both ends among them."""
    row = sorted(widths)
    if len(row) <= _MOST_POINTS:
        return tuple(row)
    return tuple(row[i] for i in np.unique(np.linspace(0, len(row) - 1, _MOST_POINTS).round().astype(int)))


def _own(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


def _described(module: nn.Module) -> str:
    """A module by its class and widths: "Conv2d(64, 128, 3x3)"."""
    kind = type(module).__name__
    pairs = (("in_channels", "out_channels"), ("in_features", "out_features"), ("input_size", "hidden_size"))
    for pair in pairs:
        if all(isinstance(getattr(module, a, None), int) for a in pair):
            sizes = ", ".join(str(getattr(module, a)) for a in pair)
            kernel = getattr(module, "kernel_size", None)
            grouped = getattr(module, "groups", 1)
            more = f", {'x'.join(map(str, kernel))}" if isinstance(kernel, tuple) else ""
            return f"{kind}({sizes}{more}{f', groups={grouped}' if grouped != 1 else ''})"
    for name in ("num_features", "num_channels", "normalized_shape", "num_embeddings"):
        if (size := getattr(module, name, None)) is not None:
            sizes = ", ".join(map(str, size)) if isinstance(size, tuple) else str(size)
            return f"{kind}({sizes})"
    shapes = ("x".join(map(str, p.shape)) for p in module.parameters(recurse=False))
    return f"{kind}({reduce(lambda a, b: f'{a}, {b}', shapes)})"
