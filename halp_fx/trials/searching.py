"""Search: trials that fail -> the coupling that passes them: with proposals of `mending` that get further, or with
groups frozen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from ..coupling.algebra import without_pieces
from ..coupling.counts import COUNTED, SUMMED, count_at
from ..coupling.mends import resolve, with_mends
from ..coupling.propagation import Propagated, propagate
from ..coupling.settling import settle
from ..coupling.sizes import groups_at, groups_followed, own_axis, reads_widths, takes_sizes
from ..tracing.modes import asks_for_widths
from ..tracing.tags import FromAttribute
from ..types import CONSTANT, Axis, ChannelGroup, Coupling, Decisions, Mismatch
from .choosing import chosen, removable
from .literals import literal_decisions
from .mending import edits, moves
from .parting import parted
from .running import Failure, Runner, latest

MAX_TRIALS = 16
"""Trials without progress with one model; when they are used up, nothing is mended: what fails is frozen."""

MAX_TRIALS_AT_PLACE = 6
"""Trials without progress at one operator, after which its groups are frozen: in a dead end the others suffer, too."""


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


@dataclass(slots=True)
class Search:
    """What was decided of one network so far, and tried in vain.

    Attributes:
        runner: of its trials.
        ignore: what is frozen from the start.
        propagated: what spread through the network with the last choices.
        reasons: axes that are frozen, and why.
        vain: trials that got no further.
        spent_at: how many of them there may be until the place at hand is given up.
        accepted: whether a proposal was taken. gave_up: whether none is any more.
        tried: decisions and proposals.
        literals: what literals of graphs follow, as far as one look at the whole network tells.
        untied: places in the program at which ties were given up.
        constant: attributes that follow no width, as an operator has shown.
        known: couplings, by what was decided and frozen.
    """

    runner: Runner
    ignore: Sequence[str]
    propagated: Propagated | None = None
    reasons: dict[Axis, str] = field(default_factory=dict)
    vain: int = 0
    spent_at: int = MAX_TRIALS_AT_PLACE
    accepted: bool = False
    gave_up: bool = False
    tried: list[tuple[Decisions, Decisions]] = field(default_factory=list)
    literals: Decisions = field(default_factory=Decisions)
    untied: set[tuple[str, str]] = field(default_factory=set)
    constant: set[tuple[str, str]] = field(default_factory=set)
    known: OrderedDict[Any, Coupling] = field(default_factory=OrderedDict)

    def coupling(self, decisions: Decisions, unseen: str) -> Coupling:
        """The coupling of the network, such that no trial fails.

        Args:
            decisions: to begin with.
            unseen: why nothing may shrink; empty if something may.
        """
        found = self._coupled(decisions)
        if decisions.choices:
            return self._tried(found, unseen)
        found = chosen(found, self._coupled)
        assert self.propagated is not None, "`found` was settled from it"
        other = parted(found, self.propagated, lambda number: self.runner.given(found, number), self._coupled)
        if other is found:
            return self._tried(found, unseen)
        apart = self._tried(other, unseen)
        followed = bool(apart.decisions.mends)
        if followed and not (self.reasons or self.gave_up):
            return apart
        # What an attribute stands for may hold parts together after all. Where none follows a part, they passed by
        # chance: `c // self.share`.
        together = Search(self.runner, self.ignore, self.propagated)._tried(found, unseen)
        return max(apart, together, key=removable) if followed else together

    def _tried(self, found: Coupling, unseen: str) -> Coupling:
        """The coupling with what trials show to be needed."""
        found = self._with_literals(found)
        if unseen:
            found = self._freeze(found, found.prunable, unseen)
        asks = asks_for_widths(self.runner.model)
        while found.prunable and (asks or any(takes_sizes(view) or reads_widths(view) for view in found.views())):
            failed = self.runner.first_failure(found, self.accepted)
            if failed is None:
                break
            found = self._after(found, failed)
        return found

    def _coupled(self, decisions: Decisions) -> Coupling:
        key = (tuple(decisions.choices.items()), decisions.ties, decisions.mends, tuple(self.reasons.items()))
        return latest(self.known, key, lambda: self._settled(decisions))

    def _settled(self, decisions: Decisions) -> Coupling:
        if self.propagated is None or not self.propagated.follows(decisions.choices):
            self.propagated = propagate(self.runner.traced, self.runner.further, decisions.choices)
        return settle(self.propagated, self.ignore, decisions, self.reasons)

    def _with_literals(self, coupling: Coupling) -> Coupling:
        """With all literals of the network's graphs that equal a size where they are used: each node is a place of its
        own, and one after the other they would use the trials up."""
        decided = coupling.decisions
        self.literals = literal_decisions(self.runner.model, coupling, self.runner.examples)
        decisions = self.literals | decided
        if decisions == decided:
            return coupling
        return self._coupled(decisions) if decisions.ties != decided.ties else with_mends(coupling, decisions)

    def _after(self, coupling: Coupling, failure: Failure) -> Coupling:
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

    def _mended(self, coupling: Coupling, failure: Failure) -> _Trial:
        """The first proposal that lets the trial get further, or the last one."""
        trial = _Trial(_Outcome.LEFT, coupling, failure.mismatch)
        self.spent_at = self.vain + MAX_TRIALS_AT_PLACE
        mismatch = failure.mismatch
        view, given = coupling.views()[mismatch.view], self.runner.given(coupling, mismatch.view)
        proposed: Iterable[Decisions] = moves(self.runner.model, view, mismatch, given)
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

    def _proposed(self, coupling: Coupling, move: Decisions, failure: Failure) -> _Trial:
        """A proposal: with an attribute that most likely has to change, too; as it is; or with another attribute."""
        trial = self._tied(coupling, move, failure)
        if trial.outcome is not _Outcome.FURTHER:
            trial = self._with(coupling, move, failure)
        if trial.outcome is not _Outcome.STUCK or move.mends or trial.mismatch is None:
            return trial
        for edit in self._edits(trial.coupling, trial.mismatch):
            edited = self._with(trial.coupling, edit, failure)
            if edited.outcome is _Outcome.FURTHER:
                return edited
        return trial

    def _edits(self, coupling: Coupling, mismatch: Mismatch) -> Iterable[Decisions]:
        """What may have to change besides, where a coupling fails."""
        view, given = coupling.views()[mismatch.view], self.runner.given(coupling, mismatch.view)
        return edits(self.runner.model, view, mismatch, given)

    def _tied(self, coupling: Coupling, move: Decisions, failure: Failure) -> _Trial:
        """As `_with`, for ties where the operator was given attributes, too: most likely one has to change with them,
        or all at once (heads and embedding of an attention whose layer for queries, keys and values is one)."""
        trial = _Trial(_Outcome.LEFT, coupling, failure.mismatch)
        by_attribute = any(isinstance(s, FromAttribute) for s in failure.mismatch.sources)
        if self._spent() or not move.ties or move.mends or not by_attribute:
            return trial
        tied = self._coupled(coupling.decisions | move)
        found = list(self._edits(tied, failure.mismatch))
        most = max(found, key=lambda edit: len(edit.mends), default=None)
        for edit in (*found[:1], *(f for f in found[1:] if f is most)):
            trial = self._with(tied, edit, failure)
            if trial.outcome is _Outcome.FURTHER:
                break
        return trial

    def _with(self, coupling: Coupling, move: Decisions, failure: Failure) -> _Trial:
        """The coupling with a proposal, and whether its trial gets further than the failure."""
        left = _Trial(_Outcome.LEFT, coupling, failure.mismatch)
        if self._spent() or (coupling.decisions, move) in self.tried:
            return left
        if any((m.module, m.attribute) in self.constant and m.terms for m in move.mends):
            return left
        self.tried.append((coupling.decisions, move))
        tried, whole = self._taken(coupling, move)
        if not tried.prunable or not whole or (move.choices and self._worse(tried, coupling, failure.mismatch)):
            return left
        last = failure.number == self.runner.numbers(tried, self.accepted)[-1]
        found = self.runner.run(tried, failure.number, couplings=last or not (failure.mismatch.node or tried.further))
        passed = found is None or self.runner.position(found) > self.runner.position(failure.mismatch)
        counts = any(choice.startswith((COUNTED, SUMMED)) for choice in move.choices.values())
        if move.choices and not counts and found is not None and _scales(found, tried):
            passed = False  # Narrower heads change the scale of an attention: that leads nowhere.
        self.vain += not passed
        return _Trial(_Outcome.FURTHER if passed else _Outcome.STUCK, tried, found)

    def _worse(self, tried: Coupling, coupling: Coupling, mismatch: Mismatch) -> bool:
        """Whether a proposal leaves no more that can go than if the groups were frozen that the failing operator
        handles: what was to shrink in a finer way may be down to one channel, and others with it."""
        view, given = coupling.views()[mismatch.view], self.runner.given(coupling, mismatch.view)
        return removable(tried) <= removable(coupling, groups_at(mismatch, view, given))

    def _taken(self, coupling: Coupling, move: Decisions) -> tuple[Coupling, bool]:
        """The coupling with a proposal, and whether it has all mends that were decided."""
        decisions = coupling.decisions | move
        if move.choices:
            decisions = replace(decisions, choices=without_pieces(decisions.choices))
        taken = self._coupled(decisions) if move.choices or move.ties else with_mends(coupling, decisions)
        if move.choices and len(taken.mended) < len(decisions.mends):
            # An attribute that counted what does not shrink any more.
            decisions = replace(taken.decisions, mends=tuple(m for m in decisions.mends if resolve(m, taken.groups)))
            taken = with_mends(taken, decisions)
        return taken, len(taken.mended) >= len(decisions.mends)

    def _spent(self) -> bool:
        """Whether enough was tried in vain, at one place or at all."""
        return self.vain >= min(self.spent_at, MAX_TRIALS)

    def _unmended(self) -> Coupling:
        """The coupling to start over from when the trials are used up."""
        self.gave_up, self.accepted = True, False
        self.reasons.clear()
        return self._coupled(self.literals)

    def _frozen(self, coupling: Coupling, mismatch: Mismatch) -> Coupling:
        """With the groups frozen that the failing operator handles. Ties of such a group did not help, nor did
        attributes that follow one: they go, the first time that a place fails."""
        view, given = coupling.views()[mismatch.view], self.runner.given(coupling, mismatch.view)
        names = groups_at(mismatch, view, given) & {g.name for g in coupling.prunable}
        named = mismatch.place[0] and not mismatch.compared
        what = "{} at {}".format(*mismatch.place) if named else mismatch.short
        reason = f"{CONSTANT}: {what}"
        if not names:
            names = {g.name for g in coupling.prunable}
            reason = f"a trial with narrower layers failed: {mismatch.short}"
        groups = [g for g in coupling.groups if g.name in names]
        axes = {m.axis for g in groups for m in g.members}
        decisions = coupling.decisions
        ties = tuple(t for t in decisions.ties if not {t.a, t.b} & axes)
        given_up = [m for m in decisions.mends if {axis for axis, _ in m.terms} & axes]
        by_attribute = names & groups_followed(mismatch.sources, view)
        if by_attribute:
            # An operator whose own widths are fixed was given it.
            attributes = {s.attribute for s in mismatch.sources if isinstance(s, FromAttribute)}
            self.constant |= {(m.module, m.attribute) for m in given_up if m.attribute in attributes}
        if ties != decisions.ties or by_attribute:
            mends = tuple(m for m in decisions.mends if m not in given_up)
            loose = self._coupled(replace(decisions, ties=ties, mends=mends))
            if mismatch.place not in self.untied:
                self.untied.add(mismatch.place)
                return loose
            if mismatch.by_value and given_up:
                # The number is that of one width: what an attribute seemed to tie to it may go.
                own = groups_at(mismatch, loose.views()[mismatch.view], given) & {g.name for g in loose.prunable}
                coupling, groups = (loose, [g for g in loose.groups if g.name in own]) if own else (coupling, groups)
        return self._freeze(coupling, groups, reason)

    def _freeze(self, coupling: Coupling, groups: Sequence[ChannelGroup], reason: str) -> Coupling:
        """With these groups frozen."""
        for group in groups:
            self.reasons[own_axis(group, coupling) or group.members[0].axis] = reason
        return self._coupled(coupling.decisions)


def _scales(found: Mismatch, coupling: Coupling) -> bool:
    """Whether a trial fails at a number that follows a width, and belongs to no statistic."""
    nodes = coupling.views()[found.view].traced.graph.nodes if found.by_value else ()
    return any(node.name == found.node and count_at(node) is None for node in nodes)
