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
    yardstick, request = session.yardstick, session.request
    model, coupling, best = yardstick.model, yardstick.coupling, session.best.network
    compared, settled = shared_out(data, SAMPLES)
    reference = Reference.of(model, compared, request.loss)
    order, now = _orders(session), coupling.widths(best.plan)
    left, tables, _ = yardstick.left(best.plan)
    options = options_of(left, Plan(), request)
    free = [name for name in options if len(options[name]) > 1 and name not in yardstick.held and name in order]
    budgets, whole = yardstick.limits(), Network(model, Plan(), coupling)
    settling = replace(request, data=settled, recalibrate=True)

    def plan_of(widths: Mapping[str, int]) -> Plan:
        kept = {n: tuple(sorted(order[n][: widths[n]])) for n in free}
        return Plan({**best.plan.kept, **kept}, best.plan.dropped)

    def distance(plan: Plan) -> float:
        small = Network(rewrite(model, plan, request.examples, coupling=coupling, check=False), plan)
        try:
            compensated(small, whole, settling, yardstick, SAMPLES)
            return reference.distance(small.model)
        except HalpError:  # A forward that does not run at these widths, which no trial had.
            return math.inf

    def nearest(wanted: np.ndarray) -> dict[str, int]:
        groups = {}
        for name, widths in options.items():
            fixed = name not in free
            own = np.array([now[name]] if fixed else sorted({*widths, now[name]}))
            off = np.zeros(1) if fixed else np.log(own / now[name]) - wanted[free.index(name)]
            # What is wider than it should be is worth a little more: what is left of the budget is spent evenly.
            groups[name] = WidthGroup(own, -(np.minimum(off, 0) ** 2) - 1e-3 * np.exp(-np.maximum(off, 0)))
        problem = WidthProblem("varied", groups, tuple(tables), budgets)
        try:
            return dict(solve(problem, "lagrangian", work_limit=5.0).widths)
        except InfeasibleError:  # What was measured since says that the budget is smaller than what was found for it.
            return now

    draw = np.random.default_rng(0)
    at, spread = np.zeros(len(free)), SPREAD
    known = {tuple(now[n] for n in free)}
    first = closest = distance(plan_of(now))
    found: Mapping[str, int] = now
    with session.clock("vary widths"), work("vary widths", EVALUATIONS, "networks") as done:
        for _ in range(EVALUATIONS if free else 0):
            moved = draw.random(len(free)) < SHARE
            moved[draw.integers(len(free))] = True
            wanted = at + moved * draw.normal(0, spread, len(free))
            widths = nearest(wanted)
            key = tuple(widths[n] for n in free)
            off = closest if key in known else distance(plan_of(widths))
            known.add(key)
            if off < closest:
                at, closest, found = wanted, off, widths
            else:
                spread = max(spread * 0.97, SPREAD / 4)
            done()
    return plan_of(found) if closest < first else None


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
