"""What must hold of every `Coupling`: groups partition the slots, and sizes are those that were recorded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy  # Its parts are imported when they are first used.

from ..errors import HalpError
from ..tracing.checking import check_traced
from ..tracing.graph import of
from ..types import Axis, Coupling

_NONE = np.array([], dtype=np.int64)


def check_coupling(coupling: Coupling) -> None:
    """Check a coupling, and the traces that it was made from.

    Every slot of an axis is in one channel at most, and in none only with all that it is coupled to. All that is
    coupled is one channel, and a channel is nothing else. At full widths every size is the recorded one.

    Raises:
        HalpError: names the first group, axis or node of which that does not hold.
    """
    for view in coupling.views():
        check_traced(view.traced)
    # One after the other: each takes for granted what those before it have looked at.
    for look in (_wrong_groups, _wrong_channels, _wrong_sizes, _wrong_maps):
        for why in look(coupling):
            raise HalpError(f"a coupling does not hold: {why}")


def _wrong_groups(coupling: Coupling) -> Iterator[str]:
    sizes = coupling.traced.tensors
    names = [g.name for g in coupling.groups]
    yield from (f"two groups are called {name!r}" for name in names if names.count(name) > 1)
    for group in coupling.groups:
        axes = [m.axis for m in group.members]
        if len(set(axes)) < len(axes):
            yield f"group {group.name!r} names an axis twice"
        if group.frozen == "":
            yield f"group {group.name!r} is frozen without a reason"
        for member in group.members:
            axis, slots = member.axis, member.slots
            if slots.ndim != 2 or len(slots) != group.size or not slots.size:
                yield f"slots of {group.name!r} on {axis} have shape {slots.shape}, for {group.size} channels"
            elif axis.tensor not in sizes or axis.dim >= len(sizes[axis.tensor].shape):
                yield f"group {group.name!r} has a member on {axis}, which the model does not have"
            elif slots.min() < 0 or slots.max() >= sizes[axis.tensor].shape[axis.dim]:
                yield f"group {group.name!r} has slots on {axis} that are not there"


def _channels(coupling: Coupling) -> dict[Axis, np.ndarray]:
    """For every axis that a group reaches, the channel of each slot, numbered over all groups; -1 for none."""
    rows: dict[Axis, np.ndarray] = {}
    start = 0
    for group in coupling.groups:
        for member in group.members:
            spec = coupling.traced.tensors[member.axis.tensor]
            row = rows.setdefault(member.axis, np.full(spec.shape[member.axis.dim], -1))
            if member.slots.size != np.unique(member.slots).size or (row[member.slots] >= 0).any():
                raise HalpError(f"a coupling does not hold: {group.name!r} shares slots of {member.axis}")
            row[member.slots] = np.arange(start, start + group.size)[:, None]
        start += group.size
    return rows


def _wrong_channels(coupling: Coupling) -> Iterator[str]:
    """Channels are the connected components of slots: of those on axes of parameters, the others only lead on."""
    links, rows = coupling.links, _channels(coupling)
    strange = [axis for axis in rows if axis not in set(links.axes)]
    yield from (f"{axis} is in a group, but has no labels" for axis in strange)
    count = int(links.starts[-1])
    a, b = (np.concatenate([_NONE, *(getattr(link, side) for link in links.links)]) for side in ("a", "b"))
    edges = scipy.sparse.coo_matrix((np.ones(len(a)), (a, b)), (count, count))
    component = scipy.sparse.csgraph.connected_components(edges, directed=False)[1]
    channel = np.full(count, -1)
    lasting = np.zeros(count, dtype=bool)
    for axis, start, end in zip(links.axes, links.starts, links.starts[1:], strict=False):
        lasting[start:end] = axis.tensor in coupling.traced.tensors
        if axis in rows:
            channel[start:end] = rows[axis]
    for what, one, other in (("coupled slots", component, channel), ("a channel's slots", channel, component)):
        keys, values = one[lasting], other[lasting]
        keys, values = keys[channel[lasting] >= 0], values[channel[lasting] >= 0]
        first = np.full(int(keys.max(initial=-1)) + 1, -1)
        first[keys] = values
        if (first[keys] != values).any():
            label = np.flatnonzero(lasting & (channel >= 0))[np.flatnonzero(first[keys] != values)[0]]
            yield f"{what} on {_axis(coupling, label)} do not belong together"
    owned = np.isin(component, component[lasting & (channel >= 0)]) & lasting & (channel < 0)
    if owned.any():
        label = int(np.flatnonzero(owned)[0])
        yield f"a slot of {_axis(coupling, label)} is coupled to a channel, but in no group"


def _axis(coupling: Coupling, label: int) -> Axis:
    return coupling.links.axes[int(np.searchsorted(coupling.links.starts, label, side="right")) - 1]


def _wrong_sizes(coupling: Coupling) -> Iterator[str]:
    """Extents at full widths are what was recorded, and only what may shrink is part of them."""
    widths, frozen = coupling.widths(), coupling.frozen
    for view in coupling.views():
        for node in view.traced.graph.nodes:
            if node.name not in view.shapes:
                yield f"node {node.name} has no shape"
                continue
            extents, spec = view.shapes[node.name], of(node).spec
            strange = [name for e in extents for name, _ in e.terms if name not in widths or name in frozen]
            if strange:
                yield f"the shape of {node.name} follows {strange[0]!r}, which cannot shrink"
                continue
            shape = tuple(e.at(widths) for e in extents)
            if shape != (() if spec is None else spec.shape):
                yield f"{node.name} has shape {shape} at full widths, but gave {spec and spec.shape}"
    for edit in (*coupling.edits, *coupling.mended):
        if edit.extent.at(widths) % edit.divisor:
            yield f"{edit} is no whole number"


def _wrong_maps(coupling: Coupling) -> Iterator[str]:
    """Where channels lie in arguments of restricted operators, and in computed weights."""
    nodes = {node.name: node for node in coupling.traced.graph.nodes}
    sizes = {g.name: g.size for g in coupling.groups}
    counts = np.array([*sizes.values(), 1])  # The last is for places of no group (-1), the groups' are by index.
    for name, maps in coupling.restricted.items():
        if name not in nodes:
            yield f"{name} is restricted, which is no node"
        for groups, channels in (row for found in maps for row in found.dims.values()):
            known = len(groups) == len(channels) and groups.max(initial=-1) < len(sizes)
            if not known or ((groups >= 0) & (channels >= counts[groups])).any():
                yield f"{name} is restricted to channels that are not there"
    for weight in coupling.computed:
        if weight.node not in nodes or not weight.sources <= coupling.traced.tensors.keys():
            yield f"{weight.node} is no weight that is computed from parameters"
            continue
        shape = of(nodes[weight.node]).one.shape
        for part in weight.parts:
            if len(part.channels) != shape[part.dim] or part.channels.max(initial=-1) >= sizes.get(part.group, 0):
                yield f"channels of {part.group!r} do not lie in {weight.node} as said"
