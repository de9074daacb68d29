"""contest: several ways to a budget -> the network of one of them, chosen by how far it is from the dense one.

Values say what a network loses as long as little is gone; at small budgets the best of them loses to even widths here
and there (docs/benchmarks_accuracy.md), and a solver cannot tell, for it is their optimum. So several ways are gone
(`variants`), and what comes out is judged by something that none of them maximised: the distance of its outputs to
those of the dense network, on a quarter of the data that nobody else sees. It is that of a copy which was trained for a
little while (`rehearsing`), which foretells better what fine-tuning makes of a network, by a measure that is bounded
(`Reference.bounded`); or, with `judge="untrained"`, that of the network as it stands, whose widths are then varied as
well (`varying`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import nn

from ..errors import InfeasibleError, ModelError, RewriteError
from ..model.copying import copied
from ..progress import work
from ..rewriting.applying import rewrite
from ..scoring.divergence import Reference, finite_on
from ..scoring.sampled import HELD_OUT, divided, none_counted
from ..types import Plan
from .distributed import Team
from .judging import Judgement
from .networks import Contest, Judged, Network
from .reached import nothing_lost
from .rehearsing import Rehearsal
from .request import Request
from .restoring import compensated
from .resuming import Notebook
from .session import Session
from .standing import scored
from .variants import variants
from .varying import varied
from .walking import walked

logger = logging.getLogger("halp_fx")

TUNED = 3
"""Networks that are trained once more before they are judged for good, where there is a `train_between`."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A way that was gone to its end: its session, which has the network, and what the judge says of that."""

    session: Session
    judged: Judged

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """The smallest is the best: what keeps the budget, then what could be trained, then what is close."""
        session, judged = self.session, self.judged
        keeps = session.best.keeps(session.yardstick.budget, session.slack)
        return not keeps, judged.tuned is None, judged.last


def contested(model: nn.Module, request: Request, team: Team, notebook: Notebook | None = None) -> Session:
    """The session of the best way.

    Raises:
        As `Session.start` and `Session.close`; SaliencyError: too little data to hold some out, or networks whose
        outputs do not compare.
    """
    if team.size > 1 and request.train_between is not None:
        raise ModelError("effort='thorough' with train_between is for one process: leave one of them out in a job")
    given = list(islice(request.data or (), request.batches))
    batches, lost = finite_on(model, given, request.loss_fn, request.loss)
    if lost and not batches:
        raise none_counted(len(lost))
    kept, held = parted(batches)
    reference = Reference.of(model, held, request.loss)
    request, apart = replace(request, data=batches), replace(request, data=kept, score_fn=None, heal=False)
    found: list[_Entry] = []
    with nothing_lost(lambda: _best(found).session if found else None):
        session = _elected(model, request, apart, reference, team, notebook, found)
    if session.contest is not None:
        session.contest = replace(session.contest, lost=lost)
    return session


def _elected(
    model: nn.Module,
    request: Request,
    apart: Request,
    reference: Reference,
    team: Team,
    notebook: Notebook | None,
    found: list[_Entry],
) -> Session:
    """Go all ways, and elect the best network.

    Args:
        apart: what is asked for without the data that are held out.
        found: the ways that were gone to their end go here.
    """
    ways = list(variants(apart))
    rehearsal = Rehearsal.of(model, list(apart.data or ()), request.loss) if request.rehearses else None
    with work("ways", len(ways) + 1, "ways") as done:
        for name, asked in ways:
            part = None if notebook is None else notebook.part(name, model, asked)
            try:
                session = walked(model, asked, team, part)
            except InfeasibleError as error:
                if not found:
                    raise
                logger.info("%s is left out: %s", name, error)
                done()
                continue
            if session.yardstick.met_already:
                return session
            with nothing_lost(lambda closed=session: None if found else closed):  # type: ignore[misc]
                found.append(_judged(name, session, reference, rehearsal))
            done()
        # What a network has learnt on its way one of other widths has not; and what is closer as it stands need not be
        # closer after training.
        if request.train_between is None and rehearsal is None:
            best = _best(found)
            plan = varied(best.session, list(apart.data or ()))
            try:
                if plan is not None:
                    found.append(_judged("widths varied", _session_of(plan, best.session), reference))
            except RewriteError as error:
                logger.info("varied widths are left out: %s", error)
        done()
    if request.train_between is not None:
        found = _tuned(found, request, reference)
    found.sort(key=lambda c: c.rank)
    session = found[0].session
    if request.train_between is None:
        _made_of_all(session, request)
    helped = not request.compensate and request.train_between is None
    session.contest = Contest(tuple(c.judged for c in found), reference.kind, reference.samples, helped)
    logger.info("%s is closest to the dense network: %.4g", found[0].judged.name, found[0].judged.last)
    if request.score_fn is not None:
        session.judgement = Judgement(request.score_fn, None)
        for network, share in ((Network(model, Plan()), 1.0), (session.best.network, session.best.measured)):
            session.judgement.holds(network, share)
    return session


