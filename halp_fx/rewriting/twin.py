"""zero: plan -> the zeroed twin, the oracle of a rewrite.

The twin has the original architecture. Every slot of every removed channel is zero where the channel is produced *and*
where it is consumed, so that an activation with f(0) != 0 in between does no harm. Where a statistic runs over
channels (LayerNorm, GroupNorm, a mean or softmax over channels) zeroing is not removing: the twin computes such
operators over the kept channels only. A dropped branch is computed and multiplied by zero where it would be added.

Where that is depends on the path that the forward takes: of several recorded ones (`example_inputs` may be a list), the
twin follows all that fit what has run so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from ..coupling.branches import Place, forwards
from ..coupling.counts import followed_at
from ..coupling.residual import find_branches
from ..coupling.rules.elementwise import pointwise
from ..coupling.rules.registry import find_rule
from ..errors import TraceError
from ..internals import disable_current_modes, tree_flatten, tree_leaves, tree_unflatten
from ..model.copying import copied
from ..model.members import named_tensors
from ..model.naming import by_group
from ..model.preserving import decomposed
from ..tracing.calls import PythonNames, run_in_pieces
from ..tracing.graph import getitem, of, operator, written_through_alias
from ..tracing.handing import OperatorMode
from ..types import Coupling, Plan
from .slicing import index_of, removed_slots

Keep = dict[int, tuple[int, ...]]
"""Dimension -> sorted indices that stay."""


@dataclass(frozen=True, slots=True)
class _Change:
    """What the twin does otherwise at one operator.

    Attributes:
        keeps: what stays of each of its tensors; empty for all.
        shapes: the shapes that its tensors had in the recorded forward.
        silent: the argument that counts for nothing, None if none does.
        number: what its second argument is instead, None if that stays.
    """

    keeps: tuple[Keep, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    silent: int | None = None
    number: float | None = None


_Spot = tuple[str, int]
"""An operator, and how many times it has run in the forward. Counted per operator, because others may come and go with
the dtype."""


@dataclass(frozen=True, slots=True)
class _Path:
    """One recorded forward.

    Attributes:
        marks: the modules whose parameters are read, and the operators at which any path has a change, in order.
        changes: what is done otherwise, and where.
        example: the number of the example that takes it.
    """

    marks: tuple[str, ...]
    changes: Mapping[_Spot, _Change]
    example: int


def zero(model: nn.Module, plan: Plan | Mapping[str, Any], *, coupling: Coupling) -> nn.Module:
    """As `halp_fx.zero`, for a coupling at hand."""
    plan = by_group(plan, coupling)
    dead = removed_slots(coupling, plan)
    twin = copied(model)
    tensors = dict(named_tensors(twin))
    with torch.no_grad():
        for axis, slots in dead.items():
            if tensors[axis.tensor].dtype is torch.bool:
                continue  # A mask: what it picks is zero.
            tensors[axis.tensor].index_fill_(axis.dim, index_of(slots, tensors[axis.tensor]), 0)
    gone = find_branches(coupling).named(plan.dropped) if plan.dropped else ()
    views = forwards(coupling)
    rows = [_changes(view, plan, [b.places[i] for b in gone]) for i, view in enumerate(views)]
    if any(rows):
        changed = {name for changes in rows for name, _ in changes}
        paths = [
            _Path(tuple(_marks(_read_in(view.traced.graph), changed)), changes, view.traced.run.example)
            for view, changes in zip(views, rows, strict=True)
        ]
        twin.forward = partial(_forward, twin, paths, changed)
    return twin


def _changes(view: Coupling, plan: Plan, dropped: Sequence[Place | None]) -> dict[_Spot, _Change]:
    """What one forward's twin does otherwise: at operators with a statistic over channels, and at the adds of dropped
    branches."""
    kept = [np.isin(np.arange(g.size), plan[g.name]) if g.name in plan else np.ones(g.size, bool) for g in view.groups]
    widths = view.widths(plan)
    sides = {place.add: place.side for place in dropped if place is not None}
    changes: dict[_Spot, _Change] = {}
    seen: Counter[str] = Counter()
    for node in view.traced.graph.nodes:
        seen[str(node.target)] += 1
        keeps = tuple(_keep(maps.dims, kept) for maps in view.restricted.get(node.name, ()))
        count = followed_at(node, view.decisions.choices)
        number = count.at(view.shapes, widths) if count is not None else None
        if any(keeps) or node.name in sides or number is not None:
            changes[str(node.target), seen[str(node.target)]] = _Change(
                keeps if any(keeps) else (),
                tuple(of(n).one.shape for n in _tensors(node)) if any(keeps) else (),
                sides.get(node.name),
                number,
            )
    return changes


def _tensors(node: fx.Node) -> Iterator[fx.Node]:
    """The tensors that an operator is given, one by one, as `Call.tensors` has them."""
    leaves = tree_leaves((node.args, [*node.kwargs.values()]))
    return (leaf for leaf in leaves if isinstance(leaf, fx.Node))


def _keep(dims: Mapping[int, tuple[np.ndarray, np.ndarray]], kept: Sequence[np.ndarray]) -> Keep:
    found: Keep = {}
    for dim, (groups, channels) in dims.items():
        stays = np.array([g < 0 or kept[g][c] for g, c in zip(groups, channels, strict=True)])
        if not stays.all():
            found[dim] = tuple(np.flatnonzero(stays).tolist())
    return found


def _read_in(graph: fx.Graph) -> Iterator[tuple[str, list[str]]]:
    """Every operator of a trace, with the parameters and buffers that it reads."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target not in (getitem, written_through_alias):
            read = (n for n in node.all_input_nodes if n.op == "get_attr" and not of(n).constant)
            yield str(node.target), [str(n.target) for n in read]


