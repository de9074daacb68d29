"""couple: a traced graph -> channel groups.

`propagation` runs the rules of all operators. Here is decided what they leave open: what the caller ignores, pieces and
rectangles that must keep their proportions, ties; then `groups` makes channel groups of the classes of slots.
Mathematics and invariants: `docs/coupling.md`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..arguments import a_kind, shown
from ..errors import ModelError
from ..types import AttributeEdit, Axis, ChannelMap, Coupling, Decisions, Further, Links, Tie, Traced
from .algebra import Algebra, compact, varying
from .computed import computed_weights
from .counts import COUNTED, SUMMED, followed_at
from .groups import Partition, free_dimension
from .mends import with_mends
from .propagation import Propagated, propagate


def couple(
    traced: Traced,
    ignore: Sequence[str] = (),
    further: Sequence[Traced] = (),
    decisions: Decisions | None = None,
    frozen: Mapping[Axis, str] | None = None,
) -> Coupling:
    """Find the channel groups of a traced network.

    Args:
        traced: from `trace`. Shapes and costs refer to this graph.
        ignore: names of modules, parameters or groups that must stay as they are.
        further: other traces of the same model (train mode): what they couple is coupled, too.
        decisions: free choices, ties and mended attributes: found by trials, or those of the same network before it
            was pruned.
        frozen: axes that may not shrink, and why.

    Raises:
        ModelError: an entry of `ignore` matches nothing; or something is no trace, or not what it is passed for.
    """
    for trace in (traced, *_row("further", further)):
        if not isinstance(trace, Traced):
            raise ModelError(
                f"couple takes what halp_fx.trace(model, example_inputs) returns, not {a_kind(trace)}; "
                "halp_fx.channel_groups(model, example_inputs) does both"
            )
    if not isinstance(decisions, Decisions | None):
        raise ModelError(f"decisions is {a_kind(decisions)}: pass the `decisions` of a coupling")
    if not isinstance(frozen, Mapping | None) or not all(isinstance(axis, Axis) for axis in frozen or ()):
        raise ModelError(f"frozen={shown(frozen)} must be a mapping from axes (halp_fx.types.Axis) to reasons")
    ignore = (ignore,) if isinstance(ignore, str) else _row("ignore", ignore)
    if not all(isinstance(name, str) for name in ignore):
        raise ModelError(f"ignore={shown(ignore)} must be names of modules, parameters or groups")
    decisions = decisions or Decisions()
    return settle(propagate(traced, further, decisions.choices), ignore, decisions, frozen)


def _row(name: str, given: Any) -> tuple[Any, ...]:
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise ModelError(f"{name} is {a_kind(given)}: pass a list")
    return tuple(given)


def settle(
    found: Propagated, ignore: Sequence[str], decisions: Decisions, frozen: Mapping[Axis, str] | None
) -> Coupling:
    """The second part of `couple`. `found` stays as it is, and `decisions` must have the choices that it follows."""
    traced, further, planes = found.traced, found.further, found.planes
    algebra = found.algebra.copied(decisions.choices)
    ignored = _pin_ignored(algebra, [ignore] if isinstance(ignore, str) else ignore, traced)
    algebra.settle_pieces()
    _settle_rectangles(algebra)
    _tie(algebra, decisions.ties)
    for axis, reason in (frozen or {}).items():
        algebra.pin(_labels(algebra, axis), reason)
    partition = Partition.of(algebra)
    partition = partition.with_frozen({name: f"ignored by the caller ({name!r})" for name in ignored})
    partition = partition.without_products(found.outlines, algebra).inexact_at(_counted(found, algebra.choices))
    first, *others = (
        Further(
            forward,
            {node.name: partition.extents(found.outlines[node]) for node in forward.graph.nodes},
            {} if forward.run.training else _restricted(forward, algebra, partition),
        )
        for forward in (traced, *(t for t in further if t.run.repeatable))
    )
    edits = dict.fromkeys(
        AttributeEdit(e.module, e.attribute, partition.extents(found.outlines[e.node])[e.dim], e.divisor)
        for e in algebra.edits
    )
    unseen = set(traced.unused).difference(*(set(traced.unused) - set(t.unused) for t in further))
    for name in sorted(unseen):
        algebra.notes.setdefault(f"{name}: not reached by the forward, left as it is")
    roles = tuple(algebra.roles.get(i, "other") for i in range(len(algebra.axes)))
    links = Links(tuple(algebra.axes), np.asarray(algebra.starts), tuple(algebra.links), roles)
    coupling = Coupling(
        traced,
        partition.groups,
        links,
        first.shapes,
        tuple(edits),
        tuple(algebra.notes),
        restricted=first.restricted,
        computed=computed_weights(traced.graph, planes, algebra, partition),
        further=tuple(others),
    )
    return with_mends(coupling, replace(decisions, choices=algebra.choices))


def _restricted(traced: Traced, algebra: Algebra, partition: Partition) -> dict[str, tuple[ChannelMap, ...]]:
    return {
        node.name: tuple(partition.channel_map(v, r.along(i)) for i, v in enumerate(r.call.tensors()))
        for node, r in algebra.restricted.items()
        if node.graph is traced.graph
    }


def _counted(found: Propagated, choices: Mapping[str, str]) -> list[np.ndarray]:
    """The labels of what numbers count that follow it."""
    rows: list[np.ndarray] = []
    if not any(choice.startswith((COUNTED, SUMMED)) for choice in choices.values()):
        return rows
    for forward in (found.traced, *found.further):
        for node in forward.graph.nodes:
            count = followed_at(node, choices)
            if count is not None:
                planes = found.planes.get(count.source, ())
                rows += [compact(p).numpy() for p in planes if set(count.dims) & set(varying(p))]
    return rows


def _pin_ignored(algebra: Algebra, ignore: Sequence[str], traced: Traced) -> list[str]:
    """Pin every axis of the ignored modules and parameters; returns the entries that must be names of groups."""
    left = []
    for entry in ignore:
        tensors = {t for t in traced.tensors if t == entry or t.startswith(f"{entry}.")}
        for axis in algebra.axes:
            if axis.tensor in tensors:
                algebra.pin(_labels(algebra, axis), f"ignored by the caller ({entry!r})")
        if not tensors:
            left.append(entry)
    return left


def _settle_rectangles(algebra: Algebra) -> None:
    """Where a plane varies along several dimensions, make every choice of channels leave a rectangle.

    The classes must depend on one of the dimensions alone. Where consumers have not already seen to that, the same
    inner positions are kept in every outer part, which is what `view(b, groups, c // groups, …)` asks for; or, as the
    other choice, whole outer parts.
    """
    found = {(g.data_ptr(), tuple(g.shape), g.stride()): (g, place) for g, place in reversed(algebra.rectangles)}
    if not found:
        return
    # One pass is enough: ties only merge classes, and what depends on one dimension alone still does afterwards.
    for plane, place in reversed(found.values()):
        ids = np.where(plane.numpy() > 0, algebra.classes()[plane.numpy()], -1)
        if free_dimension(ids, varying(plane)) is None:
            positions = algebra.choose(f"{place}#axes", "positions") == "positions"
            algebra.tie_labels(plane, varying(plane)[:-1] if positions else varying(plane)[1:])


def _tie(algebra: Algebra, ties: Sequence[Tie]) -> None:
    """Couple the channels along two axes in equal runs: as many as divide both."""
    for tie in ties:
        classes = algebra.classes()
        labels = (_labels(algebra, axis) for axis in (tie.a, tie.b))
        a, b = (row[np.sort(np.unique(classes[row], return_index=True)[1])] for row in labels)
        runs = math.gcd(len(a), len(b))
        if len(a) and len(b):
            first = a[:: len(a) // runs]
            algebra.tie_channels(
                np.concatenate([np.repeat(first, len(row) // runs) for row in (a, b)]), np.concatenate([a, b])
            )


def _labels(algebra: Algebra, axis: Axis) -> np.ndarray:
    """The labels of an axis; none of one that was pruned down to a single slot."""
    if axis not in algebra.axes:
        return np.array([], dtype=np.int64)
    index = algebra.axes.index(axis)
    return np.arange(algebra.starts[index], algebra.starts[index + 1])
