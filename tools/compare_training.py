"""Pruned before training, inside it, or after a penalty: accuracy at equal cost and equal epochs.

All ways start from the dense network that `tools/compare.py` trains and keeps, and take the same number of epochs of
the recipe of `comparing.training`, whatever they do in them. Rows go to a JSON-lines file as they are found; a run that
was stopped goes on where it was.

    python tools/compare_training.py --folder compare --networks residual inverted --budgets 0.2 0.1
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from compare import dense
from comparing import data, networks, tables, training
from comparing.methods import EXAMPLE, Task, loss
from tabulate import tabulate
from torch import nn

import halp_fx
from halp_fx.training.shrinking import shrink

RATE = 0.05

Found = dict[str, Any]
Way = Callable[[Task, int], tuple[nn.Module, Found]]
"""A task, whose model it may train, and a number of epochs -> the network in the end, and what else was found."""


def before(task: Task, epochs: int) -> tuple[nn.Module, Found]:
    """`prune`, then all epochs."""
    small = halp_fx.prune(
        task.model, task.budget, EXAMPLE, data=task.calibration, loss_fn=loss, latency="macs", progress=False
    )
    return training.train(small, task.data, epochs, RATE, task.seed), {}


def inside(steps: int, share: float = 1.0, measured: bool = False, **options: Any) -> Way:
    """`Pruner` in the first epoch of all, or a share of it; `measured`: its branches are valued by the images that
    `prune` has."""

    def run(task: Task, epochs: int) -> tuple[nn.Module, Found]:
        pruners = []

        def prepare(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
            pruner = halp_fx.Pruner(
                model, task.budget, EXAMPLE, optimizer=optimizer, latency="macs", steps=steps,
                interval=max(1, int(share * _batches(task)) // steps), data=task.calibration if measured else None,
                **options,
            )  # fmt: skip
            pruners.append(pruner)
            return pruner.step

        training.train(task.model, task.data, epochs, RATE, task.seed, prepare)
        return pruners[0].finish().eval(), {}

    return run


def after(penalised: bool) -> Way:
    """The first epoch with all channels, with a penalty on what will go or without; then the cut, in place, as `prune`
    would have cut the dense network."""

    def run(task: Task, epochs: int) -> tuple[nn.Module, Found]:
        first, found = _batches(task), {}
        penalty = halp_fx.SparsityPenalty(
            task.model, task.budget, EXAMPLE, steps=first * 6 // 7, most=1.0, data=task.calibration, loss_fn=loss,
            latency="macs",
        )  # fmt: skip
        coupling = halp_fx.channel_groups(task.model, EXAMPLE)

        def prepare(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
            batches = count(1)

            def within() -> None:
                batch = next(batches)
                if penalised and batch < first:
                    penalty().backward()
                if batch == first:
                    shrink(model, penalty.plan, coupling, None, optimizer)
                    small = training.settled(copy.deepcopy(model), task.data.train[0][:2048])
                    found["cut"] = training.accuracy(small, task.data)

            return within

        return training.train(task.model, task.data, epochs, RATE, task.seed, prepare), found

    return run


def _batches(task: Task) -> int:
    """Of an epoch."""
    return len(task.data.train[0]) // training.BATCH


WAYS: dict[str, Way] = {
    "prune": before,
    "Pruner": inside(12),
    # The final widths then have 91 % of four epochs, not 79; the first cuts are decided by fewer batches.
    "Pruner, sooner": inside(12, share=0.4),
    "Pruner, branches": inside(12, branches=True),
    "Pruner, branches measured": inside(12, branches=True, measured=True),
    "Pruner, halp": inside(30, solver="halp"),
    "epoch, then cut": after(penalised=False),
    "penalty, then cut": after(penalised=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("compare"), help="data, dense networks and rows")
    parser.add_argument("--data", nargs="+", default=["glyphs"], choices=list(data.SETS))
    parser.add_argument("--networks", nargs="+", default=["residual", "inverted"], choices=list(networks.NETWORKS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.2, 0.1], help="shares of the MACs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training, from one dense network")
    parser.add_argument("--epochs", type=int, default=24, help="of the dense network")
    parser.add_argument("--tuning", type=int, default=4, help="epochs of all that comes then")
    parser.add_argument("--images", type=int, nargs=2, default=[9000, 3000], help="to train on, to test on")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    logging.getLogger("halp_fx").setLevel(logging.ERROR)
    rows = given.folder / "training.jsonl"
    cells = [(s, d, n, b) for s in given.seeds for d in given.data for n in given.networks for b in given.budgets]
    for seed, name, network, budget in cells:
        made = data.make(name, given.folder, *given.images)
        for way in given.ways:
            key = {"data": name, "network": network, "budget": budget, "method": way, "seed": seed}
            if tables.key(key) in set(map(tables.key, tables.read(rows))):
                continue
            model = dense(given.folder, made, network, 0, given.epochs)
            line = key | row(Task(model, made, budget, seed), way, given.tuning)
            with rows.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)
    print(table(tables.read(rows)))


def row(task: Task, way: str, epochs: int) -> Found:
    """One way on one task."""
    whole, start = training.accuracy(task.model, task.data), time.perf_counter()
    given = replace(task, model=copy.deepcopy(task.model))
    try:
        small, found = WAYS[way](given, epochs)
    except halp_fx.HalpError as error:  # What cannot do it is a result, too.
        return {"dense": whole, "failed": f"{type(error).__name__}: {error}"[:300]}
    seconds, macs = time.perf_counter() - start, task.macs(small) / task.macs(task.model)
    return {"dense": whole, "macs": macs, "tuned": training.accuracy(small, task.data), "seconds": seconds} | found


def table(rows: list[Found]) -> str:
    """Percent in the end by way, a seed after the other; where there was a cut, percent right after it in brackets."""
    cells = sorted({(r["data"], r["network"], r["budget"]) for r in rows}, key=str)
    lines = []
    for way in dict.fromkeys(r["method"] for r in rows):
        line = [way]
        for cell in cells:
            own = [r for r in rows if r["method"] == way and (r["data"], r["network"], r["budget"]) == cell]
            line.append(" / ".join(_told(r) for r in sorted(own, key=lambda r: r["seed"])))
        lines.append(line)
    return tabulate(lines, ["way", *(f"{d}, {n}, {b:.0%}" for d, n, b in cells)], tablefmt="github")


def _told(row: Found) -> str:
    if "failed" in row:
        return "failed"
    return f"{100 * row['tuned']:.1f}" + (f" ({100 * row['cut']:.1f})" if "cut" in row else "")


if __name__ == "__main__":
    main()