def _marks(operators: Iterable[tuple[str, Iterable[str]]], changed: set[str], last: str = "") -> Iterator[str]:
    """What tells paths apart (see `_Path`), behind the mark `last`.

    Of a module several parameters in a row are one mark: how many operators it takes, and what they read first, may be
    another matter with values than without.
    """
    for name, read in operators:
        for mark in (f"{tensor.rpartition('.')[0]}." for tensor in read):
            if mark != last:
                yield mark
            last = mark
        if name in changed:
            yield name
            last = name


def _forward(twin: nn.Module, paths: Sequence[_Path], changed: set[str], *args: Any, **kwargs: Any) -> Any:
    names = {id(tensor): name for name, tensor in named_tensors(twin)}
    restrict = _Restrict(paths, changed, names)
    # What was recorded as one operator (a recurrent layer) must count as one here, too.
    functions = PythonNames(restrict.whole, lambda args, result, part: result, lambda function, tensor: None, None)
    with torch.no_grad(), decomposed(), functions, restrict:
        return type(twin).forward(twin, *args, **kwargs)


class _Restrict(OperatorMode):
    """Runs some operators of the forward over a part of their channels, and adds nothing in others."""

    def __init__(self, paths: Sequence[_Path], changed: set[str], names: Mapping[int, str]) -> None:
        super().__init__()
        self.paths = list(paths)
        self.changed = changed
        self.names = names
        self.seen: Counter[str] = Counter()
        self.several = len(paths) > 1
        self.passed, self.last = 0, ""

    def whole(self, func: Any, args: Any, result: Any) -> Any:
        """Run an operator that PyTorch would take to pieces, unless its result is known, and count it as one."""
        if result is None:
            with disable_current_modes():
                result = func(*args)
        self._counted(func, (args, {}))
        return result

    def operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._counted(func, (args, kwargs))
        change = self._change((str(func), self.seen[str(func)]))
        if change.silent == 0 and func._schema.is_mutable:
            args[0].mul_(0)
        elif change.silent is not None:
            args = tuple(a * 0 if i == change.silent else a for i, a in enumerate(args))
        if change.number is not None:
            args = (args[0], change.number, *args[2:])
        if not change.keeps:
            return run_in_pieces(func, args, kwargs)
        _check_lengths(func, (args, kwargs), change)
        return _over_kept(func, args, kwargs, change.keeps)

    def _counted(self, func: Any, given: Any) -> None:
        self.seen[str(func)] += 1
        if self.several:
            self._follow(str(func), given)

    def _follow(self, name: str, given: Any) -> None:
        """Leave the paths that go on in another way."""
        read = [self.names[id(v)] for v in tree_leaves(given) if id(v) in self.names]
        new = tuple(_marks([(name, read)], self.changed, self.last))
        if not new:
            return
        end = self.passed + len(new)
        fitting = [path for path in self.paths if path.marks[self.passed : end] == new]
        if not fitting:
            raise TraceError(
                f"the zeroed twin takes a path that none of the examples takes (at {new[0].rstrip('.')!r}): pass an "
                "example that does in example_inputs=[...], and make coupling and plan from these"
            )
        self.paths, self.passed, self.last = fitting, end, new[-1]

    def _change(self, spot: _Spot) -> _Change:
        changes = [path.changes.get(spot, _Change()) for path in self.paths]
        if any(change != changes[0] for change in changes):
            examples = " and ".join(str(path.example + 1) for path in self.paths)
            raise TraceError(
                f"up to {spot[0]} the forwards of examples {examples} read the same parameters, but go on with other "
                "channels: the zeroed twin cannot tell which of them this is. Pass one example at a time"
            )
        return changes[0]


