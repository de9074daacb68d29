"""Accuracy at equal cost: prune trained networks with each method, fine-tune all alike, and compare.

For every data set, network and seed one dense network is trained (and kept); every method makes of it a network with
the same share of the MACs, of the MACs and an overhead of each layer (`--cost overhead`), or of the time that it takes
(measured in turn with the dense network; `--cost time`: of a batch of 32 images, `--cost single`: of one image); batch
norms are re-estimated, and all are fine-tuned by the recipe of `comparing.training`. Rows go to a JSON-lines file as
they are found, so that a run that was stopped goes on where it was, and several can share the work.

    python tools/compare.py --smoke                              # digits, two minutes: does everything run?
    python tools/compare.py --folder compare                     # everything, hours on two cores
    python tools/compare.py --folder compare --networks inverted --methods halp_fx uniform --budgets 0.2
    python tools/compare.py --rows docs/benchmarks_accuracy.jsonl --table-only --plot compare.png
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from comparing import data, networks, tables, training
from comparing.methods import CALIBRATION, DEFAULTS, METHODS, Task

import halp_fx

BUDGETS = (0.5, 0.2, 0.1, 0.05)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [n for n in networks.NETWORKS if n not in (*networks.HELD_BACK, *networks.BY_NAME)]
    parser.add_argument("--folder", type=Path, default=Path("compare"), help="data, dense networks and rows")
    parser.add_argument("--data", nargs="+", default=["glyphs", "textures"], choices=list(data.SETS))
    parser.add_argument("--networks", nargs="+", default=known, choices=list(networks.NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(DEFAULTS), choices=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS), help="shares of the cost")
    parser.add_argument("--cost", choices=list(tables.COSTS), default="macs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="each has a dense network of its own")
    parser.add_argument("--draws", type=int, default=1, help="networks that a method makes of one: see `draw_of`")
    parser.add_argument("--epochs", type=int, default=24, help="of the dense network")
    parser.add_argument("--tuning", type=int, default=4, help="epochs of fine-tuning")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, nargs=2, default=[9000, 3000], help="to train on, to test on")
    parser.add_argument("--smoke", action="store_true", help="digits, one small network, two budgets, few epochs")
    parser.add_argument("--rows", type=Path, help="the file of the rows; of itself rows.jsonl in the folder")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    if given.smoke:
        given.data, given.networks, given.budgets, given.seeds = ["digits"], ["residual"], [0.5, 0.2], [0]
        given.epochs, given.tuning, given.images = 4, 1, [2000, 500]
    return given


def dense(folder: Path, made: data.Data, network: str, seed: int, epochs: int, device: str = "cpu") -> torch.nn.Module:
    """The trained network, from the folder if it is there."""
    torch.manual_seed(seed)
    model = networks.NETWORKS[network](made.classes).to(device)
    path = folder / f"{made.name}_{network}_{seed}_{epochs}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, map_location=device))
    else:
        training.train(model, made, epochs, 0.1, seed)
        torch.save(model.state_dict(), path)
    return model.eval().to(memory_format=torch.channels_last)


def draw_of(made: data.Data, draw: int) -> data.Data:
    """The same data with other training images first: a method then looks at others, which moves what it makes more
    than another seed of the fine-tuning does."""
    images, labels = (torch.roll(part, -draw * CALIBRATION, 0) for part in made.train)
    return replace(made, train=(images, labels))


def row(task: Task, method: str, tuning: int) -> dict[str, Any]:
    """One method on one task."""
    start = time.perf_counter()
    small = METHODS[method](task)
    found: dict[str, Any] = {"seconds": time.perf_counter() - start, "macs": task.macs(small) / task.macs(task.model)}
    found[task.cost] = task.share(small)
    coupling = halp_fx.channel_groups(small, task.example)
    found["widths"] = [g.size for g in coupling.prunable]
    small = copy.deepcopy(small)
    for parameter in small.parameters():
        parameter.requires_grad_(True)
    found["pruned"] = training.accuracy(small, task.data)
    training.settled(small, task.data.train[0][:2048])
    found["settled"] = training.accuracy(small, task.data)
    training.train(small, task.data, tuning, 0.05, task.seed)
    found["tuned"] = training.accuracy(small, task.data)
    return found


def main() -> None:
    given = options()
    if not given.table_only:
        given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    logging.getLogger("halp_fx").setLevel(logging.ERROR)
    rows = given.rows or given.folder / ("smoke.jsonl" if given.smoke else "rows.jsonl")
    for name in () if given.table_only else given.data:
        made = data.make(name, given.folder, *given.images).to(given.device)
        for network in given.networks:
            for seed in given.seeds:
                keys = [
                    {"data": name, "network": network, "budget": budget, "method": method, "seed": seed}
                    | {"draw": draw, "cost": given.cost}
                    for budget in given.budgets
                    for method in given.methods
                    for draw in range(given.draws)
                ]
                missing = [key for key in keys if tables.key(key) not in set(map(tables.key, tables.read(rows)))]
                if not missing:
                    continue
                model = dense(given.folder, made, network, seed, given.epochs, given.device)
                whole = training.accuracy(model, made)
                for key in missing:
                    drawn = draw_of(made, key["draw"])
                    task = Task(model, drawn, key["budget"], seed + key["draw"], given.cost)
                    try:
                        found = row(task, key["method"], given.tuning)
                    except Exception as error:  # What cannot do it is a result, too.
                        found = {"failed": f"{type(error).__name__}: {error}"[:300]}
                    line = {**key, "dense": whole, **found}
                    with rows.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(tables.said(line), flush=True)
    asked = [
        r for r in tables.read(rows)
        if (r["data"], r["network"]) in product(given.data, given.networks) and r.get("cost", "macs") == given.cost
    ]  # fmt: skip
    text = tables.markdown(asked)
    print(text)
    if given.markdown:
        given.markdown.write_text(text)
    if given.plot:
        tables.plot(asked, given.plot)


if __name__ == "__main__":
    main()
