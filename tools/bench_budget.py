"""Does a pruned network meet its latency budget? Networks x batches x budgets, measured again in a fresh process.

    python tools/bench_budget.py --threads 2                            # the whole matrix; resumes where it stopped
    python tools/bench_budget.py --threads 2 --only resnet18 --batch 1 --time-limit 10
    python tools/bench_budget.py --compiled --threads 1                 # compiled code and exported files as the clock
    python tools/bench_budget.py --device cuda --dtype float16 --channels-last --batch 64 --runtime inductor

For each network and batch one process prunes to all budgets, with one latency table, and writes plans; another one
rebuilds the networks from the plans and times dense and pruned ones in turn. The error is the measured share of the
dense network's latency against the budget. Every case is one line of JSON in `--rows`; the table in `--docs` between
the markers is written from all lines. A budget below what pruning can reach is no miss of the method and no pass
("unreachable": refused; "the smallest": it came out, before such budgets were refused, or within the tolerance), so
the summary counts both ways. "Memory as found" is the error where the fresh process gives freed memory back to the
system, as it does by itself. For another runtime than eager, "share" is what the pruned network takes of the dense one
in that runtime, and "eager" what the same two networks take in eager PyTorch.

`--compiled` is a matrix of its own: five networks with inductor, two of them also with frozen weights, as a package of
AOTInductor and in onnxruntime; 70 and 50 %, batch 1, 128 pixels, unless others are given.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from budgeting.tables import Row, key, outcome, read, write
from torch import nn
from torchvision.models import get_model
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

import halp_fx
from halp_fx.latency import Fingerprint, MeasuredLatency
from halp_fx.latency.fingerprint import RUNTIMES
from halp_fx.latency.interleaving import interleaved

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "densenet121", "googlenet", "convnext_tiny", "ssdlite320")
BUDGETS = (0.8, 0.6, 0.4)
BATCHES = (1, 8)
_TWO = ("resnet18", "mobilenet_v2")
COMPILED = {
    "inductor": ("resnet18", "mobilenet_v2", "resnet50", "googlenet", "convnext_tiny"),
    "inductor-frozen": _TWO,
    "aoti": _TWO,
    "onnxruntime": _TWO,
}
"""Networks by the runtime that their budgets are for; its budgets and sides are below."""
COMPILED_BUDGETS, COMPILED_SIDE = (0.7, 0.5), 128


def build(name: str, batch: int, arguments: argparse.Namespace) -> tuple[nn.Module, tuple[Any, ...]]:
    """The same network and inputs in every process: weights are random, from a fixed seed."""
    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    detector = name == "ssdlite320"
    if detector:
        # Random weights give each of 91 classes a score near 1/91, above the usual threshold of 0.001: every box went
        # through 91 suppressions, 81 % of the time. Trained weights leave few boxes, as this threshold does.
        model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, score_thresh=0.05)
    else:
        model = get_model(name, weights=None, **({"init_weights": False} if name == "googlenet" else {}))
    model = model.eval().to(arguments.device, dtype)
    side = 320 if detector else arguments.side
    x = torch.rand(batch, 3, side, side, device=arguments.device).to(dtype)
    if arguments.channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return model, (list(x),) if detector else (x,)


def prune(name: str, batch: int, budgets: Sequence[float], plans: Path, arguments: argparse.Namespace) -> list[Row]:
    """Prune to each budget and write the plans. Runs in a process of its own."""
    model, inputs = build(name, batch, arguments)
    latency = MeasuredLatency(runtime=arguments.runtime, table=arguments.table, threads=arguments.threads)
    rows = []
    for budget in budgets:
        start = time.perf_counter()
        row: Row = {"budget": budget}
        try:
            report = halp_fx.prune(
                model, budget, inputs, latency=latency, progress=False, **_images(inputs, arguments)
            ).halp
        except halp_fx.InfeasibleError as error:
            (dense,) = interleaved([model], (inputs, {}), runtime=arguments.runtime, threads=arguments.threads)
            row |= {"unreachable": error.minimum / dense.median_ms}
        else:
            (plans / f"{budget}.json").write_text(report.plan.to_json(), encoding="utf-8")
            row |= {
                "then": report.measured / report.dense,
                "predicted": report.predicted / report.dense,
                "first": report.rounds[0].predicted / report.rounds[0].measured - 1,
                "uncalibrated": report.uncalibrated / report.measured - 1,
                "layer_error": report.layer_error,
                "worst_layer": report.worst_layer.error if report.worst_layer else None,
                "rounds": len(report.rounds),
                "smallest": report.smallest,
                "stages": {stage: round(seconds, 1) for stage, seconds in report.seconds.items()},
            }
        rows.append(row | {"seconds": time.perf_counter() - start, "points": len(latency.measured)})
    return rows


def _images(inputs: tuple[Any, ...], arguments: argparse.Namespace) -> dict[str, Any]:
    """What `prune` scores by: random images, as many as `--images` says; nothing, so magnitudes, without any."""
    if not arguments.images:
        return {}
    (x,) = inputs
    size = min(32, arguments.images)
    draw = [
        (torch.rand(size, *x.shape[1:]).to(x), torch.randint(1000, (size,)).to(x.device))
        for _ in range(max(1, arguments.images // size))
    ]
    return {"data": draw, "loss_fn": nn.functional.cross_entropy}


def measure(name: str, batch: int, budgets: Sequence[float], plans: Path, arguments: argparse.Namespace) -> list[Row]:
    """Rebuild the networks from their plans and time them and the dense one in turn. Runs in a process of its own."""
    model, inputs = build(name, batch, arguments)
    texts = [(plans / f"{budget}.json").read_text(encoding="utf-8") for budget in budgets]
    networks = [model, *(halp_fx.rewrite(model, halp_fx.Plan.from_json(text), inputs) for text in texts)]
    setting = {"runtime": arguments.runtime, "threads": arguments.threads}
    found_dense, *found = interleaved(networks, (inputs, {}), keep_memory=False, max_time_s=3.0, **setting)
    dense, *pruned = interleaved(networks, (inputs, {}), min_time_s=3.0, max_time_s=10.0, **setting)
    rows = [
        {
            "dense_ms": dense.median_ms,
            "ms": timing.share * dense.median_ms,
            "spread": max(dense.spread, timing.spread),
            "found_dense_ms": found_dense.median_ms,
            "found_ms": before.share * found_dense.median_ms,
        }
        for timing, before in zip(pruned, found, strict=True)
    ]
    if arguments.runtime != "eager":
        _, *eager = interleaved(networks, (inputs, {}), min_time_s=3.0, max_time_s=10.0, threads=arguments.threads)
        for row, timing in zip(rows, eager, strict=True):
            row["eager_share"] = timing.share
    return rows


def in_fresh_process(step: str, name: str, batch: int, budgets: Sequence[float], plans: str, words: list[str]) -> Any:
    """Run this file again for one step; its last line of output is the result.

    Raises:
        RuntimeError: with the last line of its errors.
    """
    case = [name, str(batch), plans, *map(str, budgets)]
    command = [sys.executable, __file__, "--step", step, *words, "--case", *case]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def one_network(name: str, batch: int, budgets: Sequence[float], words: list[str]) -> list[Row]:
    """All budgets of one network: pruned in one process, measured in another."""
    with TemporaryDirectory() as plans:
        try:
            rows: list[Row] = in_fresh_process("prune", name, batch, budgets, plans, words)
            met = [row for row in rows if "unreachable" not in row]
            if met:
                again = in_fresh_process("measure", name, batch, [row["budget"] for row in met], plans, words)
                for row, more in zip(met, again, strict=True):
                    row |= more
        except RuntimeError as error:
            rows = [{"budget": budget, "error": str(error)[:200]} for budget in budgets]
    return rows


@dataclass(frozen=True)
class Case:
    """One network and batch in one setting, and the budgets that have no line yet."""

    words: argparse.Namespace
    network: str
    batch: int
    budgets: Sequence[float]


def due(arguments: argparse.Namespace, rows: Sequence[Row]) -> list[Case]:
    """What is left to do. A line of another runtime than eager counts if it says what eager PyTorch takes."""
    done = {key(r) for r in rows if "error" not in r and _whole(r)}
    found = []
    for words in settings(arguments):
        here = _setting(words)
        for batch in words.batch:
            for name in words.only:
                left = [b for b in words.budgets if (name, batch, b, here) not in done]
                found += [Case(words, name, batch, left)] if left else []
    return found


def settings(arguments: argparse.Namespace) -> list[argparse.Namespace]:
    """The one that the command line says; with `--compiled` one a runtime."""
    if not arguments.compiled:
        return [arguments]
    made = []
    for runtime, networks in COMPILED.items():
        words = copy.copy(arguments)
        words.runtime, words.only = runtime, [name for name in arguments.only if name in networks]
        made.append(words)
    return made


def _whole(row: Row) -> bool:
    return "unreachable" in row or "runtime eager" in row["setting"] or "eager_share" in row


def run(arguments: argparse.Namespace) -> None:
    """All cases that have no line yet, as long as there is time."""
    left = due(arguments, list(read(arguments.rows)))
    start, took = time.perf_counter(), list[tuple[Case, float]]()
    for n, case in enumerate(left):
        minutes = sum(_expected(took, other) for other in left[n:]) / 60
        known = f"about {minutes:.0f} min for all that is left" if took else "no estimate yet"
        spent = (time.perf_counter() - start) / 60
        if arguments.time_limit and spent + _expected(took, case) / 60 > arguments.time_limit:
            print(f"time limit: {len(left) - n} of {len(left)} not run; start again to go on")
            break
        what = f"{case.network}, {case.words.runtime}, batch {case.batch}, budgets {list(case.budgets)}"
        print(f"[{n + 1}/{len(left)}] {what}; {known}", flush=True)
        begin = time.perf_counter()
        found = one_network(case.network, case.batch, case.budgets, forwarded(case.words))
        seconds = time.perf_counter() - begin
        took.append((case, seconds))
        same = {"setting": _setting(case.words), "when": str(datetime.date.today())}
        with arguments.rows.open("a", encoding="utf-8") as file:
            for row in found:
                file.write(json.dumps({"network": case.network, "batch": case.batch, **row, **same}) + "\n")
                print(f"    {row['budget']}: {outcome(row)}", flush=True)
        print(f"    {seconds:.0f} s", flush=True)


def _expected(took: Sequence[tuple[Case, float]], case: Case) -> float:
    """Seconds for a case: from the same network, else from the same batch size, else from any."""
    same = [s * (case.batch / c.batch) ** 0.5 for c, s in took if c.network == case.network]
    alike = [s for c, s in took if c.batch == case.batch]
    return mean(same or alike or [s for _, s in took] or [0.0])


def _setting(arguments: argparse.Namespace) -> str:
    """What the rows of one table have in common."""
    header = asdict(Fingerprint.of(torch.device(arguments.device), arguments.runtime, arguments.threads))
    shown = "; ".join(f"{k} {v}" for k, v in header.items() if v not in ("", 0))
    layout = ", channels_last" if arguments.channels_last else ""
    return f"{arguments.dtype}{layout}, {arguments.side} x {arguments.side} (ssdlite320: 320 x 320); {shown}"


def forwarded(arguments: argparse.Namespace) -> list[str]:
    """The words that tell a process of one step the same."""
    words = []
    for name in ("device", "dtype", "runtime", "side", "threads", "table", "images"):
        value = getattr(arguments, name)
        words += [] if value is None else [f"--{name}", str(value)]
    return [*words, *(["--channels-last"] if arguments.channels_last else [])]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", action="store_true", help="the matrix of compiled and exported networks")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--budgets", nargs="+", type=float)
    parser.add_argument("--batch", nargs="+", type=int)
    parser.add_argument("--time-limit", type=float, help="minutes; no network is begun that would end later")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--runtime", default="eager", choices=RUNTIMES)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--side", type=int)
    parser.add_argument("--images", type=int, default=0, help="to score by, random ones; 0: weight magnitudes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", help="latency table: a file or folder; default: the user's cache")
    parser.add_argument("--rows", type=Path, default=Path("docs/benchmarks_budget.jsonl"))
    parser.add_argument("--docs", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--step", choices=("prune", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    found = parser.parse_args()
    found.budgets = found.budgets or (COMPILED_BUDGETS if found.compiled else BUDGETS)
    found.batch = found.batch or ((1,) if found.compiled else BATCHES)
    found.side = found.side or (COMPILED_SIDE if found.compiled else 224)
    return found


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.step:
        name, batch, plans, *budgets = arguments.case
        step = prune if arguments.step == "prune" else measure
        print(json.dumps(step(name, int(batch), list(map(float, budgets)), Path(plans), arguments)))
        return
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("not measured: no CUDA device here")
    run(arguments)
    write(list(read(arguments.rows)), arguments.docs, NETWORKS)


if __name__ == "__main__":
    main()
