"""Proof that a rewritten network has the structure its plan asks for, without running a single multiplication.

The rewritten network is traced again. Operator by operator its shapes must be those that the plan's widths give, and
its coupling must be the original coupling restricted to the slots that stayed: two slots are coupled after the
rewrite if and only if they were before. A `chunk` that now cuts in another place changes no shape but does change
the coupling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import fx, nn

from ..coupling.propagation import couple
from ..coupling.sizes import FACTORIES, groups_around, takes_size, takes_sizes
from ..errors import RewriteError, TraceError
from ..model.inputs import normalize_examples
from ..tracing.forward import run_again
from ..tracing.graph import getitem, is_view, of, op, place_of, sized_by_values
from ..types import Coupling, Extent, Inputs, Plan, Traced
from .comparing import REMEDY, check_couplings
from .standins import Silent

# What else may be given a number of boxes.
_TAKES_COUNTS = {"topk", "narrow", "arange", "repeat_interleave"}

# Their whole numbers take part in what they compute.
_COMPUTES = {
    "full",
    "new_full",
    "full_like",
    "fill",
    "fill_",
    "addmm",
    "baddbmm",
    "addbmm",
    "addmv",
    "addcmul",
    "addcdiv",
}
_COMPUTES |= {"addcmul_", "addcdiv_", "channel_shuffle", "native_channel_shuffle", "avg_pool2d", "avg_pool3d"}


def verify(
    small: nn.Module,
    plan: Plan,
    coupling: Coupling,
    example_inputs: Any = None,
    meta_only: bool = False,
    couplings: bool = True,
) -> None:
    """Check `small` against `plan`, in every forward that the coupling was made from.

    Shapes and numbers are compared, except of what depends on how many elements values picked; couplings, if an
    operator took sizes from an unknown source.

    Args:
        meta_only: do not run the network with values if it fails on the meta device, where the original works.
        couplings: compare couplings, too.

    Raises:
        RewriteError: names the first operator that differs; its `groups` are those that the operator handles.
    """
    examples = normalize_examples(small, example_inputs)
    views = coupling.views()
    seen: list[Traced] = []
    other_path = False
    for number, view in enumerate(views):
        if view.traced.run.example >= len(examples):
            continue
        on_meta = meta_only and view.traced.on_meta
        try:
            try:
                found, other = _repeated(small, plan, view, examples, on_meta)
            except RewriteError as error:
                if not any(n.name == error.node and of(n).constant for n in view.traced.graph.nodes):
                    raise
                # It was made afresh: a cache had it under another key than a tagged number. Now it is there.
                found, other = _repeated(small, plan, view, examples, on_meta)
        except RewriteError as error:
            error.view = number
            raise
        seen.append(found)
        other_path = other_path or other
    if couplings and (other_path or any(map(takes_sizes, views))):
        # Otherwise equal shapes and numbers mean equal couplings.
        first, *further = seen
        check_couplings(coupling, couple(first, further=further, decisions=coupling.decisions), plan)


def _repeated(
    small: nn.Module, plan: Plan, coupling: Coupling, examples: Sequence[Inputs], meta_only: bool
) -> tuple[Traced, bool]:
    """The forward again, now of `small`; and whether it ran other operators, where it may."""
    widths = coupling.widths(plan)
    failure: TraceError | None = None
    silent = _silent(small)
    narrow = any(g.size > 1 == widths[g.name] for g in coupling.groups)
    try:
        traced = run_again(small, examples, coupling.traced.run, meta_only, really=not coupling.traced.on_meta)
        recorded: fx.Graph | None = traced.graph
    except TraceError as error:
        failure, recorded = error, error.recorded
    # A width of 1 changes strides, and with them how a linear layer is made up; what stands for a dropped branch does,
    # too: that alone is no mistake.
    loose = _Loose(coupling.traced.graph, recorded, failure is None and (narrow or bool(plan.dropped)))
    before, after = loose.firm(_working(coupling.traced.graph, silent, narrow)), []
    if recorded is not None:
        after = loose.firm(_working(recorded, silent, narrow))
    other_path = False
    for old, new in loose.pairs(before, after, failure is not None):
        if new is None and failure is not None:
            break
        if old is None or new is None or _target(old) != _target(new):
            # In train mode a coin may decide.
            if failure is None and coupling.traced.run.training and coupling.traced.reads:
                other_path = True
                break
            raise _mismatch(old, new, failure, coupling)
        spec = of(new).spec
        if spec is not None and spec.shape != _expected(old, coupling, widths):
            if loose.follows(old, new, coupling.shapes[old.name], _expected(old, coupling, widths)):
                continue
            old, new = _first_wrong(old, new, recorded, coupling, widths)
            raise _mismatch(old, new, None, coupling, _expected(old, coupling, widths))
        _check_numbers(old, new, coupling)
    if failure is not None:
        old = _next_after(failure, coupling.traced.graph, silent, loose)
        # A view that was given -1 may have gone through with another shape than it should have.
        earlier, new = _first_wrong(old, None, failure.recorded, coupling, widths)
        if new is None:
            raise _mismatch(old, None, failure, coupling) from failure
        raise _mismatch(earlier, new, None, coupling, _expected(earlier, coupling, widths)) from failure
    if other_path:
        _check_outputs(coupling.traced, traced, loose)
    return traced, other_path or loose.remade


class _Loose:
    """Nodes of a network, before and after pruning, whose sizes depend on how many elements values picked; and, if
    `making`, calls that may be made up of other operators than before (`remade`: some were)."""

    def __init__(self, before: fx.Graph, after: fx.Graph | None, making: bool) -> None:
        self._making, self.remade = making, False
        self._nodes = sized_by_values(before) | (sized_by_values(after) if after is not None else set())
        self._first = next((n for n in before.nodes if n in self._nodes and of(n).sizes_read), None)

    def firm(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """The nodes without these."""
        return [n for n in nodes if n not in self._nodes]

    def pairs(
        self, before: Sequence[fx.Node], after: Sequence[fx.Node], failed: bool
    ) -> Iterator[tuple[fx.Node | None, fx.Node | None]]:
        """The operators one beside the other. Where the program has read such a size it may go on in another way (no
        box was found): from there on, the operators that both ran."""
        i = j = 0
        while i < len(before) or j < len(after):
            old, new = before[i] if i < len(before) else None, after[j] if j < len(after) else None
            differ = old is None or new is None or _target(old) != _target(new)
            call = _call(before[i:]) if differ and self._making else None
            if call is not None and call == _call(after[j:]):
                i, j, self.remade = i + _length(before[i:], call), j + _length(after[j:], call), True
                continue
            if differ and not failed and self._first is not None and (old is None or self._first < old):
                rest = before[i:], after[j:]
                ours, theirs = ([(_target(n), of(n).module, of(n).source) for n in r] for r in rest)
                for a, b, count in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
                    yield from zip(rest[0][a : a + count], rest[1][b : b + count], strict=True)
                return
            yield old, new
            i, j = i + 1, j + 1

    def follows(self, old: fx.Node, new: fx.Node, extents: Sequence[Extent], expected: Sequence[int]) -> bool:
        """Whether a result may differ as it does because the program read such a size before and handed it on, or
        because what it is computed from differs so; all sizes that depend on widths must be right."""
        given = takes_size(old) or op(old) in _TAKES_COUNTS or not old.all_input_nodes
        led = any(n in self._nodes for n in old.all_input_nodes)
        shape = of(new).one.shape
        if not led and not (given and self._first is not None and self._first < old):
            return False
        if len(shape) != len(expected):
            return False
        if any(e.terms and n != right for e, n, right in zip(extents, shape, expected, strict=True)):
            return False
        self._nodes |= {old, new}
        return True


def _call(nodes: Sequence[fx.Node]) -> tuple[str, ...] | None:
    """The Python function that runs the first operator of these, and from where it was called."""
    node = next((n for n in nodes if n.op == "call_function" and n.target is not getitem), None)
    return None if node is None else (of(node).module, of(node).function, of(node).source)


def _length(nodes: Sequence[fx.Node], call: tuple[str, ...]) -> int:
    """How many of them a call runs, and what they read that is read the first time."""
    return next((k for k in range(len(nodes)) if _call(nodes[k : k + 1]) not in (None, call)), len(nodes))


def _expected(node: fx.Node, coupling: Coupling, widths: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that a node's result must have at these widths."""
    return tuple(e.at(widths) for e in coupling.shapes[node.name])


