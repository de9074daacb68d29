"""channel_groups: trace and couple a model, and try out what its forward takes for constant.

A trace cannot show whether `view(b, 12, 64)` was written with constants or computed from shapes. Where that matters, a
trial network with every group at another share of its width is built on the meta device and verified. Where it fails,
proposals of `mending` are tried until one gets further; if none does, the groups that the failing operator handles are
frozen, with that reason. Whatever was mended must hold for a second choice of widths, too.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from functools import cached_property
from typing import Any

from torch import fx, nn

from ..coupling.algebra import varying, without_pieces
from ..coupling.mends import resolve, with_mends
from ..coupling.propagation import Propagated, propagate, settle
from ..coupling.sizes import groups_at, groups_followed, own_axis, reads_widths, takes_sizes
from ..model.checks import check_model
from ..model.copying import hollowed
from ..model.inputs import Examples, normalize_examples
from ..model.naming import Ignored, ignored_names
from ..model.preserving import spared, uncollected
from ..rewriting.literals import lifted
from ..rewriting.slicing import shrink
from ..rewriting.verification import verify
from ..tracing.forward import Traces, all_traces
from ..tracing.matching import matched
from ..tracing.tags import FromAttribute
from ..types import CONSTANT, Axis, ChannelGroup, Coupling, Decisions, Mismatch, Plan, Traced
from .literals import literal_decisions
from .mending import edits, moves
from .plans import by_turns, drawn, halves, shares
from .tagging import Given, given_in, tagging

MAX_TRIALS = 16
"""Trials without progress with one model; when they are used up, nothing is mended: what fails is frozen."""

_HALVES = 3
"""The trial in which all groups are halved: what was mended must not rest on unequal shares either."""

_ONE_OF_TWO = 4
"""The trial in which groups of two channels lose one by turns: in the others they all do, and seem to follow each
other."""

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
    model = lifted(model)
    with spared():
        traces = all_traces(model, examples)
    # As for recording: a full pass of the collector takes longer than a trial.
    with spared(), uncollected() if traces.first.on_meta else nullcontext():
        return _tried(_Trials(model, examples, traces.first, traces.further, names), traces, like)


def _tried(trials: _Trials, traces: Traces, like: Coupling | None) -> Coupling:
    """The coupling of a network, such that no trial fails."""
    decisions = like.decisions if like is not None else Decisions()
    trials.leave_noise_out(decisions)
    coupling = trials.with_literals(trials.couple(decisions))
    if traces.unseen:
        coupling = trials.freeze(coupling, coupling.prunable, traces.unseen)
    while coupling.prunable and any(takes_sizes(view) or reads_widths(view) for view in coupling.views()):
        failed = trials.first_failure(coupling)
        if failed is None:
            break
        coupling = trials.after(coupling, failed)
    return coupling


@dataclass(frozen=True, slots=True)
class _Failure:
    """Where a coupling fails its trials.

    Attributes:
        mismatch: of the first trial that fails.
        number: which trial that is.
    """

    mismatch: Mismatch
    number: int


class _Outcome(Enum):
    """What came of a proposal."""

    LEFT = auto()
    """It was not tried: it was before, or the trials are used up, or it leaves nothing to prune."""
    STUCK = auto()
    """The trial fails where it failed, or before."""
    FURTHER = auto()
    """The trial gets further: it succeeds, or fails at a later operator."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """One proposal for a failure.

    Attributes:
        outcome: what came of it.
        coupling: with the proposal; if it was not tried, without.
        mismatch: where the trial still fails, None if it succeeds; if it was not tried, the failure that it was for.
    """

    outcome: _Outcome
    coupling: Coupling
    mismatch: Mismatch | None


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
    # Those that got no further.
    vain: int = 0
    # How many of them there may be until the place at hand is given up.
    spent_at: int = MAX_TRIALS_AT_PLACE
    accepted: bool = False
    gave_up: bool = False
    tried: list[tuple[Decisions, Decisions]] = field(default_factory=list)
    propagated: Propagated | None = None
    # What literals of graphs follow, as far as one look at the whole network tells.
    literals: Decisions = field(default_factory=Decisions)
    # What the trial networks are made from: without values, unless the forward needs them.
    _template: nn.Module | None = None
    # The plans of the trials with one coupling.
    _planned: Coupling | None = None
    _plans: dict[int, Plan] = field(default_factory=dict)
    _given: dict[int, Given] = field(default_factory=dict)
    # Places in the program at which ties were given up.
    untied: set[tuple[str, str]] = field(default_factory=set)
    # Attributes that follow no width, as an operator has shown.
    constant: set[tuple[str, str]] = field(default_factory=set)
    # The coupling that was tried last, and what came of its trials.
    last: Coupling | None = None
    outcomes: dict[int, Mismatch | None] = field(default_factory=dict)

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

    def with_literals(self, coupling: Coupling) -> Coupling:
        """With all literals of the network's graphs that equal a size where they are used: each node is a place of its
        own, and one after the other they would use the trials up."""
        decided = coupling.decisions
        self.literals = literal_decisions(self.model, coupling, self.examples)
        decisions = self.literals | decided
        return self.couple(decisions) if decisions.ties != decided.ties else with_mends(coupling, decisions)

    def first_failure(self, coupling: Coupling) -> _Failure | None:
        """The first trial that fails."""
        numbers = self._numbers(coupling)
        for number in numbers:
            # Couplings are compared once, in the last trial.
            mismatch = self.run(coupling, number, couplings=number == numbers[-1])
            if mismatch is not None:
                return _Failure(mismatch, number)
        return None

    def _numbers(self, coupling: Coupling) -> list[int]:
        """The trials that a coupling has to pass."""
        decided = self.accepted or coupling.decisions.ties or coupling.decisions.mends
        numbers = [0, 1] if decided else [0]
        if decided and self._plan(coupling, _HALVES) not in (self._plan(coupling, 0), self._plan(coupling, 1)):
            numbers.append(_HALVES)
        if sum(g.size == 2 for g in coupling.prunable) > 1:
            numbers.append(_ONE_OF_TWO)
        return [*numbers, _EVERY_FORWARD] if coupling.further else numbers

    def _plan(self, coupling: Coupling, number: int) -> Plan:
        if self._planned is not coupling:
            self._planned, self._plans = coupling, {}
        if number not in self._plans:
            self._plans[number] = {1: drawn, _HALVES: halves, _ONE_OF_TWO: by_turns}.get(number, shares)(coupling)
        return self._plans[number]

    def run(self, coupling: Coupling, number: int, couplings: bool) -> Mismatch | None:
        """One trial, unless it is known what comes of it; None if it succeeds."""
        if self.last is not coupling:
            self.last, self.outcomes = coupling, {}
        if number not in self.outcomes:
            self.count += 1
            if self.count % MAX_TRIALS == 0:
                gc.collect()  # Graphs are cycles, and networks that freeze place by place need hundreds of trials.
            plan = self._plan(coupling, number)
            tried = coupling if number == _EVERY_FORWARD else replace(coupling, further=())
            self.outcomes[number] = self._verified(plan, tried, couplings)
        return self.outcomes[number]

    def _verified(self, plan: Plan, coupling: Coupling, couplings: bool) -> Mismatch | None:
        """Build the small network and run it with tagged numbers; without values, unless the forward needs them."""
        if self._template is None:
            self._template = hollowed(self.model, floating=True) if self.traced.on_meta else self.model
        small = shrink(self._template, plan, coupling)
        with tagging(small):
            found = verify(small, plan, coupling, self.examples, meta_only=self.traced.on_meta, couplings=couplings)
        if found is None or not found.sources:
            return found
        # The nodes of the network as it is may have other names than those of the trial's.
        given = self.given(found.view, coupling.views()[found.view].traced).get(found.node)
        return replace(found, sources=given) if given else found

    def after(self, coupling: Coupling, failure: _Failure) -> Coupling:
        """What to go on with after a failure: with a proposal that helps; when the trials are used up, from the start
        and without any, for half of a mended network helps nobody; or with groups frozen."""
        if not self.gave_up:
            trial = self._mended(coupling, failure)
            if trial.outcome is _Outcome.FURTHER:
                self.accepted = True
                return trial.coupling
            if self.vain >= MAX_TRIALS:
                return self._unmended()
        return self._frozen(coupling, failure.mismatch)

    def _mended(self, coupling: Coupling, failure: _Failure) -> _Trial:
        """The first proposal that lets the trial get further, or the last one."""
        trial = _Trial(_Outcome.LEFT, coupling, failure.mismatch)
        self.spent_at = self.vain + MAX_TRIALS_AT_PLACE
        view, mismatch = coupling.views()[failure.mismatch.view], failure.mismatch
        proposed: Iterable[Decisions] = moves(self.model, view, mismatch, self.given(mismatch.view, view.traced))
        if any((s.module, s.attribute) in self.constant for s in mismatch.sources if isinstance(s, FromAttribute)):
            # All the others were tried when it followed a width.
            proposed = [move for move in proposed if move.choices]
        for move in proposed:
            if self._spent():
                break
            trial = self._proposed(coupling, move, failure)
            if trial.outcome is _Outcome.FURTHER:
                break
        return trial

    def given(self, view: int, traced: Traced) -> Given:
        """What operators of a forward are given at full width."""
        if view not in self._given:
            self._given[view] = given_in(self.model, traced, self.examples)
        return self._given[view]

    def _proposed(self, coupling: Coupling, move: Decisions, failure: _Failure) -> _Trial:
        """A proposal: with an attribute that most likely has to change, too; as it is; or with another attribute."""
        trial = self._tied(coupling, move, failure)
        if trial.outcome is not _Outcome.FURTHER:
            trial = self._with(coupling, move, failure)
        if trial.outcome is not _Outcome.STUCK or move.mends or trial.mismatch is None:
            return trial
        view = trial.coupling.views()[trial.mismatch.view]
        for edit in edits(self.model, view, trial.mismatch, self.given(trial.mismatch.view, view.traced)):
            edited = self._with(trial.coupling, edit, failure)
            if edited.outcome is _Outcome.FURTHER:
                return edited
        return trial

    def _tied(self, coupling: Coupling, move: Decisions, failure: _Failure) -> _Trial:
        """As `_with`, for ties where the operator was given an attribute, too: most likely both have to change."""
        left = _Trial(_Outcome.LEFT, coupling, failure.mismatch)
        by_attribute = any(isinstance(s, FromAttribute) for s in failure.mismatch.sources)
        if self._spent() or not move.ties or move.mends or not by_attribute:
            return left
        tied = self.couple(coupling.decisions | move)
        view = tied.views()[failure.mismatch.view]
        given = self.given(failure.mismatch.view, view.traced)
        edit = next(edits(self.model, view, failure.mismatch, given), None)
        return left if edit is None else self._with(tied, edit, failure)

    def _with(self, coupling: Coupling, move: Decisions, failure: _Failure) -> _Trial:
        """The coupling with a proposal, and whether its trial gets further than the failure."""
        left = _Trial(_Outcome.LEFT, coupling, failure.mismatch)
        if self._spent() or (coupling.decisions, move) in self.tried:
            return left
        if any((m.module, m.attribute) in self.constant and m.terms for m in move.mends):
            return left
        self.tried.append((coupling.decisions, move))
        decisions = coupling.decisions | move
        if move.choices:
            decisions = replace(decisions, choices=without_pieces(decisions.choices))
        tried = self.couple(decisions) if move.choices or move.ties else with_mends(coupling, decisions)
        if move.choices and len(tried.mended) < len(decisions.mends):
            # An attribute that counted what does not shrink any more.
            decisions = replace(tried.decisions, mends=tuple(m for m in decisions.mends if resolve(m, tried.groups)))
            tried = with_mends(tried, decisions)
        if not tried.prunable or len(tried.mended) < len(decisions.mends):
            return left
        last = failure.number == self._numbers(tried)[-1]
        found = self.run(tried, failure.number, couplings=last or not (failure.mismatch.node or tried.further))
        passed = found is None or self._position(found) > self._position(failure.mismatch)
        if move.choices and found is not None and found.by_value:
            passed = False  # Narrower heads change the scale of an attention: that leads nowhere.
        self.vain += not passed
        return _Trial(_Outcome.FURTHER if passed else _Outcome.STUCK, tried, found)

    def _spent(self) -> bool:
        """Whether enough was tried in vain, at one place or at all."""
        return self.vain >= min(self.spent_at, MAX_TRIALS)

    def _unmended(self) -> Coupling:
        """The coupling to start over from when the trials are used up."""
        self.gave_up, self.accepted = True, False
        self.reasons.clear()
        return self.couple(self.literals)

    def _frozen(self, coupling: Coupling, mismatch: Mismatch) -> Coupling:
        """With the groups frozen that the failing operator handles. Ties of such a group did not help, nor did
        attributes that follow one: they go, the first time that a place fails."""
        view = coupling.views()[mismatch.view]
        given = self.given(mismatch.view, view.traced)
        names = groups_at(mismatch, view, given) & {g.name for g in coupling.prunable}
        what = "{} at {}".format(*mismatch.place) if mismatch.place[0] else mismatch.short
        reason = f"{CONSTANT}: {what}"
        if not names:
            names = {g.name for g in coupling.prunable}
            reason = f"a trial with narrower layers failed: {mismatch.short}"
        groups = [g for g in coupling.groups if g.name in names]
        axes = {m.axis for g in groups for m in g.members}
        decisions = coupling.decisions
        ties = tuple(t for t in decisions.ties if not {t.a, t.b} & axes)
        by_attribute = names & groups_followed(mismatch.sources, view)
        if by_attribute:
            # An operator whose own widths are fixed was given it.
            attributes = {s.attribute for s in mismatch.sources if isinstance(s, FromAttribute)}
            self.constant |= {(m.module, m.attribute) for m in decisions.mends if m.attribute in attributes}
        if (ties != decisions.ties or by_attribute) and mismatch.place not in self.untied:
            self.untied.add(mismatch.place)
            mends = tuple(m for m in decisions.mends if not {axis for axis, _ in m.terms} & axes)
            return self.couple(replace(decisions, ties=ties, mends=mends))
        return self.freeze(coupling, groups, reason)

    def freeze(self, coupling: Coupling, groups: Sequence[ChannelGroup], reason: str) -> Coupling:
        """With these groups frozen."""
        for group in groups:
            self.reasons[own_axis(group, coupling) or group.members[0].axis] = reason
        return self.couple(coupling.decisions)

    def _position(self, mismatch: Mismatch) -> tuple[int, int]:
        """How far a trial got: in which forward, and its failing operator's place there."""
        order = self._orders[mismatch.view]
        return mismatch.view, order.get(mismatch.node, len(order))

    @cached_property
    def _orders(self) -> list[dict[str, int]]:
        traces = (self.traced, *(t for t in self.further if t.run.repeatable))
        return [{node.name: i for i, node in enumerate(t.graph.nodes)} for t in traces]
