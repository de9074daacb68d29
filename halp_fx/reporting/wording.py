"""A report in words: the verdict in one line, the summary as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tabulate import tabulate

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


def summarized(report: Report, groups: bool = True) -> str:
    """The verdict, costs and sizes; with `groups` also every group, what is frozen and why, and how good predictions
    were."""
    costs = [("dense", report.dense), ("budget", report.budget)]
    if report.unit == "ms":
        costs += [("predicted", report.predicted), ("measured", report.measured)]
    else:  # What is counted is what was predicted.
        costs.append(("pruned", report.measured))
    head = [[name, figure(cost, report.unit), f"{cost / report.dense:.1%}"] for name, cost in costs]
    parts = [verdict(report), tabulate(head, headers=["", report.unit, "of dense"], colalign=_RIGHT[:3])]
    parts.append(tabulate(_sizes(report), headers=["", "dense", "pruned", "of dense"], colalign=_RIGHT))
    if report.compilation is not None:
        parts.append(str(report.compilation))
    parts += _further(report)
    if groups:
        parts += _long(report)
    else:
        count = len(report.frozen)
        still = f", {count} must stay as {'they are' if count > 1 else 'it is'}" if count else ""
        parts.append(f"{_shrunk(report)}{still}: summary() and the page say which, and why")
    return "\n\n".join([*parts, *(f"note: {note}" for note in report.notes)])


_RIGHT = ("left", "right", "right", "right")
_NAMES = [0]
"""A column of names: those of an `nn.Sequential` look like numbers."""


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


def _further(report: Report) -> list[str]:
    """Further budgets, branches, and attributes that were changed."""
    parts = []
    for name, (dense, budget, measured) in report.extra.items():
        words = (amount(value, _UNIT_OF.get(name, "")) for value in (dense, budget, measured))
        parts.append("{}: dense {}, budget {}, reached {}".format(name, *words))
    if report.branches:
        dropped = ", ".join(report.dropped) or "none"
        offered = sum(state in ("dropped", "kept") for state in report.branches.values())
        parts.append(f"branches dropped: {dropped} ({len(report.dropped)} of {offered} that may be)")
    if report.scores:
        steps = [[figure(cost, report.unit), cost / report.dense, score] for cost, score in report.scores]
        parts.append(tabulate(steps, headers=[report.unit, "of dense", "score"], floatfmt=(".4g", ".1%", ".4g")))
    if report.contenders:
        rows = [[c.name, c.measured / report.dense, c.distance, c.tuned] for c in report.contenders]
        headers = ["way, the one taken first", "of dense", f"{report.judged_by}", "trained once more"]
        headers, rows = (headers, rows) if rows[0][-1] is not None else (headers[:3], [row[:3] for row in rows])
        parts.append(tabulate(rows, headers=headers, floatfmt=("", ".1%", ".4g", ".4g"), missingval="-"))
    if str(report.rewrite_kind):
        parts.append(f"rewrite: {report.rewrite_kind}")
    return parts


def _long(report: Report) -> list[str]:
    rows = [[g.name, g.size, g.kept, g.kept / g.size] for g in report.groups]
    parts = [tabulate(rows, headers=["group", "channels", "kept", "share"], floatfmt=".0%", disable_numparse=_NAMES)]
    if report.frozen:
        parts.append(tabulate(list(report.frozen.items()), headers=["frozen group", "reason"], disable_numparse=True))
    stay = [row for row in report.branches.items() if row[1] not in ("dropped", "kept")]
    if stay:
        parts.append(tabulate(stay, headers=["branch that must stay", "reason"], disable_numparse=True))
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
