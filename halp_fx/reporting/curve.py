"""What a network costs at many budgets: the value that `pareto` returns, as a table and as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import BudgetError, InfeasibleError
from ..files import path_of
from ..fitting import Column, folded, tabled
from ..latency import ParamsCost
from ..model.preserving import as_modes_of, preserved
from ..model.tensors import parameter_count
from ..pruning.budgets import amount, figure, parse_budget
from ..pruning.frontier import Frontier
from ..pruning.reached import hand_over
from ..pruning.session import Session
from ..types import Plan
from .detailing import given_by
from .making import report_on
from .plots import COLORS, DENSE, PRUNED, new_figure, save, shares_on


@dataclass(frozen=True, slots=True)
class Point:
    """One budget.

    Attributes:
        asked: the budget, as the caller wrote it.
        budget, predicted, measured, dense: in the unit of the cost, as in a `Report`; the dense network as it was timed
            beside this point.
        plan: kept channels of the dense network.
        parameters: how many are left.
        gap: certified: no choice of widths within the budget is worth more than this, relative (`Solution.gap`).
        tolerance: relative deviation from the budget that was asked for; for a counted cost, rounding.
        score: what the caller's `score_fn` said; None without.
        busy: as in a `Report`.
    """

    asked: str
    budget: float
    predicted: float
    measured: float
    dense: float
    plan: Plan
    parameters: int
    gap: float
    tolerance: float
    score: float | None = None
    busy: str = ""

    @property
    def share(self) -> float:
        """Measured, of the dense network's cost."""
        return self.measured / self.dense

    @property
    def met(self) -> bool:
        """As `Report.met`."""
        return self.measured <= self.budget * (1 + self.tolerance) and self.measured <= self.dense

    @property
    def trusted(self) -> bool:
        """As `Report.trusted`."""
        return not self.busy


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Points from the largest budget to the smallest; what they measure falls with them.

    Attributes:
        unit, dense: of the cost; the dense network's.
        points: the budgets that can be reached.
        refused: budget -> why it cannot be.
        seconds: wall-clock time per stage, of all budgets together.
        dense_score: what `score_fn` said of the dense network; None without.
        by: what gave times of networks that were not timed, in words ("the table of Raspberry Pi 5, 4 cores"); "" for
            times that were measured, and for what is counted.
    """

    unit: str
    dense: float
    points: tuple[Point, ...]
    refused: Mapping[str, str]
    seconds: Mapping[str, float]
    dense_score: float | None
    _made: Callable[[Point], nn.Module] = field(repr=False)
    _resource: str = field(repr=False)
    by: str = ""

    def at(self, budget: float | str) -> Point:
        """The largest point that a budget has room for.

        Raises:
            BudgetError: malformed, or below every point.
        """
        asked = parse_budget(budget, self._resource)
        for point in self.points:
            if point.measured <= asked.limit(point.dense) * (1 + point.tolerance):
                return point
        least = self.points[-1]
        raise BudgetError(
            f"a budget of {amount(asked.limit(self.dense), self.unit)} is below every point of the curve; the smallest "
            f"takes {amount(least.measured, self.unit)} ({least.share:.1%} of dense). Ask pareto for this budget"
        )

    def network(self, budget: Point | float | str) -> nn.Module:
        """The network of a point, made now; `halp` is its report.

        Args:
            budget: a point, or a budget that has room for one.

        Raises:
            BudgetError: see `at`.
            RewriteError: the forward does not run at these widths; name what is in its way in `ignore`.
        """
        return self._made(budget if isinstance(budget, Point) else self.at(budget))

    def rows(self) -> list[dict[str, Any]]:
        """The points as plain values."""
        rows = []
        for p in self.points:
            row: dict[str, Any] = {"asked": p.asked, "budget": p.budget, "predicted": p.predicted}
            row |= {"measured": p.measured, "share": p.share, "met": p.met, "trusted": p.trusted, "gap": p.gap}
            row |= {"parameters": p.parameters} | ({"score": p.score} if p.score is not None else {})
            rows.append(row)
        return rows

    def to_json(self) -> str:
        """Rows and plans, for another program."""
        rows = [row | {"plan": json.loads(p.plan.to_json())} for row, p in zip(self.rows(), self.points, strict=True)]
        return json.dumps(
            {"unit": self.unit, "dense": self.dense, "by": self.by, "points": rows, "refused": dict(self.refused)}
        )

    def __str__(self) -> str:
        scored = self.dense_score is not None
        table = []
        for p in self.points:
            costs = [figure(cost, self.unit) for cost in (p.budget, p.predicted, p.measured)]
            row = [p.asked, *costs, f"{p.share:.1%}", f"{p.parameters:,}"]
            table.append([*row, "yes" if p.met else "no", *([f"{p.score:.4g}"] if scored else [])])
        number = Column.number
        columns = [
            Column("asked"),
            number(f"budget, {self.unit}", 2),
            number("predicted", 1),
            number("by the table" if self.by else self._taken),
        ]
        columns += [number("of dense"), number("parameters", 3), Column("met"), *([number("score")] if scored else [])]
        parts = [tabled(columns, table)]
        parts.append(f"dense: {amount(self.dense, self.unit)}" + (f", score {self.dense_score:.4g}" if scored else ""))
        parts += [f"times are by {self.by}: no network was timed"] if self.by else []
        parts += [f"{p.asked}: times that are not to be trusted: {p.busy}" for p in self.points if not p.trusted]
        parts += [f"{budget}: {why}" for budget, why in self.refused.items()]
        return folded("\n\n".join(parts))

    @property
    def _taken(self) -> str:
        """How costs of networks were found."""
        return f"by {self.by}" if self.by else "measured" if self.unit == "ms" else "counted"

    def plot(self, path: str | Path) -> Path:
        """Draw predicted and measured cost against the budget and, if there are scores, the score against the cost;
        returns the path.

        Raises:
            LatencyError: matplotlib is not installed.
        """
        figure = new_figure(figsize=(9 if self.dense_score is not None else 5, 4), layout="constrained")
        axes = figure.subplots(1, 2 if self.dense_score is not None else 1, squeeze=False)[0]
        budgets = [p.budget / p.dense for p in self.points]
        axes[0].plot(budgets, budgets, color=DENSE, label="budget")
        axes[0].plot(budgets, [p.predicted / p.dense for p in self.points], "x", color=COLORS[1], label="predicted")
        axes[0].plot(budgets, [p.share for p in self.points], "o-", color=PRUNED, markersize=3, label=self._taken)
        of = f"of the dense network's {amount(self.dense, self.unit)}"
        axes[0].set(xlabel=f"budget, {of}", ylabel=f"cost, {of}", title="What the budgets give")
        axes[0].legend(fontsize=8)
        shares_on(axes[0].xaxis, axes[0].yaxis)
        if self.dense_score is not None:
            axes[1].plot(
                [p.share for p in self.points], [p.score for p in self.points], "o-", color=PRUNED, markersize=3
            )
            axes[1].axhline(self.dense_score, color=DENSE, linestyle="--", linewidth=0.8, label="dense")
            axes[1].legend(fontsize=8)
            axes[1].set(xlabel=f"cost, {of}", ylabel="score", title="What is left of the score")
            shares_on(axes[1].xaxis)
        return save(figure, path_of(path))


def curve_of(frontier: Frontier, passed: Callable[[], object]) -> Curve:
    """Go past all budgets.

    Raises:
        InfeasibleError: none of them can be reached. Whatever ends it early carries the curve up to there.
    """
    session = frontier.session
    points: list[Point] = []
    stood: dict[str, Session] = {}
    try:
        for asked, _ in frontier.points(passed):
            scores = session.judgement.scores if session.judgement is not None else []
            point = _point(asked, session, scores[-1].score if scores else None)
            stood[asked] = _as_it_stands(session)
            points.append(point)
            if len(points) > 1 and point.measured > points[-2].measured:
                # What the larger budget left of it may be worth more than what was found for this one.
                points[-1] = replace(points[-2], asked=asked, budget=point.budget)
                wider = stood[points[-2].asked]
                stood[asked] = replace(wider, request=session.request, yardstick=stood[asked].yardstick)
    except BaseException as error:
        if points:
            hand_over(error, _curve(frontier, points, stood), f"the curve up to a budget of {points[-1].asked}")
        raise
    if not points:
        raise next(iter(frontier.refused.values()))
    return _curve(frontier, points, stood)


def _curve(frontier: Frontier, points: Sequence[Point], stood: Mapping[str, Session]) -> Curve:
    """The curve through these points.

    Args:
        stood: the session at each budget.
    """
    session = frontier.session
    model = session.yardstick.model

    def made(point: Point) -> nn.Module:
        with torch.inference_mode(False), preserved(model):
            small, compensation = frontier.network(point.plan)
        as_modes_of(small, model)
        then = stood[point.asked]
        best = replace(then.best, network=replace(then.best.network, model=small))
        then = replace(then, candidates=[best], compensation=compensation)
        small.halp = report_on(then)  # type: ignore[assignment]
        return small

    return Curve(
        unit=session.yardstick.goals.cost.unit,
        dense=session.yardstick.dense,
        points=tuple(points),
        refused=_refused(frontier.refused),
        seconds=dict(session.clock.seconds),
        dense_score=session.judgement.scores[0].score if session.judgement is not None else None,
        _made=made,
        _resource=session.yardstick.goals.cost.resource,
        by=given_by(session.yardstick.goals.cost),
    )


def _as_it_stands(session: Session) -> Session:
    """What a report on this point will be made of: the session goes on."""
    tables = session.yardstick.tables if session.best.network.plan else None
    judgement = session.judgement
    if judgement is not None:
        judgement = replace(judgement, scores=list(judgement.scores))
    yardstick = replace(session.yardstick, tables=tables)
    return replace(session, yardstick=yardstick, trail=list(session.trail), judgement=judgement)


def _point(asked: str, session: Session, score: float | None) -> Point:
    """What a session closed in on."""
    yardstick, best = session.yardstick, session.best
    return Point(
        asked=asked,
        budget=yardstick.budget * yardstick.dense,
        predicted=best.predicted * yardstick.dense,
        measured=best.measured * yardstick.dense,
        dense=yardstick.dense,
        plan=best.network.plan,
        parameters=_parameters(session),
        gap=best.choice.solution.gap,
        tolerance=session.slack,
        score=score,
        busy=best.busy,
    )


def _parameters(session: Session) -> int:
    """Of the best candidate, also where its network was not made."""
    network, yardstick = session.best.network, session.yardstick
    if not session.planned:
        return parameter_count(network.model)
    left, _, _ = yardstick.left(network.plan)
    gone = ParamsCost().total(yardstick.coupling) - ParamsCost().total(left, left.widths(network.plan))
    return parameter_count(yardstick.model) - round(gone)


def _refused(errors: Mapping[str, InfeasibleError]) -> dict[str, str]:
    """Why budgets cannot be reached: of the largest the reason, of all below it that one."""
    largest = next(iter(errors), "")
    return {n: str(e) if n == largest else f"it is below {largest}, which cannot be reached" for n, e in errors.items()}
