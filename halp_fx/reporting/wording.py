"""A report in words: the verdict in one line, the summary as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..fitting import Column, folded, tabled
from ..pruning.budgets import amount, figure

if TYPE_CHECKING:
    from .report import Report

_UNIT_OF = {"latency": "ms", "memory": "bytes"}
"""Of a further budget, where its name does not say it."""

_FASTER = {"ms": "faster than dense", "MACs": "fewer MACs than dense", "bytes": "less memory than dense"}


def fewer(before: float, after: float) -> str:
    """ "1.66 times" of a decrease."""
    return f"{before / after:.3g} times" if after else "all"


def verdict(report: Report) -> str:
    """Whether the budget is met, what was gained, and what it cost, in one line."""
    measured, allowed = amount(report.measured, report.unit), amount(report.budget, report.unit)
    runtime = report.conditions.runtime
    where = f" in {runtime}" if runtime not in ("", "eager") else ""
    where += f" (by {report.conditions.by})" if report.conditions.by else ""
    if not report.plan:
        return f"Nothing removed: the dense network's {measured}{where} meet the budget of {allowed} as they are"
    off = report.measured / report.budget - 1
    state = "Budget met" if report.met else f"Budget missed by {off:.1%}"
    if report.met and measured != allowed and off > 0:
        state += f" to within {max(off, 0.001):.1%}"
    if not report.trusted:
        state += ", by times that are not to be trusted"
    gained = f"{fewer(report.dense, report.measured)} {_FASTER.get(report.unit, f'fewer {report.unit} than dense')}"
    parts = [f"{state}: {measured} of {allowed} allowed{where}", gained]
    if len(report.scores) > 1:
        parts.append(f"score from {report.scores[0][1]:.4g} to {report.scores[-1][1]:.4g}")
    return ", ".join(parts)


def summarized(report: Report, groups: bool = True, width: int | None = None) -> str:
    """The verdict, costs and sizes; with `groups` also every group, what is frozen and why, and how good predictions
    were."""
    parts = [part if isinstance(part, str) else tabled(*part, width=width) for part in _parts(report, groups)]
    return folded("\n\n".join(parts), width)


_Table = tuple[Sequence[Column], Sequence[Sequence[str]]]
"""What is to be laid out when it is known how wide it may be."""


def _parts(report: Report, groups: bool) -> list[str | _Table]:
    costs = [("dense", report.dense), ("budget", report.budget)]
    if report.timed:
        costs += [("predicted", report.predicted), ("measured", report.measured)]
    else:  # What is counted, or the sum of a table, is what was predicted.
        costs.append(("pruned", report.measured))
    head = [[of, figure(cost, report.unit), f"{cost / report.dense:.1%}"] for of, cost in costs]
    number = Column.number
    parts: list[str | _Table] = [verdict(report), ((Column(""), number(report.unit), number("of dense")), head)]
    parts.append(((Column(""), number("dense"), number("pruned"), number("of dense")), _sizes(report)))
    if report.compilation is not None:
        parts.append(str(report.compilation))
    parts += _further(report)
    if groups:
        parts += _long(report)
    else:
        count = len(report.frozen)
        still = f", {count} must stay as {'they are' if count > 1 else 'it is'}" if count else ""
        parts.append(f"{_shrunk(report)}{still}: summary() and the page say which, and why")
    return [*parts, *(f"note: {note}" for note in report.notes)]


def _sizes(report: Report) -> list[list[str]]:
    rows = []
    figures = (
        ("MACs", report.macs, ""),
        ("parameters", report.parameters, ""),
        ("activations", report.memory, "bytes"),
    )
    for name, (before, after), unit in figures:
        if before and name != report.unit:
            rows.append([name, amount(before, unit), amount(after, unit), f"{after / before:.1%}"])
    return rows


def _shrunk(report: Report) -> str:
    fewer_channels = sum(g.kept < g.size for g in report.groups)
    return f"{fewer_channels} of {len(report.groups)} channel groups became narrower"


def _further(report: Report) -> list[str | _Table]:
    """Further budgets, branches, and attributes that were changed."""
    parts: list[str | _Table] = []
    for resource, costs in report.extra.items():
        dense, budget, measured = (amount(value, _UNIT_OF.get(resource, "")) for value in costs)
        parts.append(f"{resource}: dense {dense}, budget {budget}, reached {measured}")
    if report.branches:
        dropped = ", ".join(report.dropped) or "none"
        offered = sum(state in ("dropped", "kept") for state in report.branches.values())
        parts.append(f"branches dropped: {dropped} ({len(report.dropped)} of {offered} that may be)")
    if report.scores:
        steps = [[figure(cost, report.unit), f"{cost / report.dense:.1%}", f"{s:.4g}"] for cost, s in report.scores]
        parts.append((tuple(map(Column.number, (report.unit, "of dense", "score"))), steps))
    if report.contenders:
        judge = report.judged_by.replace(" on ", "\non ", 1)
        tuned = report.contenders[0].tuned is not None
        columns = [Column.name("way, the one taken first"), Column.number("of dense"), Column.number(judge)]
        rows = [[c.name, f"{c.measured / report.dense:.1%}", f"{c.distance:.4g}"] for c in report.contenders]
        if tuned:
            unit = ",\nsquared Hellinger" if report.judged_by.startswith("divergence") else ""
            columns.append(Column.number(f"of a\ntrained copy{unit}"))
            rows = [
                [*r, "-" if c.tuned is None else f"{c.tuned:.4g}"] for r, c in zip(rows, report.contenders, strict=True)
            ]
        parts.append((columns, rows))
    if str(report.rewrite_kind):
        parts.append(f"rewrite: {report.rewrite_kind}")
    return parts


def _long(report: Report) -> list[str | _Table]:
    rows = [[g.name, f"{g.size}", f"{g.kept}", f"{g.kept / g.size:.0%}"] for g in report.groups]
    parts: list[str | _Table] = [((Column.name("group"), *map(Column.number, ("channels", "kept", "share"))), rows)]
    if report.frozen:
        parts.append(((Column.name("frozen group"), Column.words("reason")), list(report.frozen.items())))
    stay = [row for row in report.branches.items() if row[1] not in ("dropped", "kept")]
    if stay:
        parts.append(((Column.name("branch that must stay"), Column.words("reason")), stay))
    parts.append(f"channels ranked by: {report.saliency}")
    parts += prediction(report)
    if len(report.rounds) > 1:
        shares = ", ".join(f"{round_.measured / report.dense:.1%}" for round_ in report.rounds)
        parts.append(f"{len(report.rounds)} networks were measured on the way to the budget: {shares} of dense")
    if report.seconds:
        parts.append("seconds: " + ", ".join(f"{stage} {took:.1f}" for stage, took in report.seconds.items()))
    return parts


def prediction(report: Report) -> list[str]:
    """How good the predictions were: of the network before and after calibration, and of its layers."""
    if not report.layers:
        return []
    before, after = (x / report.measured - 1 for x in (report.uncalibrated, report.predicted))
    text = f"predictions off by {after:+.1%} calibrated, {before:+.1%} before (the sum of the layers)"
    return [f"{text}; layers by {report.layer_error:.1%} in the mean"]
