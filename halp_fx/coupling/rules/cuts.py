"""Operators that cut a dimension into pieces: what they cut at is a number of unknown origin."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import fx

from ...tracing.graph import of, op, values_unused, written_through_alias
from ..algebra import Algebra, Call, Plane, Planes, Value, simplify, varying
from .registry import register_rule
from .shapes import shape_only

aten = torch.ops.aten


def cut(call: Call, algebra: Algebra) -> Planes | list[Planes]:
    """`slice`, `select`, `split`, `unbind` …: pieces of a dimension.

    Where the program cuts a labelled dimension is a number of unknown origin. It is taken to follow the width: the
    pieces keep their proportions, so `c // 4` of c channels go with the other three quarters in units of one and
    three. If it does not, a trial shows.
    """
    x: Value = call.args[0]
    dim = int(call.arg(*_DIM_ARGUMENT.get(call.op, (1, "dim")), 0)) % max(x.ndim, 1)
    if shape_alone(call.node, dim):
        x = replace(x, planes=tuple(p for p in x.planes if dim not in varying(p)))
        return shape_only(replace(call, args=(x, *call.args[1:])), algebra)
    step = int(call.arg(4, "step", 1)) if call.op == "slice" else 1
    labelled = any(dim in varying(p) for p in x.planes)
    edges = [0, *_cuts(call, x.shape[dim], dim), x.shape[dim]] if labelled else []
    sizes = [b - a for a, b in pairwise(edges)]
    for plane in x.planes:
        if dim not in varying(plane) or (len(sizes) == 1 and step == 1):
            continue
        alike = len(set(sizes)) == 1 and step == 1 and call.op not in ("select", "unbind")
        if len(varying(plane)) > 1 and not alike:
            # An index along one side of a grid: every index must keep the same channels.
            algebra.tie(plane, [dim], call, "index")
            continue
        own = _own(sizes, call, algebra) if step == 1 else None
        if own is not None:
            _couple_pieces(plane, dim, own, call, algebra)
            continue
        leaders = _strided(call, x.shape[dim], step) if step > 1 else _leaders(sizes, call, algebra)
        if call.op in ("select", "unbind") or leaders is None:
            algebra.pin(plane, f"{call.where} cuts the channels at a constant position")
        elif step > 1 or (leaders < 0).any() or not plane.all():
            _couple_pieces(plane, dim, leaders, call, algebra)
        else:
            algebra.keep_proportions(plane, dim, leaders, sizes, call)
    pieces = shape_only(call, algebra)
    if isinstance(pieces, list):
        return [_with_one(x.planes, piece, dim) for piece in pieces]
    return _with_one(x.planes, pieces, dim) if call.op == "slice" else pieces


def _with_one(planes: Planes, piece: Planes, dim: int) -> Planes:
    """The planes of a piece: of one without elements, those that it would have with one, but for labels that lie along
    `dim` alone."""
    pairs = [(p, q) for p, q in zip(planes, piece, strict=True) if p.dim() == q.dim()]
    if all(q.shape[dim] for _, q in pairs):
        return piece
    return tuple(simplify(p.narrow(dim, 0, 1)) for p, _ in pairs if varying(p) != (dim,))


def _couple_pieces(plane: Plane, dim: int, leaders: torch.Tensor, call: Call, algebra: Algebra) -> None:
    """Couple every slot with its leader; one without (-1) is of a piece that stays."""
    fixed = (leaders < 0).nonzero().flatten()
    if len(fixed):
        algebra.pin(plane.index_select(dim, fixed), f"{call.where} cuts the channels at a constant position")
    moving = (leaders >= 0).nonzero().flatten()
    algebra.couple(plane.index_select(dim, moving), plane.index_select(dim, leaders[moving]), call, "chunk")


_DIM_ARGUMENT = {
    "split": (2, "dim"),
    "split_with_sizes": (2, "dim"),
    "unsafe_split": (2, "dim"),
    "unsafe_split_with_sizes": (2, "dim"),
    "slice": (1, "dim"),
    "select": (1, "dim"),
    "unbind": (1, "dim"),
}


_CUTS = {"split_with_sizes", "unsafe_split_with_sizes", "slice"}

ONE, OWN = "one", "own"
"""Of unequal pieces: all follow one width, or those of each size one of their own ("own 0,0,2": so do the first two
together, and the third). The second is for who knows that attributes have the sizes (`trials/parting.py`)."""


def is_cut(node: fx.Node) -> bool:
    """Whether a node cuts a dimension at numbers that it is given."""
    return op(node) in _CUTS


def _own(sizes: list[int], call: Call, algebra: Algebra) -> torch.Tensor | None:
    """For every slot the one that it goes with, where pieces of each size follow a width of their own; else None."""
    place = f"{call.place}#{len(sizes)} parts"
    if call.op not in _CUTS or (len(set(sizes)) == 1 and place not in algebra.choices):
        return None
    way, _, firsts = algebra.choose(place, f"{ONE} {','.join(str(sizes.index(n)) for n in sizes)}").partition(" ")
    if way == ONE:
        return None
    starts = [0, *accumulate(sizes)]
    return torch.cat(
        [torch.arange(n, device="cpu") + starts[int(first)] for n, first in zip(sizes, firsts.split(","), strict=True)]
    )


def _leaders(sizes: list[int], call: Call, algebra: Algebra) -> torch.Tensor | None:
    """For every slot the one that it goes with, so that the pieces keep their proportions; None if they have none.

    Where several pieces have one size and others are no multiples of it (C, C and a constant number), those follow a
    width, and the others stay: -1. That is decided once, for at another width C may be that number. Pieces of several
    units each are no such case, nor is the last piece of `chunk`, or of a `split` into pieces of one size: it is what
    is left over.
    """
    units = math.gcd(*sizes)
    width = max((n for n in sizes if sizes.count(n) > 1 and n > 1), default=0)
    others = [n for n in sizes if n % max(width, 1)]
    constant = others and not call.op.endswith("split") and (units == 1 or min(others) == units)
    alike = [str(i) for i, n in enumerate(sizes) if n == width] if constant else []
    reading = algebra.choose(f"{call.place}#{len(sizes)} sizes", ",".join(alike) or "all")
    if reading != "all":
        moving = {int(i) for i in reading.split(",")}
        if len({n for i, n in enumerate(sizes) if i in moving}) > 1:
            return None
        first = sum(sizes[: min(moving)])
        pieces = [torch.arange(first, first + n, device="cpu") for n in sizes]
        return torch.cat([piece if i in moving else torch.full_like(piece, -1) for i, piece in enumerate(pieces)])
    if units == 1 and set(sizes) != {1}:
        return None
    # A trial would be left with one unit of two, which does not show where pieces begin that do not lie side by side.
    few = units == 2 and len(sizes) > 2 and len(set(sizes)) > 1 and "split" not in call.op
    if algebra.choose(f"{call.place}#{len(sizes)} units", "few" if few else "enough") == "few":
        return None
    return torch.cat([torch.arange(n, device="cpu") // (n // units) * (sizes[0] // units) for n in sizes])


def _strided(call: Call, size: int, step: int) -> torch.Tensor | None:
    """As `_leaders`, for every `step`-th slot: runs of `step` slots stay whole."""
    whole = (call.arg(2, "start") or 0) < step and size % step == 0
    return torch.arange(size, device="cpu") // step * step if whole else None


def _cuts(call: Call, size: int, dim: int) -> list[int]:
    """The inner positions at which a dimension is cut, by this call and by other slices of the same tensor."""
    name = call.op.removeprefix("unsafe_")
    if name == "split_with_sizes":
        ends = set(accumulate(call.args[1]))
    elif name == "split":
        ends = set(range(call.args[1], size, call.args[1]))
    elif name == "slice":
        ends = _cuts_of_tensor(call.node.all_input_nodes[0], size, dim)
    else:
        ends = {1}
    return sorted(e for e in ends if 0 < e < size)


def _cuts_of_tensor(node: fx.Node, size: int, dim: int) -> set[int]:
    """Where a tensor is sliced along a dimension, in parts of it along other dimensions, too: `x[:, 1:, :c]` and
    `x[:, :-1, c:]` cut it at the same place."""
    while (above := _whole_of(node, dim)) is not None:
        node, dim = above
    ends: set[int] = set()
    level = [(node, dim)]
    while level:
        parts = [(user, at) for found, at in level for user in found.users if user.all_input_nodes[0] is found]
        level = []
        for user, at in parts:
            if (below := _part(user, at)) is not None:
                level.append((user, below))
            elif op(user) == "slice" and not shape_alone(user, at):
                ends.update(_ends(user, size, at))
    return ends


def _whole_of(node: fx.Node, dim: int) -> tuple[fx.Node, int] | None:
    """The tensor that a node is a part of along other dimensions than `dim`, and which of its dimensions that is."""
    if node.op != "call_function" or not node.all_input_nodes:
        return None
    source = node.all_input_nodes[0]
    for at in {dim, dim + 1} if op(node) == "select" else {dim}:
        if _part(node, at) == dim:
            return source, at
    return None


def _part(node: fx.Node, dim: int) -> int | None:
    """Which dimension of a node's result is dimension `dim` of its argument, where it only takes a part along another
    one; None if it does anything else."""
    if node.target is written_through_alias:
        return dim
    if op(node) not in ("slice", "select") or (of(node).spec is None):
        return None
    given = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
    along = given % len(of(node.all_input_nodes[0]).one.shape)
    if along == dim:
        return None
    return dim - (op(node) == "select" and along < dim)


def shape_alone(node: fx.Node, dim: int) -> bool:
    """Whether a `slice` or `select` along `dim` takes the first or the last element, which there is at any width, and
    only its shape counts: `ones_like(x[:, :1])`, or its sizes alone are read: `weight[0].numel()`."""
    if op(node) == "slice":
        source = node.all_input_nodes[0]
        size = of(source).one.shape[dim] if dim < len(of(source).one.shape) else 0
        taken = _ends(node, size, dim) in ((0, 1), (size - 1, size))
    else:
        taken = op(node) == "select" and node.args[2] in (0, -1)
    return taken and (values_unused(node) or not node.users)


def _ends(node: fx.Node, size: int, dim: int) -> tuple[int, ...]:
    """Where a `slice(x, dim, start, end)` begins and ends, if it is along `dim`."""
    given: list[Any] = [*node.args[1:4], *(0, None, None)[len(node.args[1:4]) :]]
    at, start, end = given
    if at % len(of(node).one.shape) != dim:
        return ()
    return tuple(min(v + size if v < 0 else v, size) for v in (start or 0, size if end is None else end))


register_rule(
    aten.slice,
    aten.select,
    aten.split,
    aten.split_with_sizes,
    aten.unsafe_split,
    aten.unsafe_split_with_sizes,
    aten.unbind,
)(cut)
