"""channel_groups: trace and couple a model, and try out what its forward takes for constant.

A trace cannot show whether `view(b, 12, 64)` was written with constants or computed from shapes. Where that matters, a
trial network with every group at another share of its width is built on the meta device and verified. Where it fails,
proposals of `mending` are tried until one gets further; if none does, the groups that the failing operator handles are
frozen, with that reason. Whatever was mended must hold for a second choice of widths, too.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import fx, nn

from ..coupling.algebra import varying
from ..coupling.mends import with_mends
from ..coupling.propagation import Propagated, propagate, settle
from ..coupling.sizes import groups_at, own_axis, reads_widths, takes_sizes
from ..errors import RewriteError
from ..model.checks import check_model
from ..model.copying import hollowed
from ..model.inputs import Examples, normalize_examples
from ..model.naming import Ignored, ignored_names
from ..model.preserving import uncollected
from ..rewriting.slicing import shrink
from ..rewriting.verification import verify
from ..tracing.forward import all_traces
from ..tracing.matching import matched
from ..tracing.tags import FromAttribute
from ..types import CONSTANT, Axis, ChannelGroup, Coupling, Decisions, Plan, Traced
from .mending import Move, edits, moves
from .tagging import tagging

_TRIAL_SHARES = (0.5, 0.75, 0.625)
MAX_TRIALS = 16
"""Trials with one model; when they are used up, nothing is mended: what fails is frozen."""

_HALVES = 3
"""The trial in which all groups are halved: what was mended must not rest on unequal shares either."""

_EVERY_FORWARD = 2
"""The trial in which further forwards (train mode, other examples) run, too."""

MAX_TRIALS_AT_PLACE = 6
"""Trials without progress at one operator, after which its groups are frozen: in a dead end the others suffer, too."""


def channel_groups(
    model: nn.Module,
    example_inputs: Any = None,
    ignore: Ignored | Iterable[Ignored] = (),
    like: Coupling | None = None,
) -> Coupling:
    """`trace` and `couple` in one; constants in the forward that repeat a width are mended, or freeze its group.

    Parameters that only a train-mode forward or a later call reaches (auxiliary heads, a branch that is not taken every
    time) are coupled too: see `further_traces`.

    Args:
        model, example_inputs: as for `trace`.
        ignore: modules, parameters, names of these or of groups, or patterns ("layer1.*", "*.conv1"): these stay as
            they are.
        like: the coupling of the same network before it was pruned: what was decided then is followed.

    Raises:
        ModelError: the model cannot be handled, or an entry of `ignore` matches nothing.
    """
    check_model(model)
    names = ignored_names(model, ignore)
    examples = normalize_examples(model, example_inputs)
    traces = all_traces(model, examples)
    # As for recording: a full pass of the collector takes longer than a trial.
    with uncollected() if traces.first.on_meta else nullcontext():
        decisions = like.decisions if like is not None else Decisions()
        trials = _Trials(model, examples, traces.first, traces.further, names)
        trials.leave_noise_out(decisions)
        coupling = trials.couple(decisions)
        if traces.unseen:
            coupling = trials.freeze(coupling, coupling.prunable, traces.unseen)
        while coupling.prunable and any(takes_sizes(view) or reads_widths(view) for view in coupling.views()):
            failed = trials.first_failure(coupling)
            if failed is None:
                break
            coupling = trials.mended(coupling, *failed) or trials.unmended() or trials.frozen(coupling, failed[0])
    return coupling


@dataclass
class _Trials:
    """Networks with narrower layers, built and verified to find out what the forward takes for constant."""

    model: nn.Module
    examples: Examples
    traced: Traced
    further: Sequence[Traced]
    ignore: Sequence[str]
    reasons: dict[Axis, str] = field(default_factory=dict)
    count: int = 0
    accepted: bool = False
    gave_up: bool = False
    tried: list[tuple[Decisions, Move]] = field(default_factory=list)
    propagated: Propagated | None = None
    # What the trial networks are made from: without values, unless the forward needs them.
    _template: nn.Module | None = None
    # The plans of the trials with one coupling.
    _planned: Coupling | None = None
    _plans: dict[int, Plan] = field(default_factory=dict)
    # The coupling that was tried last, and what came of its trials.
    last: Coupling | None = None
    outcomes: dict[int, RewriteError | None] = field(default_factory=dict)

    def couple(self, decisions: Decisions) -> Coupling:
        if self.propagated is None or not self.propagated.follows(decisions.choices):
            self.propagated = propagate(self.traced, self.further, decisions.choices)
        return settle(self.propagated, self.ignore, decisions, self.reasons)

    def leave_noise_out(self, decisions: Decisions) -> None:
        """Forget forwards that do what the first one does, but for noise that all channels get alike (stochastic
        depth): they couple nothing else."""
        found = [matched(self.traced, traced) for traced in self.further]
        if not any(found):
            return
        self.propagated = propagate(self.traced, (), decisions.choices)
        planes = self.propagated.planes

        def channels(node: fx.Node) -> set[int]:
            return {dim for plane in planes.get(node, ()) for dim in varying(plane)}

        pairs = zip(self.further, found, strict=True)
        self.further = [traced for traced, match in pairs if match is None or match.touches(channels)]
        if self.further:
            self.propagated = None

    def first_failure(self, coupling: Coupling) -> tuple[RewriteError, int] | None:
        """The error of the first trial that fails, and which one that was."""
        numbers = self._numbers(coupling)
        for number in numbers:
            # Couplings are compared once, in the last trial.
            error = self.run(coupling, number, couplings=number == numbers[-1])
            if error is not None:
                return error, number
        return None

    def _numbers(self, coupling: Coupling) -> list[int]:
        """The trials that a coupling has to pass."""
        decided = self.accepted or coupling.decisions.ties or coupling.decisions.mends
        numbers = [0, 1] if decided else [0]
        if decided and self._plan(coupling, _HALVES) not in (self._plan(coupling, 0), self._plan(coupling, 1)):
            numbers.append(_HALVES)
        return [*numbers, _EVERY_FORWARD] if coupling.further else numbers

    def _plan(self, coupling: Coupling, number: int) -> Plan:
        if self._planned is not coupling:
            self._planned, self._plans = coupling, {}
        if number not in self._plans:
            self._plans[number] = {1: _drawn, _HALVES: _halves}.get(number, _shares)(coupling)
        return self._plans[number]

    def run(self, coupling: Coupling, number: int, couplings: bool) -> RewriteError | None:
        """One trial, unless it is known what comes of it; None if it succeeds."""
        if self.last is not coupling:
            self.last, self.outcomes = coupling, {}
        if number not in self.outcomes:
            self.count += 1
            if self.count % MAX_TRIALS == 0:
                gc.collect()  # Graphs are cycles, and networks that freeze place by place need hundreds of trials.
            plan = self._plan(coupling, number)
            tried = coupling if number == _EVERY_FORWARD else replace(coupling, further=())
            try:
                self._verify(plan, tried, couplings)
                self.outcomes[number] = None
            except RewriteError as error:
                self.outcomes[number] = error
        return self.outcomes[number]

    def _verify(self, plan: Plan, coupling: Coupling, couplings: bool) -> None:
        """Build the small network and run it with tagged numbers; without values, unless the forward needs them."""
        if self._template is None:
            self._template = hollowed(self.model, floating=True) if self.traced.on_meta else self.model
        small = shrink(self._template, plan, coupling)
        with tagging(small):
            verify(small, plan, coupling, self.examples, meta_only=self.traced.on_meta, couplings=couplings)

    def mended(self, coupling: Coupling, error: RewriteError, number: int) -> Coupling | None:
        """With the first proposal that lets the trial get further; None if there is none."""
        if self.gave_up:
            return None
        begun = self.count
        for move in moves(self.model, coupling.views()[error.view], error):
            if self.count - begun >= MAX_TRIALS_AT_PLACE:
                return None
            tried, further = self._tied(coupling, move, error, number)
            if tried is None or further is not None:
                tried, further = self._with(coupling, move, error, number)
            if tried is not None and further is not None and not move.mends:
                view = tried.views()[further.view]
                found = (self._with(tried, edit, error, number) for edit in edits(self.model, view, further))
                tried, further = next((pair for pair in found if pair[0] and not pair[1]), (None, further))
            if tried is not None and further is None:
                self.accepted = True
                return tried
        return None

    def _tied(
        self, coupling: Coupling, move: Move, error: RewriteError, number: int
    ) -> tuple[Coupling | None, RewriteError | None]:
        """As `_with`, for ties where the operator was given an attribute, too: most likely both have to change."""
        given = any(isinstance(s, FromAttribute) for s in error.sources)
        if self.count >= MAX_TRIALS or not move.ties or move.mends or not given:
            return None, None
        tied = self.couple(move.applied(coupling.decisions))
        edit = next(edits(self.model, tied.views()[error.view], error), None)
        return (None, None) if edit is None else self._with(tied, edit, error, number)

    def _with(
        self, coupling: Coupling, move: Move, error: RewriteError, number: int
    ) -> tuple[Coupling | None, RewriteError | None]:
        """The coupling with a proposal (None if it is not to be tried), and where its trial still fails: None if it
        gets further than `error`."""
        if self.count >= MAX_TRIALS or (coupling.decisions, move) in self.tried:
            return None, None
        self.tried.append((coupling.decisions, move))
        decisions = move.applied(coupling.decisions)
        tried = self.couple(decisions) if move.choices or move.ties else with_mends(coupling, decisions)
        if not tried.prunable or len(tried.mended) < len(decisions.mends):
            return None, None
        last = number == self._numbers(tried)[-1]
        further = self.run(tried, number, couplings=last or not (error.node or tried.further))
        passed = further is None or self._position(further) > self._position(error)
        if move.choices and further is not None and further.by_value:
            passed = False  # Narrower heads change the scale of an attention: that leads nowhere.
        return tried, None if passed else further

    def unmended(self) -> Coupling | None:
        """The coupling to start over from when the trials are used up: half of a mended network helps nobody."""
        if self.gave_up or self.count < MAX_TRIALS:
            return None
        self.gave_up, self.accepted = True, False
        self.reasons.clear()
        return self.couple(Decisions())

    def frozen(self, coupling: Coupling, error: RewriteError) -> Coupling:
        """With the groups frozen that the failing operator handles. Ties of such a group did not help: they go."""
        names = groups_at(error, coupling.views()[error.view]) | set(error.groups)
        names &= {g.name for g in coupling.prunable}
        what = "{} at {}".format(*error.place) if error.place[0] else str(error).splitlines()[0][:200]
        reason = f"{CONSTANT}: {what}"
        if not names:
            names = {g.name for g in coupling.prunable}
            reason = f"a trial with narrower layers failed: {str(error).splitlines()[0][:200]}"
        groups = [g for g in coupling.groups if g.name in names]
        axes = {m.axis for g in groups for m in g.members}
        decisions = coupling.decisions
        ties = tuple(t for t in decisions.ties if not {t.a, t.b} & axes)
        if ties != decisions.ties:
            mends = tuple(m for m in decisions.mends if not {axis for axis, _ in m.terms} & axes)
            return self.couple(replace(decisions, ties=ties, mends=mends))
        return self.freeze(coupling, groups, reason)

    def freeze(self, coupling: Coupling, groups: Sequence[ChannelGroup], reason: str) -> Coupling:
        """With these groups frozen."""
        for group in groups:
            self.reasons[own_axis(group, coupling) or group.members[0].axis] = reason
        return self.couple(coupling.decisions)

    def _position(self, error: RewriteError) -> tuple[int, int]:
        """How far a trial got: in which forward, and its failing operator's place there."""
        order = self._orders[error.view]
        return error.view, order.get(error.node, len(order))

    @cached_property
    def _orders(self) -> list[dict[str, int]]:
        traces = (self.traced, *(t for t in self.further if t.run.repeatable))
        return [{node.name: i for i, node in enumerate(t.graph.nodes)} for t in traces]


def _shares(coupling: Coupling) -> Plan:
    """Each group at one of several shares of its width, so that equal widths do not hide what depends on which."""
    kept = {}
    for i, group in enumerate(coupling.prunable):
        share = _TRIAL_SHARES[i % len(_TRIAL_SHARES)]
        kept[group.name] = range(max(1, min(math.ceil(group.size * share), group.size - 1)))
    return Plan({name: tuple(rows) for name, rows in kept.items()})


def _halves(coupling: Coupling) -> Plan:
    return Plan({g.name: tuple(range(max(1, g.size // 2))) for g in coupling.prunable})


def _drawn(coupling: Coupling) -> Plan:
    """Other widths, drawn at random: a number that equals a width by coincidence would have to do so again."""
    draw = random.Random(0)
    kept = {}
    for group in coupling.prunable:
        width = draw.randint(max(1, group.size // 4), max(1, group.size - 1))
        kept[group.name] = tuple(sorted(draw.sample(range(group.size), width)))
    return Plan(kept)
