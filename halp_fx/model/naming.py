"""Parts of a model as callers name them: what is ignored, and which layers a plan speaks of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import ModelError, OtherChannelsError, PlanError
from ..types import ChannelGroup, Coupling, Member
from ..types.plans import Channels, Plan
from .tensors import every_tensor

Ignored = str | nn.Module | torch.Tensor
"""A module, a parameter, the name of one or of a group, or a pattern of names such as "layer1.*"."""


def ignored_names(model: nn.Module, ignore: Ignored | Iterable[Ignored]) -> tuple[str, ...]:
    """What is to be ignored as names of modules, parameters and buffers, and of groups.

    Raises:
        ModelError: an entry is, or matches, nothing in this model.
    """
    if not isinstance(ignore, Ignored | Iterable):
        raise ModelError(f"ignore={ignore!r}: pass names, patterns, modules or parameters of the model")
    entries = [ignore] if isinstance(ignore, Ignored) else list(ignore)
    return tuple(dict.fromkeys(name for entry in entries for name in names_of(model, entry, "ignore")))


def names_of(model: nn.Module, entry: Ignored, argument: str) -> list[str]:
    """Modules with tensors, parameters and buffers, or a group, that an entry means.

    Args:
        argument: that the entry is of, for messages.

    Raises:
        ModelError: it is, or matches, nothing in this model.
    """
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    tensors = [name for name, _, _ in every_tensor(model)]
    owners = {part for name in tensors for part in _around(name)}
    # Modules without tensors have no channels of their own.
    names = _names_of(model, entry, [*modules, *tensors], argument)
    own = [name for name in names if name in owners or name in tensors or name not in modules]
    if not own:
        raise ModelError(
            f"{argument}: {names[0]!r} has no parameters or buffers, so it holds no channels: name the layer whose "
            "channels are meant"
        )
    return _by_first_names(model, own)


def _by_first_names(model: nn.Module, names: Iterable[str]) -> list[str]:
    """What several names may stand for by the one that traces know it by, and what modules share with others."""
    parts = (*model.named_parameters(), *model.named_buffers(), *model.named_modules())
    first = {id(part): name for name, part in parts}
    of = {name: first[id(tensor)] for name, tensor, _ in every_tensor(model)}
    known = of | {name: first[id(module)] for name, module in model.named_modules(remove_duplicate=False)}
    found = dict.fromkeys(known.get(name, name) for name in names)
    shared = (o for name in found for t, o in of.items() if t.startswith(f"{name}.") and not o.startswith(f"{name}."))
    return list(found | dict.fromkeys([*shared]))


def _around(name: str) -> list[str]:
    """The modules that a tensor is in."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _names_of(model: nn.Module, entry: Ignored, names: Sequence[str], argument: str) -> list[str]:
    """Of these names of modules and tensors, or of a group, those that an entry means."""
    if isinstance(entry, str):
        # A second group that a layer makes is called "layer:1".
        if entry in names or re.sub(r":\d+$", "", entry) in names:
            return [entry]
        matching = [name for name in names if fnmatchcase(name, entry)]
        if not matching:
            what = "pattern" if set(entry) & set("*?[") else "name"
            close = get_close_matches(entry, names, 3, 0.5)
            hint = f"did you mean {', '.join(map(repr, close))}?" if close else f"there are {', '.join(names[:6])}, …"
            raise ModelError(f"{argument}: the {what} {entry!r} matches no module, parameter or group; {hint}")
        return matching
    if entry is model:
        raise ModelError(f"{argument} holds the model itself: nothing would be left to prune")
    if not isinstance(entry, nn.Module | torch.Tensor):
        raise ModelError(
            f"{argument} holds {entry!r} ({type(entry).__name__}): pass names, patterns, modules or parameters of the "
            "model"
        )
    known = (*model.named_modules(), *model.named_parameters(), *model.named_buffers())
    own = [name for name, part in known if part is entry]
    if not own:
        raise ModelError(f"{argument} holds a {type(entry).__name__} that is not part of this {type(model).__name__}")
    return own