def _check_lengths(func: Any, given: Any, change: _Change) -> None:
    """Refuse sizes at which it is not known where the channels lie: images x channels in a row, say, of more images."""
    tensors = (v for v in tree_leaves(given) if isinstance(v, torch.Tensor))
    for tensor, keep, shape in zip(tensors, change.keeps, change.shapes, strict=True):
        for dim in keep:
            if tensor.shape[dim] != shape[dim]:
                raise TraceError(
                    f"the zeroed twin runs {operator(func)} over channels that lie in dimension {dim} of a tensor of "
                    f"shape {tuple(tensor.shape)}, and knows where for {shape} alone, as in example_inputs: pass "
                    "inputs of the same size, or make coupling and twin from an example of this size"
                )


def _over_kept(func: Any, args: Any, kwargs: Any, keeps: Sequence[Keep]) -> Any:
    """The operator over what is kept, its results put back among zeros."""
    leaves, tree = tree_flatten((args, kwargs))
    writes = func._schema.is_mutable
    spare = [v.clone() if writes and isinstance(v, torch.Tensor) else v for v in leaves]
    full_args, full_kwargs = tree_unflatten(spare, tree)
    full = func(*full_args, **full_kwargs)
    rest = iter(keeps)
    narrowed = [_narrow(v, next(rest)) if isinstance(v, torch.Tensor) else v for v in leaves]
    small_args, small_kwargs = tree_unflatten(narrowed, tree)
    small = func(*_resized(func, small_args), **small_kwargs)
    keep = keeps[0]
    if isinstance(full, torch.Tensor) and find_rule(func) is pointwise:
        # What is missing of the result is missing of any operand.
        tensors = (v for v in leaves if isinstance(v, torch.Tensor))
        rows = [{d + full.dim() - v.dim(): i for d, i in k.items()} for v, k in zip(tensors, keeps, strict=True)]
        keep = {d: indices for row in rows for d, indices in row.items()}
    if writes:
        pairs = [(v, n) for v, n in zip(leaves, narrowed, strict=True) if isinstance(v, torch.Tensor)]
        for (whole, part), kept in zip(pairs, keeps, strict=True):
            _put_back(whole, part, kept)
        if isinstance(full, torch.Tensor):
            return args[0]  # Operators that write to their first argument return it.
    if isinstance(full, torch.Tensor):
        return _widen(small, full, keep)
    return type(full)(_widen(s, f, keep) for s, f in zip(small, full, strict=True))


def _narrow(tensor: torch.Tensor, keep: Keep) -> torch.Tensor:
    for dim, indices in keep.items():
        tensor = tensor.index_select(dim, index_of(np.array(indices), tensor))
    return tensor


def _put_back(whole: torch.Tensor, part: torch.Tensor, keep: Keep) -> None:
    """Write the kept places of a tensor, of which an operator had a copy; what is not kept becomes zero."""
    if keep:
        index = [torch.as_tensor(keep.get(d, np.arange(n)), device=whole.device) for d, n in enumerate(whole.shape)]
        grids = torch.meshgrid(*index, indexing="ij")
        whole.copy_(torch.zeros_like(whole).index_put(grids, part))


def _resized(func: Any, args: Any) -> tuple[Any, ...]:
    """Size arguments that repeat the shape of the first tensor."""
    x, name = args[0], operator(func)
    if name in ("native_layer_norm", "_fused_rms_norm"):
        return (x, list(x.shape[x.dim() - len(args[1]) :]), *args[2:])
    if name == "native_group_norm":
        return (*args[:3], x.shape[0], x.shape[1], x[0, 0].numel(), *args[6:])
    return tuple(args)


def _widen(small: torch.Tensor, full: torch.Tensor, keep: Keep) -> torch.Tensor:
    if small.shape == full.shape or small.dim() <= max(keep, default=0):
        return small
    if max(keep) >= small.dim():
        return full  # A saved statistic, which only a backward would read.
    result = small
    for dim, indices in keep.items():
        if result.shape[dim] != full.shape[dim]:
            more = len(indices) - result.shape[dim]
            if more > 0:  # A window that slid over what was padded at both ends.
                before = (more + 1) // 2
                indices = tuple(i - before for i in indices[before : len(indices) - (more - before)])
            shape = list(result.shape)
            shape[dim] = full.shape[dim]
            result = result.new_zeros(shape).index_copy_(dim, index_of(np.array(indices), result), result)
    return result
