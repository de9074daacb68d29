"""Lines of budgets that were measured -> Markdown: every case, and how many met their budget."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from tabulate import tabulate

BEGIN, END = "<!-- bench_budget: begin -->", "<!-- bench_budget: end -->"
Row = dict[str, Any]


def key(row: Row) -> tuple[str, int, float, str]:
    """What tells the lines of one page apart."""
    return row["network"], row["batch"], row["budget"], row["setting"]


def read(path: Path) -> Iterator[Row]:
    """The lines written so far; of a case that was run again, the last."""
    if path.exists():
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        yield from {key(r): r for r in rows}.values()


def deviation(row: Row) -> float:
    """Measured share of dense in the fresh process, against the budget."""
    return float(row["ms"] / row["dense_ms"] / row["budget"] - 1)


def outcome(row: Row) -> str:
    if "error" in row:
        return f"failed: {row['error'][:80]}"
    if "unreachable" in row:
        return f"unreachable: floor {row['unreachable']:.0%}"
    return f"{deviation(row):+.1%}" + (", the smallest" if row.get("smallest") else "")


def report(rows: Sequence[Row], networks: Sequence[str]) -> str:
    """The results as Markdown, one section a setting, its networks in this order."""
    parts = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        some = sorted(
            (r for r in rows if r["setting"] == setting),
            key=lambda r: (r["batch"], networks.index(r["network"]), -r["budget"]),
        )
        parts += [f"### {setting}", tabulate(map(_cells, some), headers=HEADERS, tablefmt="github"), _summary(some)]
    return "\n\n".join(parts)


HEADERS = (
    *("network", "batch", "budget", "dense ms", "pruned ms", "share", "eager", "error", "spread", "memory as found"),
    *("sum of layers", "1st prediction", "last prediction", "layers, mean", "worst", "rounds", "s"),
)


def _cells(row: Row) -> list[Any]:
    case = [row["network"], row["batch"], f"{row['budget']:.0%}"]
    if "ms" not in row:
        return [*case, "", "", "", "", outcome(row)]
    return [
        *case,
        f"{row['dense_ms']:.4g}",
        f"{row['ms']:.4g}",
        f"{row['ms'] / row['dense_ms']:.1%}",
        f"{row['eager_share']:.1%}" if "eager_share" in row else "",
        outcome(row),
        f"{row['spread']:.1%}",
        f"{row['found_ms'] / row['found_dense_ms'] / row['budget'] - 1:+.1%}",
        f"{row['uncalibrated']:+.1%}",
        f"{row['first']:+.1%}",
        f"{_last(row):+.1%}",
        f"{row['layer_error']:.1%}",
        "" if row["worst_layer"] is None else f"{row['worst_layer']:+.1%}",
        row["rounds"],
        f"{row['seconds']:.0f}",
    ]


def _last(row: Row) -> float:
    """The calibrated prediction against the fresh process."""
    return float(row["predicted"] / (row["ms"] / row["dense_ms"]) - 1)


def _summary(rows: Sequence[Row]) -> str:
    """Counts with unreachable budgets as misses, and without them; prediction errors."""
    good = [r for r in rows if "ms" in r]
    out = [r for r in rows if r.get("smallest") or "unreachable" in r]
    within = [r for r in good if r not in out]
    if not within:
        return f"{len(rows)} cases, none measured that can be reached."
    lines, reachable = [], len(rows) - len(out)
    for limit in (0.05, 0.1):
        close, reached = (sum(abs(deviation(r)) <= limit for r in some) for some in (good, within))
        lines.append(
            f"Within {limit:.0%} of the budget: {close} of all {len(rows)} cases ({close / len(rows):.1%}); "
            f"{reached} of the {reachable} that can be reached ({reached / reachable:.1%})."
        )
    refused = sum("unreachable" in r for r in rows)
    lines.append(
        f"Worst that can be reached: {max(abs(deviation(r)) for r in within):.1%}. Out of reach: {len(out) - refused} "
        f"came out as the smallest network, {refused} were refused."
    )
    errors = {
        "the sum of the layers (before calibration)": [abs(r["uncalibrated"]) for r in good],
        "the first, calibrated by the dense network": [abs(r["first"]) for r in good],
        "the last, against the fresh process": [abs(_last(r)) for r in good],
    }
    lines += [f"Prediction, {what}: mean {mean(x):.1%}, worst {max(x):.1%}." for what, x in errors.items()]
    return "\n".join(f"* {line}" for line in lines)


def write(rows: Sequence[Row], docs: Path, networks: Sequence[str]) -> None:
    """Put the results between the markers.

    Raises:
        SystemExit: the page has no markers.
    """
    text = docs.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{docs} has no lines {BEGIN} and {END}")
    before, _, rest = text.partition(BEGIN)
    docs.write_text(f"{before}{BEGIN}\n\n{report(rows, networks)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