def _check_numbers(old: fx.Node, new: fx.Node, coupling: Coupling) -> None:
    """The pruned network computes with the same numbers, e.g. no division by the square root of the number of channels.

    Raises:
        RewriteError: it does not.
    """
    if _numbers(old) == _numbers(new) and _same_values(old, new):
        return
    now, then = _numbers(new) or "other constants", _numbers(old) or "the same"
    raise RewriteError(
        f"after pruning, {op(old)} in {of(old).module!r} ({of(old).source}) computes "
        f"with {now}, not {then}: a value follows a width. {REMEDY}",
        groups_around(old, coupling),
        place_of(old),
        old.name,
        by_value=True,
        sources=of(new).sources,
    )


def _first_wrong(
    node: fx.Node, found: fx.Node | None, recorded: fx.Graph | None, coupling: Coupling, widths: Mapping[str, int]
) -> tuple[fx.Node, fx.Node | None]:
    """The first view that has another shape than it should, before and after; `node`, where that shows, if there is
    none."""
    for old, new in zip(coupling.traced.graph.nodes, recorded.nodes if recorded is not None else (), strict=False):
        if old is node or old.target != new.target:
            break
        spec = of(new).spec
        if is_view(old) and spec is not None and spec.shape != _expected(old, coupling, widths):
            return old, new
    return node, found


