"""varying: a network that meets a budget -> widths beside it that leave it closer to the dense one, if there are any.

One coefficient a group says how much wider or narrower than now it should be; a solver finds the widths closest to
that within the budget, exactly, and the network is cut to them, compensated and compared with the dense one. It
begins at coefficients of 1, which is the network as it is, and goes from the best so far in random directions, shorter
ones after failures: what the search over coefficients of SPDY (arXiv 2201.13096) does, around a solution instead of
from scratch. Channels go in the order in which they went.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import HalpError, InfeasibleError
from ..progress import work
from ..rewriting.applying import rewrite
from ..scoring.divergence import Reference, shared_out
from ..solver import WidthGroup, WidthProblem, solve
from ..types import Plan
from .choosing import options_of
from .networks import Network
from .restoring import compensated
from .session import Session

EVALUATIONS = 64
"""Networks that are compared with the dense one at most."""

SAMPLES = 256
"""That layers are compensated with, and again that outputs are compared on, for each network. Without compensation
what came closer was further away when it was compensated (0.98 instead of 0.90 before and 0.67 with it)."""

SPREAD, SHARE = 0.3, 0.25
"""Deviation of the logarithm of a coefficient, to begin with, and share of the coefficients that change at once."""


def varied(session: Session, data: Sequence[Any]) -> Plan | None:
    """A plan with other widths whose network is closer to the dense one; None if none was found.

    Args:
        session: closed; its best network is where the search begins.
        data: batches; the first are compared on, the next ones are compensated with.
    """
    beside = _Beside(session, data)
    count = len(beside.free)
    draw = np.random.default_rng(0)
    at, spread = np.zeros(count), SPREAD
    known = {beside.key(beside.now)}
    first = closest = beside.distance(beside.now)
    found: Mapping[str, int] = beside.now
    with session.clock("vary widths"), work("vary widths", EVALUATIONS, "networks") as done:
        for _ in range(EVALUATIONS if count else 0):
            moved = draw.random(count) < SHARE
            moved[draw.integers(count)] = True
            wanted = at + moved * draw.normal(0, spread, count)
            widths = beside.nearest(wanted)
            off = closest if beside.key(widths) in known else beside.distance(widths)
            known.add(beside.key(widths))
            if off < closest:
                at, closest, found = wanted, off, widths
            else:
                spread = max(spread * 0.97, SPREAD / 4)
            done()
    return beside.plan(found) if closest < first else None


class _Beside:
    """Networks of other widths than the one that a session closed in on.

    Attributes:
        now: the widths of that one.
        free: the groups whose widths may be others.
    """

    def __init__(self, session: Session, data: Sequence[Any]) -> None:
        yardstick, request, best = session.yardstick, session.request, session.best.network
        self._yardstick, self._request, self._best = yardstick, request, best.plan
        compared, settled = shared_out(data, SAMPLES)
        self._reference = Reference.of(yardstick.model, compared, request.loss)
        self._settling = replace(request, data=settled, recalibrate=True)
        self._whole = Network(yardstick.model, Plan(), yardstick.coupling)
        left, self._tables, _ = yardstick.left(best.plan)
        self._options = options_of(left, Plan(), request)
        self._order = _orders(session)
        self.now = yardstick.coupling.widths(best.plan)
        may = (name for name, widths in self._options.items() if len(widths) > 1)
        self.free = [name for name in may if name not in yardstick.held and name in self._order]

    def key(self, widths: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(widths[n] for n in self.free)

    def plan(self, widths: Mapping[str, int]) -> Plan:
        kept = {n: tuple(sorted(self._order[n][: widths[n]])) for n in self.free}
        return Plan({**self._best.kept, **kept}, self._best.dropped)

    def distance(self, widths: Mapping[str, int]) -> float:
        """Of the network of these widths, compensated, from the dense one."""
        plan, yardstick = self.plan(widths), self._yardstick
        model = rewrite(yardstick.model, plan, self._request.examples, coupling=yardstick.coupling, check=False)
        small = Network(model, plan)
        try:
            compensated(small, self._whole, self._settling, yardstick, SAMPLES)
            return self._reference.distance(small.model)
        except HalpError:  # A forward that does not run at these widths, which no trial had.
            return math.inf

    def nearest(self, wanted: np.ndarray) -> Mapping[str, int]:
        """The widths within the budget that are closest to what is wanted: for each free group the logarithm of how
        much wider than now it should be."""
        groups = {}
        for name, widths in self._options.items():
            now, fixed = self.now[name], name not in self.free
            own = np.array([now] if fixed else sorted({*widths, now}))
            off = np.zeros(1) if fixed else np.log(own / now) - wanted[self.free.index(name)]
            # What is wider than it should be is worth a little more: what is left of the budget is spent evenly.
            groups[name] = WidthGroup(own, -(np.minimum(off, 0) ** 2) - 1e-3 * np.exp(-np.maximum(off, 0)))
        problem = WidthProblem("varied", groups, tuple(self._tables), self._yardstick.limits())
        try:
            return dict(solve(problem, "lagrangian", work_limit=5.0).widths)
        except InfeasibleError:  # What was measured since says that the budget is smaller than what was found for it.
            return self.now


def _orders(session: Session) -> dict[str, list[int]]:
    """For each group its channels, those that stayed longest first; of channels that went together, and of those that
    stayed to the end, the last scores decide as far as they are known, then the index."""
    coupling, plan = session.yardstick.coupling, session.best.network.plan
    stays = {g.name: np.zeros(g.size) for g in coupling.prunable if g.name in plan}
    for stop in (*(s.plan for s in session.trail), plan):
        for name, rank in stays.items():
            rank[list(stop.get(name, range(len(rank))))] += 1
    saliency = session.best.network.saliency
    before = session.trail[-1].plan if session.trail else Plan()
    orders = {}
    for name, rank in stays.items():
        last = np.full(len(rank), float(len(rank)))
        channels = np.array(before.get(name, range(len(rank))))
        values = saliency.known.get(name) if saliency is not None else None
        if values is not None and values.size == len(channels):
            last[channels[values.order]] = np.arange(values.size)
        orders[name] = np.lexsort((np.arange(len(rank)), last, -rank)).tolist()
    return orders
