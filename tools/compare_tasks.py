"""What is left of networks that do not classify images: upscaling, denoising, segmentation, several labels, places.

For each task one dense network is trained (and kept); every method makes of it a network with the same share of the
MACs, and all are fine-tuned alike, for a quarter of the epochs. Rows go to a JSON-lines file as they are found; a run
that was stopped goes on where it was.

    python tools/compare_tasks.py --folder tasks                       # an hour of one core
    python tools/compare_tasks.py --folder tasks --tasks segmentation --budgets 0.2 --methods halp_fx uniform
    python tools/compare_tasks.py --rows docs/benchmarks_tasks.jsonl --table-only
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from comparing import tasks
from comparing.data import Data
from comparing.methods import METHODS, Task
from comparing.tables import read
from tabulate import tabulate
from torch import nn

METHODS_HERE = ("halp_fx", "halp_fx without data", "halp_fx without data, compensated", "Torch-Pruning", "uniform")

BATCH, RATE = 64, 3e-3


def train(model: nn.Module, kind: tasks.Kind, data: Data, epochs: int, rate: float, seed: int) -> nn.Module:
    """AdamW, a cosine from `rate` to 0 after a short warm-up, in place; left in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    inputs, targets = data.train
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.02)
    total, step = epochs * math.ceil(len(inputs) / BATCH), 0
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(BATCH):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = rate * min(step / 30, 0.5 + 0.5 * math.cos(math.pi * step / total))
            optimizer.zero_grad()
            kind.loss(model(inputs[rows]), targets[rows]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
    return model.eval()


@torch.inference_mode()
def judged(model: nn.Module, kind: tasks.Kind, data: Data) -> float:
    inputs, targets = data.test
    model.eval()
    return kind.metric(torch.cat([model(part) for part in inputs.split(128)]), targets)


def dense(folder: Path, name: str, kind: tasks.Kind, data: Data, seed: int) -> nn.Module:
    """The trained network, from the folder if it is there."""
    torch.manual_seed(seed)
    model, path = kind.network(), folder / f"{name.replace(' ', '_')}_{seed}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path))
    else:
        train(model, kind, data, kind.epochs, RATE, seed)
        torch.save(model.state_dict(), path)
    return model.eval()


def row(task: Task, kind: tasks.Kind, method: str) -> dict[str, Any]:
    start = time.perf_counter()
    small = copy.deepcopy(METHODS[method](task))
    found = {"seconds": time.perf_counter() - start, "macs": task.macs(small) / task.macs(task.model)}
    for parameter in small.parameters():
        parameter.requires_grad_(True)
    found["pruned"] = judged(small, kind, task.data)
    train(small, kind, task.data, kind.epochs // 4, RATE / 2, task.seed)
    return {**found, "tuned": judged(small, kind, task.data)}


def table(rows: list[dict[str, Any]]) -> str:
    """As pruned / after fine-tuning, in brackets the share of the MACs where it is off."""
    cells: dict[tuple[str, float, float], dict[str, str]] = defaultdict(dict)
    for r in rows:
        off = abs(r.get("macs", r["budget"]) - r["budget"]) > 0.01 * r["budget"]
        share = f" ({100 * r['macs']:.1f})" if "macs" in r and off else ""
        text = "fails" if "failed" in r else f"{r['pruned']:.1f} / {r['tuned']:.1f}{share}"
        cells[r["task"], r["dense"], r["budget"]][r["method"]] = text
    names = [m for m in METHODS if any(m in found for found in cells.values())]
    lines = [
        [task, tasks.KINDS[task].unit, f"{whole:.1f}", f"{budget:.0%}", *(found.get(m, "") for m in names)]
        for (task, whole, budget), found in cells.items()
    ]
    return tabulate(lines, ["task", "in", "dense", "MACs", *names], "github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("tasks"), help="dense networks and rows")
    parser.add_argument("--tasks", nargs="+", default=list(tasks.KINDS), choices=list(tasks.KINDS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS_HERE), choices=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.2, 0.1], help="shares of the MACs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", type=Path, help="the file of the rows; of itself rows.jsonl in the folder")
    parser.add_argument("--table-only", action="store_true")
    given = parser.parse_args()
    rows = given.rows or given.folder / "rows.jsonl"
    torch.set_num_threads(1)
    logging.getLogger("halp_fx").setLevel(logging.ERROR)
    for name in () if given.table_only else given.tasks:
        given.folder.mkdir(parents=True, exist_ok=True)
        kind, data = tasks.KINDS[name], tasks.make(name)
        for seed in given.seeds:
            model = dense(given.folder, name, kind, data, seed)
            for budget in given.budgets:
                for method in given.methods:
                    key = {"task": name, "budget": budget, "method": method, "seed": seed}
                    if any(key.items() <= r.items() for r in read(rows)):
                        continue
                    try:
                        found = row(Task(model, data, budget, seed, loss=kind.loss), kind, method)
                    except Exception as error:  # What cannot do it is a result, too.
                        found = {"failed": f"{type(error).__name__}: {error}"[:300]}
                    with rows.open("a") as file:
                        line = {**key, "dense": judged(model, kind, data), **found}
                        file.write(json.dumps(line) + "\n")
                    print(line, flush=True)
    print(table([r for r in read(rows) if r["task"] in given.tasks]))


if __name__ == "__main__":
    main()