def _next_after(failure: TraceError, graph: fx.Graph, silent: set[str], loose: _Loose) -> fx.Node:
    """The operator of `graph` that did not run any more when the recording failed."""
    recorded = failure.recorded
    before, after = [loose.firm([n for n in g.nodes if n.op != "output"]) if g else [] for g in (graph, recorded)]
    before = before or [n for n in graph.nodes if n.op != "output"]
    if any(old.target != new.target for old, new in zip(before, after, strict=False)):
        before, after = (loose.firm(_working(g, silent)) if g is not None else [] for g in (graph, recorded))
    rest = before[min(len(after), len(before) - 1) :]
    if failure.sources is not None:
        # An operator failed. What it reads is written down when it is read: its arguments may come before it.
        rest = [n for n in rest if n.op == "call_function" and n.target is not getitem] or rest
    return rest[0]


def _check_outputs(before: Traced, after: Traced, loose: _Loose) -> None:
    old, new = (loose.firm(next(iter(reversed(t.graph.nodes))).all_input_nodes) for t in (before, after))
    shapes = [[of(n).one.shape for n in nodes] for nodes in (old, new)]
    if shapes[0] != shapes[1]:
        raise RewriteError(
            f"the pruned network returns shapes {shapes[1]} where the original returned {shapes[0]}. {REMEDY}"
        )


def _mismatch(
    old: fx.Node | None,
    new: fx.Node | None,
    failure: TraceError | None,
    coupling: Coupling,
    expected: tuple[int, ...] = (),
) -> RewriteError:
    """The error for the first operator that differs; `old` or `new` is missing where one of them ran no further."""
    node = old or new
    assert node is not None
    groups = groups_around(old, coupling) if old is not None else ()
    if failure is not None:
        reason = f"the pruned network does not run: {failure}\n{REMEDY}"
        return RewriteError(reason, groups, place_of(node), node.name, sources=failure.sources or frozenset())
    if old is None or new is None or _target(old) != _target(new):
        return RewriteError(
            f"after pruning, {op(new) or 'nothing'} runs where {op(old) or 'nothing'} ran, in "
            f"{of(node).module!r} ({of(node).source}): the forward takes another path. {REMEDY}",
            groups or tuple(g.name for g in coupling.prunable),
            place_of(node),
            old.name if old is not None else "",
        )
    return RewriteError(
        f"after pruning, {op(node) or 'a result'} in {of(node).module!r} ({of(node).source}) "
        f"should give shape {expected}, but gave {of(new).one.shape}. {REMEDY}",
        groups,
        place_of(node),
        old.name,
        sources=_sources(new),
    )


def _sources(node: fx.Node) -> frozenset[Any]:
    """Of the numbers that made a result's shape: given to this operator, or to a view that led to it."""
    while not of(node).sources and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
        if not is_view(node):
            break
    return of(node).sources


def _numbers(node: fx.Node) -> list[float]:
    """Numbers that take part in a computation: of elementwise arithmetic all, else those that are no sizes."""
    name = op(node)
    if name == "native_group_norm":
        return [node.args[6]]  # type: ignore[list-item]
    given = (*node.args, *(node.kwargs[name] for name in sorted(node.kwargs)))
    values = [a for a in given if isinstance(a, int | float) and not isinstance(a, bool)]
    if torch.Tag.pointwise in getattr(node.target, "tags", ()) or name in _COMPUTES:
        return values
    return [a for a in values if isinstance(a, float)]


def _same_values(old: fx.Node, new: fx.Node) -> bool:
    """Whether the constant tensors that both read are equal; one whose shape follows a width is another matter."""
    for a, b in zip(old.all_input_nodes, new.all_input_nodes, strict=False):
        if of(a).fixed and of(b).fixed:
            first, second = of(a).known, of(b).known
            if first.shape == second.shape and not torch.allclose(first, second.to(first), 0, 0, equal_nan=True):
                return False
    return True


def _target(node: fx.Node) -> object:
    """What a node does. Constants are numbered by where they appear, and after a dropped branch nothing is written
    in place."""
    if of(node).constant:
        return "constant"
    functional = getattr(torch.ops.aten, op(node).rstrip("_"), None) if op(node).endswith("_") else None
    return getattr(functional, str(getattr(node.target, "_overloadname", "")), node.target)


def _silent(model: nn.Module) -> set[str]:
    """Modules that stand for dropped ones: what they return is no part of the network's structure."""
    return {name for name, module in model.named_modules() if isinstance(module, Silent)}


def _working(graph: fx.Graph, silent: set[str], narrow: bool = False) -> list[fx.Node]:
    """The nodes that compute. With a width of 1, `einsum` is made up of other operators than before."""
    own = [n for n in graph.nodes if not is_view(n) and of(n).module not in silent and not _idle(n)]
    return [n for n in own if of(n).function != "einsum"] if narrow else own


def _idle(node: fx.Node) -> bool:
    """Whether an operator makes a tensor of equal elements that nothing reads: no width is known for it."""
    return op(node) in FACTORIES and all(is_view(n) and not n.users for n in node.users)
