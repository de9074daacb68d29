"""Does a pruned network meet its latency budget? Networks x budgets, measured again in a fresh process each.

    python tools/bench_budget.py --threads 2 --batch 1 --output docs/benchmarks_budget.md
    python tools/bench_budget.py --device cuda --dtype float16 --channels-last --batch 64 --runtime inductor

One process prunes (`halp_fx.prune`) and writes a plan; another one rebuilds the network from the plan and times dense
and pruned in turn. The error is the measured share of the dense network's latency against the budget. Rows are
kept in a JSON file beside the output, so an interrupted run goes on where it stopped. `--device cuda` without a GPU
writes "not measured".
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import nn
from torchvision.models import get_model
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

import halp_fx
from halp_fx.latency import Fingerprint, MeasuredLatency, interleaved

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "densenet121", "googlenet", "convnext_tiny", "ssdlite320")
BUDGETS = (0.8, 0.6, 0.4)
ABSENT = "not measured"
Row = dict[str, Any]


def build(name: str, arguments: argparse.Namespace) -> tuple[nn.Module, tuple[Any, ...]]:
    """The same network and inputs in every process: weights are random, from a fixed seed."""
    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    side = 320 if name.startswith("ssd") else arguments.side
    if name == "ssdlite320":
        model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    else:
        extra = {"init_weights": False} if name == "googlenet" else {}
        model = get_model(name, weights=None, **extra)
    model = model.eval().to(arguments.device, dtype)
    x = torch.rand(arguments.batch, 3, side, side, device=arguments.device).to(dtype)
    if arguments.channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return model, (list(x),) if name.startswith("ssd") else (x,)


def prune(name: str, budget: float, plan: Path, arguments: argparse.Namespace) -> Row:
    """Prune and write the plan. Runs in a process of its own."""
    model, inputs = build(name, arguments)
    latency = MeasuredLatency(runtime=arguments.runtime, table=arguments.table, threads=arguments.threads)
    start = time.perf_counter()
    small = halp_fx.prune(model, budget, inputs, latency=latency, progress=False)
    report: Any = small.halp
    plan.write_text(report.plan.to_json(), encoding="utf-8")
    return {
        "seconds": time.perf_counter() - start,
        "dense_ms": report.dense,
        "budget_ms": report.budget,
        "predicted_ms": report.predicted,
        "then_ms": report.measured,
        "first_prediction": report.rounds[0].predicted / report.rounds[0].measured - 1 if report.rounds else None,
        "rounds": len(report.rounds),
    }


def measure(name: str, plan: Path, arguments: argparse.Namespace) -> Row:
    """Rebuild the network from its plan and time it against the dense one. Runs in a process of its own."""
    model, inputs = build(name, arguments)
    small = halp_fx.rewrite(model, halp_fx.Plan.from_json(plan.read_text(encoding="utf-8")), inputs)
    dense, pruned = interleaved(
        (model, small),
        (inputs, {}),
        min_time_s=2.0,
        max_time_s=10.0,
        runtime=arguments.runtime,
        threads=arguments.threads,
    )
    return {"fresh_dense_ms": dense.median_ms, "fresh_ms": pruned.median_ms, "spread": max(dense.spread, pruned.spread)}


def in_fresh_process(arguments: argparse.Namespace, *words: str) -> Row:
    """Run this file again for one step; its last line of output is the result."""
    command = [sys.executable, __file__, *words, *_forwarded(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def _forwarded(arguments: argparse.Namespace) -> list[str]:
    words = []
    for name in ("device", "dtype", "runtime", "batch", "side", "threads", "table"):
        value = getattr(arguments, name)
        words += [] if value is None else [f"--{name}", str(value)]
    return [*words, *(["--channels-last"] if arguments.channels_last else [])]


def run(arguments: argparse.Namespace) -> list[Row]:
    """All cases, resuming from the rows that are there."""
    kept = arguments.output.with_suffix(".json")
    rows: list[Row] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    setting = " ".join(_forwarded(arguments))
    for name in arguments.networks:
        for budget in arguments.budgets:
            case = {"network": name, "budget": budget, "setting": setting}
            if any(case.items() <= row.items() for row in rows):
                continue
            with TemporaryDirectory() as folder:
                plan = str(Path(folder) / "plan.json")
                row = case | in_fresh_process(arguments, "--step", "prune", "--case", name, str(budget), plan)
                if "error" not in row:
                    row |= in_fresh_process(arguments, "--step", "measure", "--case", name, str(budget), plan)
            rows.append(row)
            kept.write_text(json.dumps(rows, indent=1), encoding="utf-8")
            print(name, budget, row.get("error") or f"{deviation(row):+.1%}", flush=True)
    return [row for row in rows if row["setting"] == setting]


def deviation(row: Row) -> float:
    """Measured share of dense in the fresh process, against the budget."""
    return row["fresh_ms"] / row["fresh_dense_ms"] / row["budget"] - 1


def report(rows: Sequence[Row], arguments: argparse.Namespace) -> str:
    """The results as Markdown."""
    header = [
        "network",
        "budget",
        "dense ms",
        "pruned ms",
        "of dense",
        "error",
        "spread",
        "1st prediction",
        "rounds",
        "s",
    ]
    body = []
    for row in rows:
        if "error" in row:
            body.append([row["network"], row["budget"], *[ABSENT] * 2, row["error"][:60]])
            continue
        share = row["fresh_ms"] / row["fresh_dense_ms"]
        first = ABSENT if row["first_prediction"] is None else f"{row['first_prediction']:+.1%}"
        figures = [f"{row['fresh_dense_ms']:.4g}", f"{row['fresh_ms']:.4g}", f"{share:.1%}", f"{deviation(row):+.1%}"]
        body.append(
            [
                row["network"],
                row["budget"],
                *figures,
                f"{row['spread']:.1%}",
                first,
                row["rounds"],
                f"{row['seconds']:.0f}",
            ]
        )
    parts = [f"## {_title(arguments)}", _machine(arguments), tabulate(body, headers=header, tablefmt="github")]
    good = [r for r in rows if "error" not in r]
    if good:
        errors = np.abs([deviation(r) for r in good])
        firsts = np.abs([r["first_prediction"] for r in good if r["first_prediction"] is not None])
        parts.append(
            f"Within 5 % of the budget: {np.mean(errors <= 0.05):.0%} of {len(rows)} cases; within 10 %: "
            f"{np.mean(errors <= 0.1):.0%}; worst {errors.max():.1%}. Prediction of the first candidate: mean error "
            f"{firsts.mean():.1%}, worst {firsts.max():.1%}."
        )
    return "\n\n".join(parts) + "\n"


def _title(arguments: argparse.Namespace) -> str:
    layout = ", channels_last" if arguments.channels_last else ""
    return f"{arguments.device}, {arguments.runtime}, {arguments.dtype}{layout}, batch {arguments.batch}"


def _machine(arguments: argparse.Namespace) -> str:
    header = asdict(Fingerprint.of(torch.device(arguments.device), arguments.runtime, arguments.threads))
    return f"{datetime.date.today()}; " + "; ".join(f"{k} {v}" for k, v in header.items() if v not in ("", 0))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--runtime", default="eager", choices=("eager", "inductor", "cudagraph"))
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--table", default=None, help="latency table: a file or folder; default: the user's cache")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks_budget.md"))
    parser.add_argument("--step", choices=("prune", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.step:
        name, budget, plan = arguments.case
        step = prune(name, float(budget), Path(plan), arguments) if arguments.step == "prune" else None
        print(json.dumps(step if step is not None else measure(name, Path(plan), arguments)))
        return
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        arguments.output.write_text(f"## {_title(arguments)}\n\n{ABSENT}: no CUDA device here\n", encoding="utf-8")
        print(ABSENT)
        return
    text = report(run(arguments), arguments)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
