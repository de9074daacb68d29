"""explain: the channel groups of a model in words, why each is coupled or frozen, and why any two axes are coupled;
dependency_graph: the same to go on with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from ..arguments import shown
from ..coupling.residual import find_branches
from ..errors import ModelError
from ..fitting import Column, folded, tabled
from ..model.naming import Ignored
from ..trials.trials import channel_groups
from ..types import LAYER, Axis, ChannelGroup, Coupling, Dependency, DependencyGraph, in_runs

_SHOWN = 6
_RUNS = 3


def dependency_graph(
    model: nn.Module, example_inputs: Any = None, ignore: Ignored | Iterable[Ignored] = ()
) -> DependencyGraph:
    """Which axes of a model's parameters depend on which, by what operator, and slot by slot how.

    Its `graph` is a NetworkX graph; `write_graphml` exports it, `halp_fx.reporting.drawing.draw` makes a picture.

    Args:
        model, example_inputs, ignore: as for `channel_groups`.
    """
    return channel_groups(model, example_inputs, ignore).dependencies


def explain(
    model: nn.Module,
    example_inputs: Any = None,
    ignore: Ignored | Iterable[Ignored] = (),
    *,
    between: tuple[str, str] | None = None,
) -> str:
    """Groups, members, what couples them, what is frozen and why, as text.

    Args:
        model, example_inputs, ignore: as for `channel_groups`.
        between: two layers, tensors or axes ("conv1.weight[0]"): only how these two are coupled.

    Raises:
        ModelError: a name in `between` means nothing.
    """
    if between is not None and (isinstance(between, str) or not isinstance(between, Sequence) or len(between) != 2):
        raise ModelError(f"between={shown(between)} must be two names, of layers, tensors or axes")
    coupling = channel_groups(model, example_inputs, ignore)
    return describe(coupling) if between is None else why(coupling.dependencies, *between)


def why(graph: DependencyGraph, one: str, other: str) -> str:
    """Why two layers, tensors or axes are coupled: the shortest path from one to the other in words. If they are not,
    how one depends on the other.

    Raises:
        ModelError: a name means nothing.
    """
    pairs = [(a, b) for a in graph.axes(one) for b in graph.axes(other)]
    if len(pairs) == 1 and graph.axes(one) == graph.axes(other):
        return f"{one} and {other} are the same axis"
    paths = [(a, b, found) for a, b in pairs if (found := graph.path(a, b))]
    if paths:
        a, b, path = min(paths, key=lambda row: len(row[2]))
        return folded("\n".join([f"{a} and {b} have channels in common:", *_steps(a, path)]))
    lines = [f"{one} and {other} are not coupled: no channel has slots on both"]
    beside = [axis for a, b in pairs for axis in graph.beside(a, b)]
    if beside:
        lines.append(f"side by side, they lie along {', '.join(dict.fromkeys(map(str, beside)))}")
    ways = [(a, b, found) for a, b in pairs if (found := graph.way(a, b))]
    if ways:
        a, b, way = min(ways, key=lambda row: len(row[2]))
        first, last = (a, b) if a in (way[0].first, way[0].second) else (b, a)
        lines += [f"{last} depends on {first}:", *_steps(first, way)]
    return folded("\n".join(lines))


def _steps(start: Axis, path: Sequence[Dependency]) -> list[str]:
    """A line for each edge of a path, from its start on."""
    lines, at = [], start
    for step in path:
        forward = at == step.first
        to = step.second if forward else step.first
        if step.kind == LAYER:
            words = f"{to} is computed from {at}"
        else:
            mapped = in_runs(*(step.slots if forward else step.slots[::-1]))
            here, there = (", ".join(side[:_RUNS]) for side in zip(*mapped, strict=True))
            more = ", …" if len(mapped) > _RUNS else ""
            words = f"slots {here}{more} of {at} go with {there}{more} of {to}"
        lines.append(f"  {step.kind}: {words}{f', by {step.where}' if step.where else ''}")
        at = to
    return lines


def describe(coupling: Coupling) -> str:
    """As `explain`, for a coupling at hand."""
    group_of = {m.axis: g.name for g in coupling.groups for m in g.members}
    parts = [
        f"{len(coupling.prunable)} groups may shrink ({sum(g.size for g in coupling.prunable)} channels), "
        f"{len(coupling.frozen)} may not; {len(group_of)} axes"
    ]
    parts += [_group(group, coupling) for group in coupling.prunable]
    if coupling.mended:
        parts.append("attributes that follow a width: " + ", ".join(map(str, coupling.mended)))
    if coupling.frozen:
        parts.append(tabled((Column.name("frozen group"), Column.words("reason")), coupling.frozen.items()))
    branches = find_branches(coupling)
    if branches.removable:
        rows = [[b.name, f"{len(b.tensors)}", ", ".join(b.groups)] for b in branches.removable]
        tensors, inside = Column.number("tensors", gives=2), Column.words("groups inside")
        columns = (Column.name("branch that may be dropped"), tensors, inside)
        parts.append(tabled(columns, rows))
    if branches.refused:
        stays = (Column.name("residual add that must stay"), Column.words("reason"))
        parts.append(tabled(stays, branches.refused.items()))
    parts += [f"note: {note}" for note in coupling.notes]
    return folded("\n\n".join(parts))


def _group(group: ChannelGroup, coupling: Coupling) -> str:
    exact = "" if group.zero_exact else "; a statistic runs over them, so removing is not the same as zeroing"
    lines = [f"{group.name}: {group.size} channels{exact}"]
    for role in dict.fromkeys(m.role for m in group.members):
        axes = [_slots(m.axis, m.slots.shape[1]) for m in group.members if m.role == role]
        more = f", … ({len(axes)} in all)" if len(axes) > _SHOWN else ""
        lines.append(f"  {role}: {', '.join(axes[:_SHOWN])}{more}")
    own = dict.fromkeys(m.axis for m in group.members)
    edges = [e for _, to, e in coupling.graph.edges(own, data=True) if to in own and e["kind"] != LAYER]
    reasons = dict.fromkeys(f"{e['kind']}: {e['where']}" for e in edges)
    shown = [r for r in reasons if not r.startswith(("norm", "bias", "input"))] or list(reasons)
    for reason in shown[:_SHOWN]:
        lines.append(f"  coupled by {reason}")
    if len(shown) > _SHOWN:
        lines.append(f"  … and {len(shown) - _SHOWN} more")
    return "\n".join(lines)


def _slots(axis: Axis, each: int) -> str:
    return f"{axis} x{each}" if each > 1 else str(axis)
