"""explain: the channel groups of a model in words, and why each is coupled or frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate
from torch import nn

from ..coupling.residual import find_branches
from ..trials.trials import channel_groups
from ..types import Axis, ChannelGroup, Coupling

_SHOWN = 6


def explain(model: nn.Module, example_inputs: Any = None, ignore: Sequence[str] = ()) -> str:
    """Groups, members, what couples them, what is frozen and why, as text.

    Args:
        model, example_inputs, ignore: as for `channel_groups`.
    """
    return describe(channel_groups(model, example_inputs, ignore))


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
        parts.append(tabulate(list(coupling.frozen.items()), headers=["frozen group", "reason"]))
    branches = find_branches(coupling)
    if branches.removable:
        rows = [[b.name, len(b.tensors), ", ".join(b.groups)] for b in branches.removable]
        parts.append(tabulate(rows, headers=["branch that may be dropped", "tensors", "groups inside"]))
    if branches.refused:
        parts.append(tabulate(list(branches.refused.items()), headers=["residual add that must stay", "reason"]))
    parts += [f"note: {note}" for note in coupling.notes]
    return "\n\n".join(parts)


def _group(group: ChannelGroup, coupling: Coupling) -> str:
    exact = "" if group.zero_exact else "; a statistic runs over them, so removing is not the same as zeroing"
    lines = [f"{group.name}: {group.size} channels{exact}"]
    for role in dict.fromkeys(m.role for m in group.members):
        axes = [_slots(m.axis, m.slots.shape[1]) for m in group.members if m.role == role]
        more = f", … ({len(axes)} in all)" if len(axes) > _SHOWN else ""
        lines.append(f"  {role}: {', '.join(axes[:_SHOWN])}{more}")
    own = {m.axis for m in group.members}
    edges = coupling.graph.edges(own, data=True)
    reasons = dict.fromkeys(f"{e['kind']}: {e['where']}" for a, b, e in edges if a in own and b in own)
    shown = [r for r in reasons if not r.startswith(("norm", "bias", "input"))] or list(reasons)
    for reason in shown[:_SHOWN]:
        lines.append(f"  coupled by {reason}")
    if len(shown) > _SHOWN:
        lines.append(f"  … and {len(shown) - _SHOWN} more")
    return "\n".join(lines)


def _slots(axis: Axis, each: int) -> str:
    return f"{axis} x{each}" if each > 1 else str(axis)
