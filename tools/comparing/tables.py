"""Rows of the comparison: read, put into a table, drawn."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tabulate import tabulate

Row = dict[str, Any]

COSTS = {
    "macs": "the MACs",
    "overhead": "the MACs and overheads",
    "time": "the measured time",
    "single": "the measured time of one image",
}

WITHIN = {"macs": 0.01, "overhead": 0.01, "time": 0.02, "single": 0.02}
"""Costs are equal within this share of the budget."""


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def key(row: Row) -> tuple[Any, ...]:
    """What a row is of."""
    same = (row[k] for k in ("data", "network", "budget", "method", "seed"))
    return (*same, row.get("draw", 0), row.get("cost", "macs"))


def said(row: Row) -> str:
    """A row in one line."""
    what = f"{row['data']} {row['network']} {row['budget']:.0%} {row['method']} (seed {row['seed']}): "
    if "failed" in row:
        return what + row["failed"]
    return what + (
        f"{_share(row):.1%} of {COSTS[row.get('cost', 'macs')]}, {row['pruned']:.1%} after pruning, "
        f"{row['settled']:.1%} with batch norms re-estimated, {row['tuned']:.1%} after fine-tuning "
        f"(dense {row['dense']:.1%}), {row['seconds']:.0f} s"
    )


def _share(row: Row) -> float:
    """What the network costs, of the dense one, in the unit of its budget."""
    return float(row[row.get("cost", "macs")])


def _mean(rows: list[Row]) -> float | None:
    """In percent. Every dense network counts alike, however many networks were made of it."""
    of: dict[int, list[float]] = defaultdict(list)
    for r in rows:
        if "tuned" in r:
            of[r["seed"]].append(100 * r["tuned"])
    return mean(map(mean, of.values())) if of else None


def _cell(rows: list[Row], best: float | None) -> str:
    """Mean and deviation in percent, bold if it is the best of its line; with the share of the cost where a method
    missed the budget."""
    value = _mean(rows)
    if value is None:
        return "fails" if rows else ""
    done = [r["tuned"] for r in rows if "tuned" in r]
    said = f"{value:.1f}" + (f" ± {100 * stdev(done):.1f}" if len(done) > 1 else "")
    share, budget = mean(_share(r) for r in rows if "tuned" in r), rows[0]["budget"]
    missed = f" ({100 * share:.1f})" if abs(share / budget - 1) > WITHIN[rows[0].get("cost", "macs")] else ""
    return (f"**{said}**" if value == best else said) + missed


def markdown(rows: list[Row]) -> str:
    """A table of rows of one cost: a line for each data set, network and budget, a column for each method; and means by
    budget of the cells that a method and the first one have in common, as "method / first"."""
    methods = sorted({r["method"] for r in rows}, key=_place)
    cells: dict[tuple[str, str, float], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        cells[r["data"], r["network"], r["budget"]][r["method"]].append(r)
    lines = []
    for (data, network, budget), by in sorted(cells.items(), key=lambda c: (c[0][0], c[0][1], -c[0][2])):
        every = [r for found in by.values() for r in found]
        best = max((m for m in map(_mean, by.values()) if m is not None), default=None)
        dense = mean({r["seed"]: 100 * r["dense"] for r in every}.values())
        lines.append([data, network, f"{dense:.1f}", f"{budget:.0%}"])
        lines[-1] += [_cell(by[m], best) for m in methods]
    for budget in sorted({b for *_, b in cells}, reverse=True):
        here = [by for (*_, b), by in cells.items() if b == budget]
        lines.append(["mean", "", "", f"{budget:.0%}", *(_common(here, m, methods[0]) for m in methods)])
    cost = rows[0].get("cost", "macs") if rows else "macs"
    unit = {"macs": "MACs", "time": "time", "single": "time, one image"}[cost]
    headers = ["data", "network", "dense", unit, *methods]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True) + "\n"


def _common(cells: list[dict[str, list[Row]]], method: str, first: str) -> str:
    pairs = [(_mean(by.get(method, [])), _mean(by.get(first, []))) for by in cells]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not both:
        return ""
    own, other = (mean(column) for column in zip(*both, strict=True))
    return f"{own:.1f} of {len(both)}" if method == first else f"{own:.1f} / {other:.1f} of {len(both)}"


def _place(method: str) -> tuple[bool, bool, str]:
    return (not method.startswith("halp_fx"), method == "uniform", method)


def plot(rows: list[Row], path: Path) -> None:
    """Accuracy after fine-tuning against the share of the cost: a panel for each data set and network."""
    import matplotlib.pyplot as plt

    of = COSTS[rows[0].get("cost", "macs")]
    panels = sorted({(r["data"], r["network"]) for r in rows})
    methods = sorted({r["method"] for r in rows}, key=_place)
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.4), squeeze=False, layout="constrained")
    for ax, (data, network) in zip(axes[0], panels, strict=True):
        for number, method in enumerate(methods):
            by: dict[float, list[float]] = defaultdict(list)
            for r in rows:
                if (r["data"], r["network"], r["method"]) == (data, network, method) and "tuned" in r:
                    by[r["budget"]].append(100 * r["tuned"])
            budgets = sorted(by)
            ax.plot(budgets, [mean(by[b]) for b in budgets], "o-", color=f"C{number}", label=method, markersize=3)
        dense = mean(100 * r["dense"] for r in rows if (r["data"], r["network"]) == (data, network))
        ax.axhline(dense, color="0.6", linewidth=0.8, linestyle="--")
        ax.set(xscale="log", title=f"{network}, {data}", xlabel=f"share of {of}", ylabel="accuracy, %")
        ax.set_xticks(ticks := sorted({r["budget"] for r in rows}), [f"{t:.0%}" for t in ticks])
        ax.minorticks_off()
    axes[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
