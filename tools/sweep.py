"""Prune every model of a library and compare each with its zeroed twin.

For every model, in a process of its own with a time limit: trace and couple, prune every group to half at random
places, rewrite, run forward and backward, compare with the zeroed twin in float64. Writes a table as CSV and
Markdown. A run that was stopped goes on where it was (`--resume`).

    python tools/sweep.py torchvision --jobs 2 --csv torchvision.csv --markdown docs/coverage_torchvision.md
    python tools/sweep.py timm --max-params 30 --jobs 2 --limit 300 --csv docs/coverage_timm.csv --resume --retry
    python tools/sweep.py timm --min-params 30 --limit 900 --csv timm_large.csv --resume
    python tools/sweep.py transformers --csv docs/coverage_transformers.csv
    python tools/sweep.py ultralytics --csv docs/coverage_ultralytics.csv
    python tools/sweep.py spandrel --csv docs/coverage_others/spandrel.csv
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sweeping import tables
from sweeping.libraries import LIBRARIES
from sweeping.processes import child


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=tuple(LIBRARIES))
    parser.add_argument("--one", help="check this model in this process and print what comes out")
    parser.add_argument("--only", nargs="*", help="names to check instead of all")
    parser.add_argument("--sample", type=int, help="check so many models, drawn at random from different families")
    parser.add_argument("--min-params", type=float, default=0.0, help="millions; smaller models are left out")
    parser.add_argument("--max-params", type=float, default=float("inf"), help="millions; larger models are left out")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds a model")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time, one thread each")
    parser.add_argument("--csv", type=Path, default=Path("sweep.csv"))
    parser.add_argument("--resume", action="store_true", help="keep the rows of the CSV that are there")
    parser.add_argument("--retry", action="store_true", help="with --resume: check again what failed")
    parser.add_argument("--shuffle", action="store_true", help="in a random order, so that a part is a fair sample")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--table-only", action="store_true", help="check nothing, write the table of the CSV")
    return parser.parse_args()


def sample(names: list[str], count: int) -> list[str]:
    """One model of each of `count` families: what stands before the first `_` or digit."""
    families: dict[str, list[str]] = {}
    for name in names:
        stem = name[: next((i for i, c in enumerate(name) if c in "_-" or c.isdigit()), len(name))]
        families.setdefault(stem, []).append(name)
    draw = random.Random(0)
    return [draw.choice(families[f]) for f in sorted(draw.sample(sorted(families), min(count, len(families))))]


def main() -> None:
    given = options()
    library = LIBRARIES[given.library]
    sizes = (given.min_params, given.max_params)
    os.environ["OMP_NUM_THREADS"] = "1"  # Before torch is imported.
    if given.one:
        from sweeping.checking import check

        print(json.dumps(check(given.library, given.one, *sizes), indent=1))
        return
    rows = tables.read(given.csv) if given.resume or given.table_only else []
    if given.retry:
        rows = [r for r in rows if r["result"] != "fail"]
    left = []
    if not given.table_only:
        names = library.names()  # Whatever a library needs beforehand, its description sees to.
        # PyTorch's shapes of some operators import its compiler: once, and not in the time of every model.
        for module in ("torch._dynamo", "sweeping.checking", given.library):
            importlib.import_module(module)
        done = {r["model"] for r in rows}
        chosen = given.only or (sample(names, given.sample) if given.sample else names)
        left = [n for n in chosen if n not in done]
        tables.write(given.csv, rows)
    if given.shuffle:
        random.Random(0).shuffle(left)
    with ThreadPoolExecutor(given.jobs) as pool:
        for row in pool.map(lambda name: child(given.library, name, sizes, given.limit), left):
            rows.append(row)
            tables.append(given.csv, row)
            print(*(row[f] for f in tables.FIELDS), sep="  ", flush=True)
    rows.sort(key=lambda r: r["model"])
    if not given.table_only:
        tables.write(given.csv, rows)
    print(tables.summary(rows))
    if given.markdown:
        given.markdown.write_text(tables.markdown(rows, f"Coverage of {given.library}"))


if __name__ == "__main__":
    main()
