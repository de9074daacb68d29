"""Draws docs/_static/budgets.svg from docs/benchmarks_budget.jsonl: the share of the dense time that was asked for, and
the share that was measured in a fresh process.

    python tools/draw_benchmarks.py
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
COLOURS = {0.8: "#0072b2", 0.6: "#e69f00", 0.4: "#009e73"}  # Okabe and Ito: told apart by all.
MARKERS = {0.8: "o", 0.6: "s", 0.4: "^"}


def main() -> None:
    """Read the rows, draw, write."""
    rows = [json.loads(line) for line in (DOCS / "benchmarks_budget.jsonl").read_text(encoding="utf-8").splitlines()]
    cases: dict[tuple[str, int], dict[float, float]] = defaultdict(dict)
    for row in rows:
        if row.get("ms"):
            cases[row["network"], row["batch"]][row["budget"]] = row["ms"] / row["dense_ms"]
    names = sorted(cases, key=lambda case: (case[1], list(cases).index(case)))
    plt.rcParams.update(
        {"font.size": 9, "svg.hashsalt": "halp_fx", "svg.fonttype": "none", "font.family": "sans-serif"}
    )
    figure, axes = plt.subplots(figsize=(8.2, 3.9), layout="constrained")
    for budget, colour in COLOURS.items():
        axes.axhline(budget, color=colour, linewidth=1, linestyle="--")
        points = [(x, cases[name][budget]) for x, name in enumerate(names) if budget in cases[name]]
        label = f"budget {budget:.0%}"
        axes.plot(*zip(*points, strict=True), MARKERS[budget], color=colour, label=label, markersize=6)
    axes.set_xticks(
        range(len(names)), [f"{network}, batch {batch}" for network, batch in names], rotation=40, ha="right"
    )
    axes.set_ylabel("measured time, share of dense")
    axes.set_ylim(0.3, 0.95)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axes.set_title("Asked for (lines) and measured in a fresh process (marks); 2 CPU threads")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, loc="upper center")
    figure.savefig(DOCS / "_static" / "budgets.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
