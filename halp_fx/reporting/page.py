"""A report -> one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..pruning.budgets import amount, figure
from .charts import MOST_ARCS, ROW, arcs, staircase
from .details import GroupReport, LayerChange
from .wording import prediction

if TYPE_CHECKING:
    from .report import Report

_MOST_BARS = 20
"""Layers that are drawn; the table has them all."""

_UNSCORED = ("magnitude", "not scored")
"""What widths do not follow."""

_MOST_STAIRS = 24
"""Groups whose widths are drawn, those that cost most first: a page of a thousand drawings is not read."""


def page(report: Report) -> str:
    """The whole page."""
    return _environment().get_template("report.html.jinja").render(**_values(report))


def fragment(report: Report) -> str:
    """The verdict and the costs, to be shown in a notebook."""
    return _environment().get_template("fragment.html.jinja").render(**_values(report))


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("halp_fx.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(amount=amount, figure=figure, share=_share, number=_number)
    return found


def _values(report: Report) -> dict[str, Any]:
    """What the templates say."""
    names = _rows(report)
    kept = {g.name: g for g in report.groups}
    stairs = sorted((g for g in report.groups if len(g.cost.widths) > 1), key=_weight)
    return {
        "report": report,
        "scored": report.saliency not in _UNSCORED,
        "figures": _figures(report),
        "sizes": _sizes(report),
        "names": names,
        "groups": kept,
        "widest": max((g.size for g in report.groups), default=1),
        "arcs": arcs(names, report.flows),
        "arcs_left": max(0, len(set(report.flows)) - MOST_ARCS),
        "row": ROW,
        "bars": _bars(report),
        "longest": max((max(c.cost) for c in _bars(report)), default=1.0) or 1.0,
        "stairs": [(g, staircase(g, report.unit)) for g in stairs[:_MOST_STAIRS]],
        "stairs_left": len(stairs) - len(stairs[:_MOST_STAIRS]),
        "prediction": prediction(report),
    }


def _weight(group: GroupReport) -> float:
    return -max(group.cost.values, default=0.0)


def _rows(report: Report) -> tuple[str, ...]:
    """Groups that could shrink, in the order of the forward."""
    order = dict.fromkeys(name for flow in report.flows for name in flow)
    known = {g.name for g in report.groups}
    return (*(n for n in order if n in known), *(g.name for g in report.groups if g.name not in order))


def _figures(report: Report) -> list[dict[str, Any]]:
    """The bars on top: dense, budget, predicted, measured; each with its share of the longest. What is counted, or
    the sum of a table, is what was predicted."""
    timed = report.timed
    rows = [
        ("dense", report.dense, report.scatter * report.dense, "plain"),
        ("budget", report.budget, 0.0, "limit"),
        *([("predicted", report.predicted, 0.0, "plain")] if timed else []),
        ("measured" if timed else "pruned", report.measured, report.scatter * report.measured, "accent"),
    ]
    most = max(value + scatter for _, value, scatter, _ in rows) or 1.0
    return [
        {
            "name": name,
            "value": value,
            "share": value / report.dense if report.dense else 1.0,
            "length": 100 * value / most,
            "scatter": 100 * scatter / most,
            "spread": scatter,
            "kind": kind,
        }
        for name, value, scatter, kind in rows
    ]


def _sizes(report: Report) -> list[tuple[str, float, float, str]]:
    """Tiles: what, before, after, unit."""
    rows = [
        ("Latency" if report.unit == "ms" else report.unit, report.dense, report.measured, report.unit),
        ("MACs", *report.macs, ""),
        ("Parameters", *report.parameters, ""),
        ("Peak activations", *report.memory, "bytes"),
    ]
    return [row for i, row in enumerate(rows) if row[1] and not (i and row[0] == report.unit)]


def _bars(report: Report) -> list[LayerChange]:
    return sorted((c for c in report.costs if c.cost[0] > 0), key=lambda c: -c.cost[0])[:_MOST_BARS]


def _share(value: float) -> str:
    """A share in whole per cents, small ones with a digit more."""
    return f"{value:.1%}" if value < 0.1 else f"{value:.0%}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
