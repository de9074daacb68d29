"""Rows -> CSV, Markdown and a line of counts."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

FIELDS = (
    *("model", "result", "kind", "params_m", "convs", "error", "kept", "groups", "frozen"),
    *("trace_couple_s", "rewrite_s", "total_s", "peak_gb", "detail"),
)
SLOW_S = 10.0

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The rows of a CSV; what a sweep that was stopped left of its last row is not among them."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row and None not in row.values()]


def write(path: Path, rows: list[Row]) -> None:
    """All rows at once: either the old file is there or the new one."""
    beside = path.with_suffix(".part")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(beside, path)


def append(path: Path, row: Row) -> None:
    with path.open("a", newline="") as file:
        csv.DictWriter(file, FIELDS, extrasaction="ignore", lineterminator="\n").writerow(row)


def markdown(rows: list[Row], title: str) -> str:
    from tabulate import tabulate

    rows = _counted(rows)
    table = tabulate([[str(r[f])[:120] for f in FIELDS] for r in rows], headers=FIELDS, tablefmt="github")
    return f"# {title}\n\n{summary(rows)}\n\n{table}\n"


def summary(rows: list[Row]) -> str:
    """Pass counts: all models, those with eight convolutions or more, and how narrow the networks without attention
    got; and what took long or failed."""
    rows = _counted(rows)
    convolutional = [r for r in rows if int(r["convs"] or 0) >= 8]
    plain = [r for r in rows if r["kind"] == "cnn" and r["result"] == "pass"]
    narrow = [r for r in plain if float(r["kept"]) <= 0.45]
    slow = [r["model"] for r in rows if float(r["trace_couple_s"] or 0) + float(r["rewrite_s"] or 0) > SLOW_S]
    failed = [r["model"] for r in rows if r["result"] != "pass"]
    lines = [
        f"{len(rows) - len(failed)} of {len(rows)} models pass;",
        f"{_passes(convolutional)} of {len(convolutional)} with at least 8 convolutions;",
        f"{len(narrow)} of {len(plain)} networks without attention keep at most 0.45 of their parameters;",
        f"{len(slow)} take more than {SLOW_S:.0f} s to trace, couple and rewrite{_listed(slow)}.",
    ]
    return " ".join([*lines, f"Failed{_listed(failed)}."] if failed else lines)


def _counted(rows: list[Row]) -> list[Row]:
    return [r for r in rows if r["result"] not in ("other size", "too large")]


def _passes(rows: list[Row]) -> int:
    return sum(r["result"] == "pass" for r in rows)


def _listed(names: list[str]) -> str:
    return f": {', '.join(names)}" if names else ""
