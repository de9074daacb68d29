"""Checks and measures everything that needs a GPU, in one command that can be cut off and started again.

    python tools/gpu_check.py --minutes 8                  # all parts, each within its share of the time
    python tools/gpu_check.py --only suite kernels         # some
    python tools/gpu_check.py --page-only                  # the page from the rows that there are
    python tools/gpu_check.py --device cpu --minutes 3     # a rehearsal of the same code, with tiny sizes

Every result goes at once into the JSON-lines file `--rows`, from which `--page` is written at the end; what has a row
of this card is not measured again. Parts that lack a package say so in their row. Nothing is installed or downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from gpuchecks import pages
from gpuchecks.setting import Part, Row, Setting, machine

PARTS = {
    # name: (share of the time, module, function); what is short comes first.
    "suite": (0.18, "suite", "run"),
    "kernels": (0.08, "kernels", "run"),
    "training": (0.05, "training", "run"),
    "budgets": (0.27, "budgets", "run"),
    "throughput": (0.24, "throughput", "run"),
    "compiled": (0.08, "kernels", "compiled"),
    "accuracy": (0.10, "accuracy", "run"),
}
GRACE_S = 45.0
"""A case that has begun may take this much longer than its part has."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rows", type=Path, help="default: docs/benchmarks_gpu.jsonl, gpu_rehearsal.jsonl on a CPU")
    parser.add_argument("--page", type=Path, help="Markdown; default: beside the rows")
    parser.add_argument("--again", action="store_true", help="also what has a row of this card")
    parser.add_argument("--page-only", action="store_true")
    parser.add_argument("--folder", type=Path, help="for what parts share; default: a temporary one")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rows is None:
        given.rows = Path("docs/benchmarks_gpu.jsonl" if given.device == "cuda" else "gpu_rehearsal.jsonl")
    given.page = given.page or given.rows.with_suffix(".md")
    return given


def read(rows: Path) -> list[Row]:
    return [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()] if rows.exists() else []


def write(rows: Path, row: Row) -> None:
    """At once, so that a run that is cut off loses nothing."""
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def one_part(given: argparse.Namespace) -> int:
    """Runs in a process of its own: what goes wrong in a part ends that part alone. The exit status: 1 if a case went
    wrong."""
    _, module, function = PARTS[given.part]
    part = Part(given.part, getattr(import_module(f"gpuchecks.{module}"), function))
    on = machine(given.device)
    known = [] if given.again else [r for r in read(given.rows) if r["part"] == part.name and r["machine"] == on]
    done = frozenset(r["case"] for r in known if good(r))
    setting = Setting(given.device, given.folder, time.monotonic() + given.seconds, done)
    wrong = 0
    for row in part.run(setting):
        wrong += not good(row)
        write(given.rows, {"part": part.name, **row, "when": now(), "machine": on})
        print(f"{part.name}: {json.dumps(row)}", flush=True)
    return int(wrong > 0)


def good(row: Row) -> bool:
    """Whether the case need not be measured again."""
    return not ({"failed", "failures", "error"} & row.keys())


def in_turn(given: argparse.Namespace) -> Iterator[Row]:
    """Each part in a process of its own; a row for each, with its seconds and, where it did not end well, why."""
    end = time.monotonic() + 60 * given.minutes
    due = [name for name in PARTS if name in given.only]
    for n, name in enumerate(due):
        left = end - time.monotonic()
        # What earlier parts left over goes to those that follow.
        seconds = left * PARTS[name][0] / sum(PARTS[other][0] for other in due[n:])
        row: Row = {"part": name, "case": "whole"}
        if left < 5:
            yield row | {"seconds": 0.0, "failed": "no time was left"}
            continue
        words = ["--part", name, "--seconds", str(seconds), "--device", given.device]
        words += ["--rows", str(given.rows), "--folder", str(given.folder), *["--again"] * given.again]
        start = time.monotonic()
        process = subprocess.Popen([sys.executable, __file__, *words], start_new_session=True)
        try:
            code = process.wait(min(seconds + GRACE_S, left + 5))
            trouble = {"failed": f"exit {code}"} if code else {}
        except subprocess.TimeoutExpired:
            trouble = {"failed": "stopped at its time limit"}
        finally:  # Also where this command is stopped: what a part started must not run on beside what comes next.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        yield row | {"seconds": time.monotonic() - start} | trouble


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given = options()
    if given.part:
        return one_part(given)
    failed = 0
    if not given.page_only:
        import torch

        if given.device == "cuda" and not torch.cuda.is_available():
            print("not measured: torch sees no CUDA device here; --device cpu rehearses")
            return 1
        with TemporaryDirectory() as temporary:
            given.folder = given.folder or Path(temporary)
            given.folder.mkdir(parents=True, exist_ok=True)
            os.environ["HALP_FX_CACHE_DIR"] = str(given.folder / "cache")  # Tables are cold.
            if given.device == "cpu":
                os.environ["TRITON_INTERPRET"] = "1"
            on = machine(given.device)
            for row in in_turn(given):
                print(f"{row['part']}: {row.get('failed', 'done')} ({row['seconds']:.0f} s)", flush=True)
                write(given.rows, {**row, "when": now(), "machine": on})
                failed += "failed" in row
    given.page.write_text(pages.page(read(given.rows)), encoding="utf-8")
    print(f"{given.page}: written from {given.rows}")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
