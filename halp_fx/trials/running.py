"""Runner: a coupling -> its trials: networks with narrower layers, built, run and verified, to find out what the
forward takes for constant.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import nn

from ..model.copying import hollowed
from ..model.inputs import Examples
from ..rewriting.slicing import shrink
from ..rewriting.verification import verify
from ..types import Coupling, Mismatch, Plan, Traced
from .plans import by_turns, drawn, halves, shares
from .tagging import Given, given_in, tagging

_SHARES, _DRAWN, _EVERY_FORWARD, _HALVES, _ONE_OF_TWO = range(5)
"""Trials: groups at several shares of their widths; at widths drawn at random; further forwards (train mode, other
examples), too; all groups halved, for what was mended must not rest on unequal shares either; groups of two channels
that lose one by turns, for in the others they all do, and seem to follow each other."""

_PLANS: dict[int, Callable[[Coupling], Plan]] = {_DRAWN: drawn, _HALVES: halves, _ONE_OF_TWO: by_turns}
"""Of the others it is `shares`."""

_COLLECTED_EVERY = 16
"""Trials: graphs are cycles, and networks that freeze place by place need hundreds of trials."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Where a coupling fails its trials.

    Attributes:
        mismatch: of the first trial that fails.
        number: which trial that is.
    """

    mismatch: Mismatch
    number: int


@dataclass(slots=True)
class _Tried:
    """A coupling, the plans of its trials, and what came of them."""

    coupling: Coupling
    plans: dict[int, Plan] = field(default_factory=dict)
    outcomes: dict[int, Mismatch | None] = field(default_factory=dict)

    @classmethod
    def of(cls, coupling: Coupling, other: _Tried | None) -> _Tried:
        """Nothing yet, with the plans of another look at the same coupling."""
        return cls(coupling, other.plans if other is not None and other.coupling is coupling else {})

    def plan(self, number: int) -> Plan:
        if number not in self.plans:
            self.plans[number] = _PLANS.get(number, shares)(self.coupling)
        return self.plans[number]


@dataclass
class Runner:
    """Trials of one network.

    Attributes:
        traced, further: its forward, and others of it.
        count: trials that were run.
    """

    model: nn.Module
    examples: Examples
    traced: Traced
    further: Sequence[Traced]
    count: int = 0
    _given: dict[int, Given] = field(default_factory=dict)
    # The coupling that was asked about last, and the one whose trials were run last: often, two take turns.
    _planned: _Tried | None = None
    _ran: _Tried | None = None

    def first_failure(self, coupling: Coupling, decided: bool) -> Failure | None:
        """The first trial that fails; `decided` as for `numbers`."""
        numbers = self.numbers(coupling, decided)
        for number in numbers:
            # Couplings are compared once, in the last trial.
            mismatch = self.run(coupling, number, couplings=number == numbers[-1])
            if mismatch is not None:
                return Failure(mismatch, number)
        return None

    def numbers(self, coupling: Coupling, decided: bool) -> list[int]:
        """The trials that a coupling has to pass.

        Args:
            decided: whether something was mended before, so that it must hold for other widths, too.
        """
        decided = decided or bool(coupling.decisions.ties or coupling.decisions.mends)
        numbers = [_SHARES, _DRAWN] if decided else [_SHARES]
        if decided and self._plan(coupling, _HALVES) not in [self._plan(coupling, n) for n in numbers]:
            numbers.append(_HALVES)
        if sum(g.size == 2 for g in coupling.prunable) > 1:
            numbers.append(_ONE_OF_TWO)
        return [*numbers, _EVERY_FORWARD] if coupling.further else numbers

    def run(self, coupling: Coupling, number: int, couplings: bool) -> Mismatch | None:
        """One trial, unless it is known what comes of it; None if it succeeds."""
        if self._ran is None or self._ran.coupling is not coupling:
            self._ran = _Tried.of(coupling, self._planned)
        if number not in self._ran.outcomes:
            self.count += 1
            if self.count % _COLLECTED_EVERY == 0:
                gc.collect()
            tried = coupling if number == _EVERY_FORWARD else replace(coupling, further=())
            self._ran.outcomes[number] = self._verified(self._ran.plan(number), tried, couplings)
        return self._ran.outcomes[number]

    def given(self, coupling: Coupling, view: int) -> Given:
        """What operators of one of the forwards (`Coupling.views`) are given at full width."""
        if view not in self._given:
            self._given[view] = given_in(self.model, coupling.views()[view].traced, self.examples)
        return self._given[view]

    def position(self, mismatch: Mismatch) -> tuple[int, int]:
        """How far a trial got: in which forward, and its failing operator's place there."""
        order = self._orders[mismatch.view]
        return mismatch.view, order.get(mismatch.node, len(order))

    def _plan(self, coupling: Coupling, number: int) -> Plan:
        if self._planned is None or self._planned.coupling is not coupling:
            self._planned = _Tried.of(coupling, self._ran)
        return self._planned.plan(number)

    def _verified(self, plan: Plan, coupling: Coupling, couplings: bool) -> Mismatch | None:
        """Build the small network and run it with tagged numbers; without values, unless one of the forwards needs
        them: train mode may where eval mode does not."""
        on_meta = all(view.traced.on_meta for view in coupling.views())
        small = shrink(self._hollow if on_meta else self.model, plan, coupling)
        with tagging(small):
            found = verify(small, plan, coupling, self.examples, meta_only=self.traced.on_meta, couplings=couplings)
        if found is None or not found.sources:
            return found
        # The nodes of the network as it is may have other names than those of the trial's.
        given = self.given(coupling, found.view).get(found.node)
        return replace(found, sources=given) if given else found

    @cached_property
    def _hollow(self) -> nn.Module:
        """The model without values, to make trial networks from."""
        return hollowed(self.model, floating=True)

    @cached_property
    def _orders(self) -> list[dict[str, int]]:
        traces = (self.traced, *(t for t in self.further if t.run.repeatable))
        return [{node.name: i for i, node in enumerate(t.graph.nodes)} for t in traces]