def _best(found: Sequence[_Entry]) -> _Entry:
    return min(found, key=lambda c: c.rank)


def parted(batches: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Batches to prune with, and those held out for the judge; with few batches a part of the samples of each.

    Raises:
        SaliencyError: there is too little to hold some out.
    """
    if len(batches) >= HELD_OUT:
        held = batches[HELD_OUT - 1 :: HELD_OUT]
        return [b for i, b in enumerate(batches) if i % HELD_OUT < HELD_OUT - 1], list(held)
    why = "effort='thorough' holds a quarter of the data out to judge by"
    return divided(batches, lambda count: count - count // HELD_OUT, why)


def _judged(name: str, session: Session, reference: Reference, rehearsal: Rehearsal | None = None) -> _Entry:
    """The way with the distance of its network: re-estimated, and compensated as far as that takes nothing back; and of
    a trained copy."""
    request, small = session.request, session.best.network
    with session.clock("judge"):
        if not request.compensate and request.train_between is None:
            small = Network(copied(small.model), small.plan)
            whole = Network(session.yardstick.model, Plan(), session.yardstick.coupling)
            compensated(small, whole, replace(request, recalibrate=True), session.yardstick)
        trained = None if rehearsal is None else rehearsal.rehearsed(small.model)
        tuned = None if trained is None else reference.bounded(trained)
        return _Entry(session, Judged(name, session.best.measured, reference.distance(small.model), tuned))


def _session_of(plan: Plan, like: Session) -> Session:
    """A closed session for another plan: one step from the dense network."""
    yardstick, request = like.yardstick, like.request
    session = replace(like, candidates=[], trail=[], compensation=None)
    small = rewrite(yardstick.model, plan, request.examples, coupling=yardstick.coupling)
    session.network = scored(Network(yardstick.model, Plan()), request, yardstick)
    session.candidates = [session.as_it_is(Network(small, plan, saliency=session.network.saliency))]
    session.finish()
    return session


def _made_of_all(session: Session, request: Request) -> None:
    """The best network again, now that nothing has to be held out any more."""
    best, yardstick = session.best, session.yardstick
    session.request = replace(session.request, data=request.data, heal=request.heal)
    session.network = Network(yardstick.model, Plan(), yardstick.coupling)
    small = rewrite(yardstick.model, best.network.plan, session.request.examples, coupling=yardstick.coupling)
    again = replace(best, network=replace(best.network, model=small))
    session.candidates = [again if c is best else c for c in session.candidates]
    session.finish()


def _tuned(found: list[_Entry], request: Request, reference: Reference) -> list[_Entry]:
    """The closest ones judged after one more training, of copies: what comes out is trained by the caller."""
    assert request.train_between is not None
    found = sorted(found, key=lambda c: c.rank)
    again = []
    for entry in found[:TUNED]:
        with entry.session.clock("train_between"):
            trained = copied(entry.session.best.network.model)
            request.train_between(trained)
        again.append(replace(entry, judged=replace(entry.judged, tuned=reference.bounded(trained))))
    return [*again, *found[TUNED:]]
