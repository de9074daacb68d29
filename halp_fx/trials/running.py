"""Runner: a coupling -> its trials: networks with narrower layers, built, run and verified, to find out what the
forward takes for constant.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from torch import nn

from ..model.copying import hollowed
from ..model.inputs import Examples
from ..rewriting.slicing import shrink
from ..rewriting.verification import verify
from ..tracing.recording import forget_frames
from ..types import Coupling, Mismatch, Plan, Traced
from .plans import by_turns, drawn, halves, shares
from .tagging import Given, given_in, tagging

_SHARES, _DRAWN, _EVERY_FORWARD, _HALVES, _ONE_OF_TWO = range(5)
"""Trials: groups at several shares of their widths; at widths drawn at random; further forwards (train mode, other
examples), too; all groups halved, for what was mended must not rest on unequal shares either; groups of two channels
that lose one by turns, for in the others they all do, and seem to follow each other."""

_PLANS: dict[int, Callable[[Coupling], Plan]] = {_DRAWN: drawn, _HALVES: halves, _ONE_OF_TWO: by_turns}
"""Of the others it is `shares`."""

_COLLECTED_EVERY, _WITH_VALUES = 16, 4
"""Trials: graphs are cycles, and networks that freeze place by place need hundreds of trials."""


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

_LATEST = 32
"""Couplings that are remembered: often several take turns, and a search that starts over meets those of its start."""


def latest(memory: OrderedDict[_Key, _Value], key: _Key, made: Callable[[], _Value]) -> _Value:
    """What is remembered under a key, or else is made now; what was not asked for lately is forgotten."""
    if key not in memory:
        memory[key] = made()
    memory.move_to_end(key)
    while len(memory) > _LATEST:
        memory.popitem(last=False)
    return memory[key]


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
    """A coupling, and what came of its trials: by number, and whether couplings were compared."""

    coupling: Coupling
    outcomes: dict[tuple[int, bool], Mismatch | None] = field(default_factory=dict)

    def known(self, number: int, couplings: bool) -> bool:
        """Whether it is known what comes of a trial. Couplings are compared after all else, so a failure before holds
        in either case, and so does what passes with them."""
        other = (number, not couplings)
        if (number, couplings) not in self.outcomes and other in self.outcomes:
            found = self.outcomes[other]
            if found.node if found is not None else not couplings:
                self.outcomes[number, couplings] = found
        return (number, couplings) in self.outcomes


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
    # By the identities of couplings, and of the groups of couplings, which are held with them.
    _tried: OrderedDict[int, _Tried] = field(default_factory=OrderedDict)
    _plans: OrderedDict[int, tuple[Coupling, dict[int, Plan]]] = field(default_factory=OrderedDict)

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
        tried = latest(self._tried, id(coupling), lambda: _Tried(coupling))
        if not tried.known(number, couplings):
            self.count += 1
            if self.count % (_COLLECTED_EVERY if self.traced.on_meta else _WITH_VALUES) == 0:
                gc.collect()
            run = coupling if number == _EVERY_FORWARD else replace(coupling, further=())
            tried.outcomes[number, couplings] = self._verified(self._plan(coupling, number), run, couplings)
        return tried.outcomes[number, couplings]

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
        _, plans = latest(self._plans, id(coupling.groups), lambda: (coupling, {}))
        if number not in plans:
            plans[number] = _PLANS.get(number, shares)(coupling)
        return plans[number]

    def _verified(self, plan: Plan, coupling: Coupling, couplings: bool) -> Mismatch | None:
        """Build the small network and run it with tagged numbers; without values, unless one of the forwards needs
        them: train mode may where eval mode does not."""
        on_meta = all(view.traced.on_meta for view in coupling.views())
        small = shrink(self._hollow if on_meta else self.model, plan, coupling)
        with tagging(small):
            found = verify(small, plan, coupling, self.examples, meta_only=self.traced.on_meta, couplings=couplings)
        if found is None:
            return None
        forget_frames(found.cause)
        if not found.sources or found.compared:
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
