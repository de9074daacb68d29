"""Is the coupling of a pruned network the original one, restricted to the slots that stayed?"""

from __future__ import annotations

import numpy as np

from ..types import Axis, Coupling, Links, Mismatch, Plan
from .slicing import removed_slots

REMEDY = (
    "A constant in the forward may depend on a width: pass ignore=[...] with the layers around it, or compute it "
    "from a shape"
)


def miscoupled(before: Coupling, after: Coupling, plan: Plan) -> Mismatch | None:
    """How the pruned network is coupled otherwise than before. It is not if two slots are coupled if and only if they
    were before, and slot by slot through the same operators."""
    return _other_channels(before, after, plan) or _other_wiring(before, after, plan)


def _other_channels(before: Coupling, after: Coupling, plan: Plan) -> Mismatch | None:
    """None if the channels of `after` are those of `before` that the plan keeps: the same slots, coupled alike.

    Axes that are down to one slot have no labels any more, so groups of width 1 are not compared.
    """
    old, new = _channel_ids(before, plan), _channel_ids(after, Plan())
    shared = [axis for axis in old if axis in new and len(old[axis]) == len(new[axis])]
    if not shared:
        return None
    a, b = (np.concatenate([ids[axis] for axis in shared]) for ids in (old, new))
    compared = (a >= 0) & (b >= 0)
    # A single channel has no label: what meets it seems to meet something fixed, and is not followed any further. That
    # nothing else is wrong there, trials have shown at other widths.
    single = any(len(row) == 1 for row in plan.values())
    fixed = _fixed(after)[b] & ~_fixed(before)[a] & compared
    if fixed.any() and not single:
        place = np.repeat(np.arange(len(shared)), [len(old[axis]) for axis in shared])
        return _at(shared[place[np.flatnonzero(fixed)[0]]], "lead to something that may not change, other", before)
    # A branch that is gone may have held channels together.
    held = compared & ~(_fixed(before)[a] | _fixed(after)[b]) if single else compared
    whole = bool(plan.dropped) or _is_function(a[held], b[held])
    if whole and _is_function(b[compared], a[compared]) and not (compared ^ (a >= 0)).any():
        return None
    pairs = np.unique(np.stack([a[compared], b[compared]]), axis=1)
    place = np.repeat(np.arange(len(shared)), [len(old[axis]) for axis in shared])
    repeated = pairs[1][np.flatnonzero(np.bincount(pairs[1])[pairs[1]] > 1)] if pairs.size else np.array([])
    wrong = np.flatnonzero(np.isin(b, repeated) | (compared ^ (a >= 0)))
    axis = shared[place[wrong[0]]] if len(wrong) else shared[0]
    return _at(axis, "are coupled to other channels", before)


def _fixed(coupling: Coupling) -> np.ndarray:
    """Which channels, numbered over all groups, may not be removed."""
    groups = coupling.groups
    return np.repeat([g.frozen is not None for g in groups], [g.size for g in groups])


def _is_function(keys: np.ndarray, values: np.ndarray) -> bool:
    """Whether equal keys (not negative) have equal values."""
    if not len(keys):
        return True
    found = np.empty(keys.max() + 1, dtype=values.dtype)
    found[keys] = values
    return bool((found[keys] == values).all())


def _at(axis: Axis, how: str, before: Coupling) -> Mismatch:
    return Mismatch(
        f"after pruning, the channels of {axis} {how} than before. {REMEDY}",
        tuple(g.name for g in before.groups if any(m.axis == axis for m in g.members)),
    )


def _channel_ids(coupling: Coupling, plan: Plan) -> dict[Axis, np.ndarray]:
    """For every axis, the channel (numbered over all groups) of each slot that stays, -1 for none."""
    sizes = {t: s.shape for t, s in coupling.traced.tensors.items()}
    ids: dict[Axis, np.ndarray] = {}
    start = 0
    for group in coupling.groups:
        kept = np.asarray(plan[group.name]) if group.name in plan else np.arange(group.size)
        numbers = np.full(group.size, -2)
        numbers[kept] = start + kept if len(kept) > 1 else -1
        for m in group.members:
            row = ids.setdefault(m.axis, np.full(sizes[m.axis.tensor][m.axis.dim], -1))
            row[m.slots] = numbers[:, None]
        start += group.size
    return {axis: row[row > -2] for axis, row in ids.items()}


def _other_wiring(before: Coupling, after: Coupling, plan: Plan) -> Mismatch | None:
    """None if slots of two axes that meet after pruning met before.

    A channel may have several slots on an axis, and then it is not enough that the right channels meet: `x[:, 2:6]`
    of a network that was pruned may pick others of its slots. Where it has one, `_other_channels` sees all.
    """
    known = {axis: i for i, axis in enumerate(before.links.axes)}
    present = {g.name for g in before.groups}  # Those of dropped branches are not.
    removed = removed_slots(before, Plan({name: row for name, row in plan.items() if name in present}))
    # Label after pruning -> label before; 0 for axes that are not known.
    origin = np.zeros(int(after.links.starts[-1]), dtype=np.int64)
    for index, axis in enumerate(after.links.axes):
        if axis not in known:
            continue
        start, end = before.links.starts[known[axis]], before.links.starts[known[axis] + 1]
        stays = np.ones(end - start, dtype=bool)
        stays[removed.get(axis, [])] = False
        first, last = after.links.starts[index], after.links.starts[index + 1]
        if stays.sum() == last - first:
            origin[first:last] = start + np.flatnonzero(stays)
    several, lies_on = _several(before), _axes(before.links)
    a, b = (origin[side] for side in _across(after.links))
    there = (a > 0) & (b > 0) & (several[a] | several[b])
    a, b = a[there], b[there]
    x, y = _across(before.links)
    there = several[x] | several[y]
    x, y = np.concatenate([x[there], y[there]]), np.concatenate([y[there], x[there]])
    # Stable, as it is ten times as fast on labels, which come in long ascending runs.
    met, near = np.sort(_pair(x, y), kind="stable"), np.sort(_pair(x, lies_on[y]), kind="stable")
    # Of slots that met none of the other's axis, e.g. as they were one head with others, it says nothing.
    matched = _among(_pair(a, lies_on[b]), near) & _among(_pair(b, lies_on[a]), near)
    wrong = np.flatnonzero(matched & ~_among(_pair(a, b), met))
    return _at(before.links.axes[lies_on[a[wrong[0]]]], "meet other slots", before) if len(wrong) else None


def _several(coupling: Coupling) -> np.ndarray:
    """Which labels lie on an axis where a channel has several slots."""
    axes = {m.axis for g in coupling.groups for m in g.members if m.slots.shape[1] > 1}
    marks = [False, *(axis in axes for axis in coupling.links.axes)]
    return np.repeat(marks, np.diff([0, *coupling.links.starts]))


def _pair(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(a << 32 | b)


def _among(keys: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Which keys are in a sorted array."""
    if not len(ordered):
        return np.zeros(len(keys), dtype=bool)
    return np.asarray(ordered[np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)] == keys)


def _axes(links: Links) -> np.ndarray:
    """For every label, which axis it lies on (-1 for label 0, which stands for none)."""
    return np.repeat(np.arange(-1, len(links.axes)), np.diff([0, *links.starts]))


def _across(links: Links) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of labels that are coupled and lie on different axes."""
    if not links.links:
        return np.array([], dtype=np.int64), np.array([], dtype=np.int64)
    a, b = (np.concatenate([getattr(link, side) for link in links.links]).astype(np.int64) for side in ("a", "b"))
    axis = _axes(links)
    differ = axis[a] != axis[b]
    return a[differ], b[differ]
