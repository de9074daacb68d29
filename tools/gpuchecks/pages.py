"""Rows -> the page of what was measured on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench_kernels import lookup_row, saliency_rows, training_row
from tabulate import tabulate

from .setting import Row

GOALS = """\
Goals: saliency at 80 % of the copy's bandwidth and five times as fast as the best alternative; lookup of a million in
less than 20 us; a cold table of ResNet-50 in 60 s; budgets within 2 % in 90 % of the cases; the speed-ups of the
paper, compiled, too; two runs bitwise equal."""


def page(rows: Sequence[Row]) -> str:
    """A section for each part and machine, from the latest row of each case. What whoever ran it has to say is a row,
    too: part "remark", with a "text"."""
    parts = ["# On a GPU: what was measured", "Written by `python tools/gpu_check.py`.", GOALS]
    cards: list[Row] = []
    for row in rows:
        if row["machine"] not in cards:
            cards.append(row["machine"])
    for card in cards:
        here = [row for row in rows if row["machine"] == card]
        latest = {(row["part"], row["case"], row.get("budget")): row for row in here}
        title = card.get("card", "CPU, a rehearsal")
        versions = ", ".join(f"{k} {v}" for k, v in card.items() if k != "card")
        days = sorted({row["when"][:10] for row in here})
        parts += [f"## {title}", f"{versions}; {' to '.join(dict.fromkeys((days[0], days[-1])))}."]
        parts += [row["text"] for row in here if row["part"] == "remark"]
        for name, (heading, table) in SECTIONS.items():
            mine = [row for (part, _, _), row in latest.items() if part == name and row["case"] not in ("whole", "end")]
            if mine:
                parts += [f"### {heading}", table(mine)]
            parts += [
                f"{name}: {row['failed']}."
                for (part, case, _), row in latest.items()
                if part == name and case in ("whole", "end") and "failed" in row
            ]
    return "\n\n".join(parts) + "\n"


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return tabulate(rows, headers, tablefmt="github", floatfmt=".4g")


def _suite(rows: Sequence[Row]) -> str:
    words = ("passed", "failed_tests", "skipped")
    cells = [[r["case"], *(r.get(w, 0) for w in words), f"{r['seconds']:.0f}"] for r in rows]
    failures = [f"* {name}" for r in rows for name in r.get("failures", ())]
    return "\n".join(
        [_table(("tests", "passed", "failed", "skipped", "s"), cells), *(["", *failures] if failures else [])]
    )


def _kernels(rows: Sequence[Row]) -> str:
    copy = next((r["gb_per_s"] for r in rows if r["case"] == "copy"), None)
    salient = [row for r in rows if "network" in r for row in saliency_rows(r, r["copy"])]
    looked = [lookup_row(r, r["copy"]) for r in rows if r["case"].startswith("lookup")]
    parts = [f"Copy: {copy:.0f} GB/s, read and written." if copy else ""]
    if salient:
        parts.append(
            _table(("network", "dtype", "code", "ms", "MB read", "GB/s (of copy)", "beside the best"), salient)
        )
    if looked:
        parts.append(_table(("device", "dtype", "ms", "MB moved", "GB/s (of copy)", "two runs"), looked))
    return "\n\n".join(filter(None, parts))


def _compiled(rows: Sequence[Row]) -> str:
    cells = [[r["network"], r["dtype"], label, ms] for r in rows for label, ms in r["ms"].items()]
    return _table(("network", "dtype", "code", "ms"), cells)


def _budgets(rows: Sequence[Row]) -> str:
    cells, errors = [], []
    for r in rows:
        name, runtime, dtype, batch = r["case"].split()
        cell = [name, runtime, dtype, int(batch), f"{r['budget']:.0%}"]
        if "error" in r:
            cells.append([*cell, "", "", "", f"failed: {r['error'][:100]}"])
        elif "unreachable" in r:
            cells.append([*cell, "", "", "", f"out of reach: at least {r['unreachable']:.0%}"])
        else:
            error = r["ms"] / r["dense_ms"] / r["budget"] - 1
            errors.append(abs(error))
            stages = r["stages"]
            timed, rest = stages.get("time layers", 0.0), sum(stages.values())
            cells.append(
                [*cell, r["dense_ms"], r["ms"], f"{r['predicted']:.1%}", f"{error:+.1%}", r["rounds"], timed, rest]
            )
    heads = ("network", "runtime", "dtype", "batch", "budget", "dense ms", "pruned ms", "predicted", "error")
    text = _table((*heads, "rounds", "layers timed, s", "whole, s"), cells)
    if errors:
        within = sum(e <= 0.02 for e in errors)
        text += f"\n\nWithin 2 %: {within} of {len(errors)} that could be reached; worst {max(errors):.1%}."
    return text


def _throughput(rows: Sequence[Row]) -> str:
    cells = []
    for r in rows:
        cell = [r["case"].split()[0], r["runtime"], r["dtype"], r["batch"], f"{r['wanted']:.2f}x"]
        if "failed" in r:
            cells.append([*cell, "", "", r["failed"]])
        else:
            cells.append([*cell, r["dense_per_s"], r["pruned_per_s"], f"{r['ratio']:.2f}x", f"{r['macs']:.0%}"])
    return _table(("network", "runtime", "dtype", "batch", "wanted", "images/s", "pruned", "ratio", "MACs kept"), cells)


def _training(rows: Sequence[Row]) -> str:
    parts = []
    for r in rows:
        if r["case"] == "kernel":
            heads = ("ms without", "ms with", "difference, ms", "share")
            parts.append("Scores of ResNet-50 added up in every step (bf16 autocast, batch 128):")
            parts.append(_table(heads, [training_row(r)]))
        else:
            keys = [k for k in r if k not in ("part", "case", "when", "machine")]
            parts.append("`Pruner.step` in a step in float32, batch 64:")
            parts.append(_table([k.replace("_", " ") for k in keys], [[r[k] for k in keys]]))
    return "\n\n".join(parts)


def _accuracy(rows: Sequence[Row]) -> str:
    cells = []
    for r in rows:
        shown = [f"{100 * r[k]:.1f}" if k in r else "" for k in ("dense", "pruned", "settled", "tuned")]
        cells.append([r["data"], r["network"], f"{r['budget']:.0%}", r["method"], *shown, r.get("failed", "")[:80]])
    heads = ("data", "network", "MACs", "method", "dense, %", "pruned", "re-estimated", "tuned", "")
    return _table(heads, sorted(cells, key=lambda c: (c[0], c[1], c[2], c[3])))


SECTIONS: dict[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    "suite": ("Tests", _suite),
    "kernels": ("Kernels", _kernels),
    "compiled": ("The per-layer code compiled", _compiled),
    "budgets": ("Budgets in milliseconds, measured in a fresh process", _budgets),
    "throughput": ("Throughput at the paper's speed-ups", _throughput),
    "training": ("In a training step", _training),
    "accuracy": ("Accuracy at equal cost", _accuracy),
}