def by_group(plan: Plan | Mapping[str, Any], coupling: Coupling) -> Plan:
    """A plan that may name any layer, as one that names groups.

    For a layer, the plan lists those of its output channels that are kept; its group keeps the channels they belong to.
    A group that the plan was made for, and that is another here (a graph that was captured has finer ones), is what the
    layers keep that made its channels (`Plan.made_by`).

    Raises:
        PlanError: no such group or layer, a layer keeps a part of one channel, or two names of one group
            differ. OtherChannelsError: a group has other channels than the plan was made for.
    """
    plan = plan if isinstance(plan, Plan) else Plan(plan)
    groups = {g.name: g for g in coupling.groups}
    plan = _by_layers(plan, groups)
    if all(name in groups for name in plan):
        return plan
    kept: dict[str, tuple[int, ...]] = {}
    source: dict[str, str] = {}
    for name, rows in plan.items():
        for group, channels in _resolved(name, rows, groups).items():
            if kept.setdefault(group, channels) != channels:
                raise PlanError(
                    f"the plan names group {group!r} twice, as {source[group]!r} and {name!r}, and they keep different "
                    f"channels ({len(kept[group])} and {len(channels)}): channels of one group go together"
                )
            source.setdefault(group, name)
    return Plan(kept, plan.dropped)


def _by_layers(plan: Plan, groups: Mapping[str, ChannelGroup]) -> Plan:
    """The plan, with layers where its groups are not those of this network; without what it keeps whole of them.

    Raises:
        OtherChannelsError: it takes something from such a group that cannot be taken here.
    """
    homes: dict[str, set[str]] = {}
    for group in groups.values() if plan.made_by else ():
        for member in group.members:
            if member.role == "producer":
                homes.setdefault(member.axis.tensor, set()).add(group.name)
    kept: dict[str, tuple[int, ...]] = {}
    for name, rows in plan.items():
        made, layers = plan.made_for.get(name), [m for m in plan.made_by.get(name, ()) if m.tensor in homes]
        if made is None:
            kept[name] = rows
            continue
        if name in groups and groups[name].channels == made:
            kept[name] = rows
            layers = [m for m in layers if name not in homes[m.tensor]]  # Here in a group of their own.
        elif len(rows) == made.number:
            continue
        elif not layers:
            if name in groups or made.number != made.outputs:
                raise _other_channels(name, made, groups.get(name))
            kept[name] = rows  # A layer of a group that has another name here, or none: looked for by who calls.
        try:
            found = {m.tensor: m.outputs(rows) for m in layers}
            for tensor, outputs in found.items():
                _resolved(tensor, outputs, groups)
        except PlanError as error:
            raise _other_channels(name, made, groups.get(name)) from error
        kept |= found
    return replace(plan, kept=kept)


def _other_channels(name: str, made: Channels, group: ChannelGroup | None) -> OtherChannelsError:
    if group is None:
        here = "there is no such group"
    else:
        here = f"it has {group.channels}" if str(group.channels) != str(made) else "as many, each of other outputs"
    return OtherChannelsError(
        f"the plan was made for a network in which group {name!r} has {made}; here {here}. A graph that another tool "
        "captured (torch.export, Dynamo) may allow other channels than the model itself, for the constants of its "
        "forward are numbers of the graph there: make the plan on what it is applied to"
    )


def _resolved(name: str, rows: tuple[int, ...], groups: Mapping[str, ChannelGroup]) -> dict[str, tuple[int, ...]]:
    """The channels that each group keeps by one entry of a plan."""
    if name in groups:
        return {name: rows}
    found: list[tuple[ChannelGroup, Member]] = [
        (g, m)
        for g in groups.values()
        for m in g.members
        if m.role == "producer" and name in (m.axis.tensor, m.axis.tensor.rpartition(".")[0])
    ]
    axes = {m.axis for _, m in found}
    if not axes:
        names = {n for g in groups.values() for m in g.members for n in (g.name, m.axis.tensor.rpartition(".")[0])}
        close = get_close_matches(name, sorted(names), 3, 0.5) or list(groups)[:6]
        raise PlanError(
            f"the plan names {name!r}, which is no group and no layer with channels of this model; it has "
            f"{', '.join(map(repr, close))}, …"
        )
    if len(axes) > 1:
        raise PlanError(f"the plan names {name!r}, which has several tensors: name one of {', '.join(map(str, axes))}")
    length = sum(m.slots.size for _, m in found)
    if rows[-1] >= length:
        raise PlanError(f"layer {name!r} has {length} output channels: index {rows[-1]} is out of range")
    result = {}
    for group, member in found:
        stays = np.isin(member.slots, rows)
        whole = stays.all(1)
        if (stays.any(1) != whole).any():
            raise PlanError(
                f"layer {name!r}: the plan keeps a part of a channel of group {group.name!r}, which has "
                f"{member.slots.shape[1]} of the layer's outputs each: {member.slots[(stays.any(1) != whole).argmax()]}"
            )
        if not whole.any():
            raise PlanError(f"layer {name!r}: a plan must keep at least one channel of group {group.name!r}")
        result[group.name] = tuple(np.flatnonzero(whole).tolist())
    return result
