"""Proof that a rewritten network has the structure its plan asks for, without running a single multiplication.

The rewritten network is traced again. Operator by operator its shapes must be those that the plan's widths give, and
its coupling must be the original coupling restricted to the slots that stayed: two slots are coupled after the
rewrite if and only if they were before. A `chunk` that now cuts in another place changes no shape but does change
the coupling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from ..coupling.counts import cancels, followed_at
from ..coupling.settling import couple
from ..coupling.sizes import FACTORIES, groups_around, takes_sizes
from ..errors import TraceError
from ..model.inputs import normalize_examples
from ..tracing.forward import run_again
from ..tracing.graph import getitem, given_to, is_view, of, op, place_of, spot_of, unread, where
from ..types import Coupling, Inputs, Mismatch, Plan, Traced
from .comparing import REMEDY, miscoupled
from .counted import Counts
from .deviations import freedom
from .numbers import numbers_of, other_values
from .pairing import Loose, does, idle, silent_modules, working


def verify(
    small: nn.Module,
    plan: Plan,
    coupling: Coupling,
    example_inputs: Any = None,
    meta_only: bool = False,
    couplings: bool = True,
    defined: bool = False,
) -> Mismatch | None:
    """The first difference between `small` and what `plan` asks for, in every forward that the coupling was made from;
    None if there is none.

    Shapes and numbers are compared, except of what depends on how many elements values picked; couplings, if an
    operator took sizes from an unknown source.

    Args:
        meta_only: do not run the network with values if it fails on the meta device, where the original works.
        couplings: compare couplings, too.
        defined: what is not defined at these very widths is a difference, too. Trials, whose widths stand for others,
            do not ask.

    Raises:
        ModelError: the network cannot be recorded. (That its forward fails is a difference.)
    """
    examples = normalize_examples(small, example_inputs)
    views = coupling.views()
    forwards = []
    for number, view in enumerate(views):
        if view.traced.run.example >= len(examples):
            continue
        forward, found = _compared(small, plan, view, examples, meta_only and view.traced.on_meta)
        found = found or (forward.undefined if defined else None)
        if found is not None:
            return replace(found, view=number)
        forwards.append(forward)
    # Otherwise equal shapes and numbers mean equal couplings.
    if not couplings or not (any(f.went_elsewhere for f in forwards) or any(map(takes_sizes, views))):
        return None
    first, *further = (f.traced for f in forwards)
    return miscoupled(coupling, couple(first, further=further, decisions=coupling.decisions), plan)


@dataclass(frozen=True, slots=True)
class _Rerun:
    """A forward again, now of the pruned network: what was recorded, wholly or until it failed."""

    traced: Traced | None
    graph: fx.Graph | None
    failure: TraceError | None


def _rerun(small: nn.Module, before: Traced, examples: Sequence[Inputs], meta_only: bool) -> _Rerun:
    try:
        traced = run_again(small, examples, before.run, meta_only, really=not before.on_meta)
    except TraceError as error:
        return _Rerun(None, error.recorded, error)
    return _Rerun(traced, traced.graph, None)


def _compared(
    small: nn.Module, plan: Plan, view: Coupling, examples: Sequence[Inputs], meta_only: bool
) -> tuple[_Forward, Mismatch | None]:
    """One forward beside the original's, and the first difference. If that is a constant, the forward is run once more:
    it was made afresh, as a cache had it under another key than a tagged number, and now it is there."""
    forward = _Forward(small, plan, view, _rerun(small, view.traced, examples, meta_only))
    found = forward.first_difference()
    if found is not None and any(n.name == found.node and of(n).constant for n in view.traced.graph.nodes):
        forward = _Forward(small, plan, view, _rerun(small, view.traced, examples, meta_only))
        found = forward.first_difference()
    return forward, found


class _Forward:
    """One forward of a network, and the same of the pruned network beside it. Methods that are called after what may
    differ return how it differs, None if it does not."""

    def __init__(self, small: nn.Module, plan: Plan, view: Coupling, rerun: _Rerun) -> None:
        self._view, self._before, self._rerun = view, view.traced, rerun
        self._widths = view.widths(plan)
        self._silent = silent_modules(small)
        self._narrow = any(g.size > 1 == self._widths[g.name] for g in view.groups)
        # A width of 1 changes strides, and with them how a linear layer is made up; what stands for a dropped branch
        # does, too: that alone is no mistake.
        making = rerun.failure is None and (self._narrow or bool(plan.dropped))
        self._loose = Loose(self._before.graph, rerun.graph, making)
        self._other_path = False
        # The first operator of which nothing is defined any more.
        self.undefined: Mismatch | None = None

    @property
    def traced(self) -> Traced:
        """Of the pruned network, whose forward did not fail."""
        assert self._rerun.traced is not None
        return self._rerun.traced

    @property
    def went_elsewhere(self) -> bool:
        """Whether other operators ran than before, where they may."""
        return self._other_path or self._loose.remade

    def first_difference(self) -> Mismatch | None:
        found = [m for m in (self._firm_difference(), self._counted_difference()) if m is not None]
        places = {node.name: i for i, node in enumerate(self._before.graph.nodes)}
        return min(found, key=lambda m: places.get(m.node, len(places)), default=None)

    def _counted_difference(self) -> Mismatch | None:
        """The first difference in what is made of elements that values picked. There may be more or fewer of these than
        before; all that follows widths must be right."""
        counts = Counts()
        for old, new in self._loose.counted():
            spec = of(new).spec
            if spec is None or (_made_for_nothing(old) and _made_for_nothing(new)):
                continue
            if not counts.allow(self._view.shapes[old.name], self._expected(old), spec.shape):
                return self._other_shape(old, new)
            if (other := self._numbers(old, new, counts)) is not None:
                return other
        return None

    def _firm_difference(self) -> Mismatch | None:
        failure = self._rerun.failure
        for old, new in self._pairs():
            if new is None and failure is not None:
                return self._stopped(failure)
            if old is None or new is None or does(old) != does(new):
                if failure is None and self._may_go_elsewhere():
                    self._other_path = True
                    return self._outputs()
                return self._other_operator(old, new, failure)
            # What is idle in the whole network has no width that is known, and is beside itself where one failed.
            found = self._result(old, new) if failure is None or not idle(old) else None
            if found is not None:
                return found
        return self._stopped(failure) if failure is not None else None

    def _pairs(self) -> Iterator[tuple[fx.Node | None, fx.Node | None]]:
        failed = self._rerun.failure is not None
        graphs = (self._before.graph, self._rerun.graph)
        before, after = (
            self._loose.firm(working(graph, self._silent, self._narrow, not failed)) if graph is not None else []
            for graph in graphs
        )
        return self._loose.pairs(before, after, failed)

    def _may_go_elsewhere(self) -> bool:
        """In train mode a coin may decide which operators run: from where they differ, results alone are compared."""
        return self._before.run.training and bool(self._before.reads)

    def _expected(self, node: fx.Node) -> tuple[int, ...]:
        """The shape that a node's result must have at these widths."""
        return tuple(e.at(self._widths) for e in self._view.shapes[node.name])

    def _result(self, old: fx.Node, new: fx.Node) -> Mismatch | None:
        """Of an operator that runs as before: the shape of what it gives, and the numbers that it computes with."""
        spec = of(new).spec
        if spec is None or spec.shape == self._expected(old):
            self.undefined = self.undefined or self._deviation(old, new)
            return self._numbers(old, new)
        if self._loose.follows(old, new, self._view.shapes[old.name], self._expected(old)):
            return None
        if _made_for_nothing(old) and _made_for_nothing(new):
            return None
        view = self._first_wrong_view(old)
        return self._other_shape(*(view or (old, new)))

    def _numbers(self, old: fx.Node, new: fx.Node, counts: Counts | None = None) -> Mismatch | None:
        """The pruned network computes with the same numbers, e.g. no division by the square root of the number of
        channels; or with those that other `counts` of elements explain."""
        choices = self._view.decisions.choices
        if cancels(old) and cancels(new):
            return None
        whole, count = choices.get(spot_of(old)) == "whole", followed_at(old, choices)
        expected, given = numbers_of(old, whole), numbers_of(new, whole)
        if count is not None:
            expected = [count.at(self._view.shapes, self._widths)]
            same = math.isnan(expected[0]) or math.isclose(given[0], expected[0], rel_tol=1e-9)
        else:
            same = expected == given
        if counts is not None and (same or counts.explain(expected, given)):
            return None
        if self._before.reads and not same and self._loose.made_from(old):
            return None  # A value of what was picked, which the program read.
        if same and all(map(self._loose.made_from, other_values(old, new))):
            return None
        now, then = given or "other constants", expected or "the same"
        return Mismatch(
            f"after pruning, {where(old)} computes with {now}, not {then}: a value follows a width. {REMEDY}",
            groups_around(old, self._view),
            place_of(old),
            old.name,
            by_value=True,
            sources=of(new).sources,
        )

    def _deviation(self, old: fx.Node, new: fx.Node) -> Mismatch | None:
        """A deviation that is one of a single element now, and was none."""
        left, before = freedom(new), freedom(old)
        if (count := followed_at(old, self._view.decisions.choices)) is not None:
            left, before = (count.freedom(self._view.shapes, w) for w in (self._widths, self._view.widths()))
        if left is None or left > 0 or (before or 0) <= 0:
            return None
        return Mismatch(
            f"after pruning, {where(old)} is over a single element, of which "
            "there is no deviation: keep more of its channels, by limits={name: (2, 1.0)} or min_keep",
            groups_around(old, self._view),
            place_of(old),
            old.name,
        )

    def _outputs(self) -> Mismatch | None:
        """What the network returns."""
        graphs = (self._before.graph, self.traced.graph)
        old, new = (self._loose.firm(next(iter(reversed(graph.nodes))).all_input_nodes) for graph in graphs)
        shapes = [[of(n).one.shape for n in nodes] for nodes in (old, new)]
        if shapes[0] == shapes[1]:
            return None
        return Mismatch(
            f"the pruned network returns shapes {shapes[1]} where the original returned {shapes[0]}. {REMEDY}"
        )

    def _other_operator(self, old: fx.Node | None, new: fx.Node | None, failure: TraceError | None) -> Mismatch:
        """Another operator runs, or none where one ran, or one where none did."""
        node = old or new
        assert node is not None
        view = self._first_wrong_view(old) if old is not None else None
        if view is not None:
            return self._other_shape(*view, failure)
        if failure is not None:
            return self._not_running(node, groups_around(old, self._view) if old is not None else (), failure)
        groups = groups_around(old, self._view) if old is not None else ()
        if any(n is not None and n.op == "get_attr" for n in (old, new)):
            what = f"{_named(new)} is read or run where {_named(old)} was"
        else:
            what = f"{_named(new)} runs where {_named(old)} ran"
        return Mismatch(
            f"after pruning, {where(node, what)}: the forward takes another path. {REMEDY}",
            groups or tuple(g.name for g in self._view.prunable),
            place_of(node),
            old.name if old is not None else "",
        )

    def _other_shape(self, old: fx.Node, new: fx.Node, failure: TraceError | None = None) -> Mismatch:
        pieces = [f"{len(of(node).results)} pieces" for node in (old, new)]
        then, now = pieces if of(new).spec is None else (f"shape {self._expected(old)}", of(new).one.shape)
        return Mismatch(
            f"after pruning, {where(old)} should give {then}, but gave {now}. {REMEDY}",
            groups_around(old, self._view),
            place_of(old),
            old.name,
            sources=given_to(new),
            cause=failure,
        )

    def _not_running(self, node: fx.Node, groups: tuple[str, ...], failure: TraceError) -> Mismatch:
        return Mismatch(
            f"the pruned network does not run: {failure}\n{REMEDY}",
            groups,
            place_of(node),
            node.name,
            sources=failure.call.sources if failure.call is not None else failure.compared,
            compared=bool(failure.compared),
            cause=failure,
        )

    def _stopped(self, failure: TraceError) -> Mismatch:
        """Why the forward failed. A view that was given -1 may have gone through with another shape than it should
        have, and a cut with more pieces: then that is the reason."""
        node = self._next_after(failure)
        view = self._first_wrong_view(node)
        if view is not None:
            return self._other_shape(*view, failure)
        return self._not_running(node, groups_around(node, self._view), failure)

    def _first_wrong_view(self, until: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """The first view before a node that has another shape than it should, and what became of it; or cut that gave
        another number of pieces (`a, b = x.split(c // 2)`)."""
        after = self._rerun.graph.nodes if self._rerun.graph is not None else ()
        for old, new in zip(self._before.graph.nodes, after, strict=False):
            if old is until or old.target != new.target:
                return None
            spec = of(new).spec
            wrong = is_view(old) and old.users and spec is not None and spec.shape != self._expected(old)
            if (wrong or len(of(old).results) != len(of(new).results)) and self._loose.firm([old]):
                return old, new
        return None

    def _next_after(self, failure: TraceError) -> fx.Node:
        """The operator of the original network that did not run any more when the recording failed."""
        graphs = (self._before.graph, failure.recorded)
        before, after = (
            self._loose.firm([n for n in graph.nodes if n.op != "output"]) if graph is not None else []
            for graph in graphs
        )
        before = before or [n for n in self._before.graph.nodes if n.op != "output"]
        if any(old.target != new.target for old, new in zip(before, after, strict=False)):
            before, after = (
                self._loose.firm(working(g, self._silent, ended=False)) if g is not None else [] for g in graphs
            )
        rest = before[min(len(after), len(before) - 1) :]
        call = failure.call
        if call is None:
            return rest[0]
        # An operator failed. What it reads is written down when it is read: its arguments may come before it. And other
        # widths can make a call before it up of more operators, or of fewer: it is the nearest of its line.
        counted = next((n for n in rest if n.op == "call_function" and n.target is not getitem), rest[0])
        nodes: list[fx.Node] = list(self._before.graph.nodes)
        at = nodes.index(counted)
        same = [i for i, n in enumerate(nodes) if (of(n).function, of(n).source) == (call.function, call.source)]
        return nodes[min(same, key=lambda i: (abs(i - at), i), default=at)]


def _named(node: fx.Node | None) -> str:
    """An operator by its name, a tensor of the network by its own."""
    return "nothing" if node is None else op(node) or str(node.target)


def _made_for_nothing(node: fx.Node) -> bool:
    """Whether a tensor of equal elements, or one that is made of it alone, is read by nothing: where derivatives run
    forward, that of a bias that does not move."""
    origin = node
    while len(origin.all_input_nodes) == 1:
        (origin,) = origin.all_input_nodes
    return op(origin) in FACTORIES and node in unread(node.graph)
