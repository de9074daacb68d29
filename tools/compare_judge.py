"""Does the judge of effort="thorough" know which network is best, and what is gained by it?

For every data set and network of `compare.py` (with its dense networks): `prune(..., effort="thorough")`,
then every network that was judged is made again and its accuracy taken, compensated without training, and after
fine-tuning as in `compare.py`. Rows go to a JSON-lines file; a run goes on where it was stopped.

    python tools/compare_judge.py --folder compare --data glyphs --networks residual --budgets 0.1
    python tools/compare_judge.py --folder compare --table-only
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import statistics
from pathlib import Path
from typing import Any

import torch
from compare import dense
from comparing import data, networks, training
from comparing.methods import Task, loss
from scipy.stats import spearmanr

import halp_fx
from halp_fx.pruning.records import read_record
from halp_fx.pruning.resuming import folder_name
from halp_fx.reporting.details import Contender
from halp_fx.reporting.report import report_of


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("compare"), help="data, dense networks, searches and rows")
    parser.add_argument("--data", nargs="+", default=["glyphs", "textures"], choices=list(data.SETS))
    parser.add_argument("--networks", nargs="+", default=["residual", "inverted"], choices=list(networks.NETWORKS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.2, 0.1], help="shares of the MACs")
    parser.add_argument("--judge", default="trained", choices=["trained", "untrained"])
    parser.add_argument("--epochs", type=int, default=24, help="of the dense network")
    parser.add_argument("--tuning", type=int, default=4, help="epochs of fine-tuning; 0 leaves it out")
    parser.add_argument("--seeds", type=int, default=1, help="of fine-tuning, for every network")
    parser.add_argument("--images", type=int, nargs=2, default=[9000, 3000], help="to train on, to test on")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=Path, help="the JSON-lines file; default: judged.jsonl in the folder")
    parser.add_argument("--table-only", action="store_true")
    return parser.parse_args()


def judged(task: Task, judge: str, folder: Path) -> tuple[dict[str, halp_fx.Plan], dict[str, Contender]]:
    """Of every network that was judged the plan, and what the judge says."""
    small = halp_fx.prune(
        task.model, task.budget, task.example, data=task.calibration, loss_fn=loss, latency="macs", effort="thorough",
        judge=judge, state=folder, progress=False,
    )  # fmt: skip
    report = report_of(small)
    words = {c.name: c for c in report.contenders}
    # The last record of a way is its end; varied widths have no way of their own.
    ends = {p.parent.name: p for p in sorted(folder.glob("*/[0-9]*.safetensors"))}
    plans = {name: read_record(ends[key]).plan for name in words if (key := folder_name(name)) in ends}
    return plans | {report.contenders[0].name: report.plan}, words


def accuracies(task: Task, plan: halp_fx.Plan, tuning: int, seeds: int) -> dict[str, Any]:
    """Without training, and after it: once for every seed, and in the mean."""
    small = halp_fx.rewrite(task.model, plan, task.example)
    halp_fx.compensate(small, task.model, task.calibration, plan, task.example)
    found: dict[str, Any] = {"compensated": training.accuracy(small, task.data)}
    if tuning:
        training.settled(small, task.data.train[0][:2048])
        tuned = [training.train(copy.deepcopy(small), task.data, tuning, 0.05, seed) for seed in range(seeds)]
        found["tunings"] = [training.accuracy(network, task.data) for network in tuned]
        found["tuned"] = statistics.mean(found["tunings"])
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """A line for every cell: what the ways end at after fine-tuning, and rank correlations of closeness with accuracy:
    of the networks as they stand, without and after fine-tuning, and of trained copies. The last column is how well
    the accuracies by one seed of fine-tuning know those by another: what no judge can surpass by much."""
    cells: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["data"], row["network"], row["budget"]), []).append(row)
    lines = [
        "| data | network | MACs | ways | as asked | taken | best | untuned | untrained | trained | two seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, network, budget), own in cells.items():
        tuned = {row["way"]: row.get("tuned", float("nan")) for row in own}
        taken = next(row["way"] for row in own if row["taken"])
        ends = [f"{100 * share:.1f}" for share in (tuned["as asked"], tuned[taken], max(tuned.values()))]
        found = [
            correlated([(-row[judge], row[kind]) for row in own if row.get(judge) is not None and kind in row])
            for judge, kind in (("distance", "compensated"), ("distance", "tuned"), ("trained", "tuned"))
        ]
        seeds = itertools.combinations(zip(*(row["tunings"] for row in own if "tunings" in row), strict=True), 2)
        chance = [float(spearmanr(*pair).statistic) for pair in seeds]
        found.append(f"{statistics.mean(chance):.2f}" if chance else "")
        lines.append(f"| {name} | {network} | {budget:.0%} | {' | '.join([str(len(own)), *ends, *found])} |")
    return "\n".join(lines)


def correlated(pairs: list[tuple[float, float]]) -> str:
    return f"{spearmanr(*zip(*pairs, strict=True)).statistic:.2f}" if len(pairs) > 2 else ""


def main() -> None:
    given = options()
    if not given.table_only:
        given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    logging.getLogger("halp_fx").setLevel(logging.ERROR)
    path = given.rows or given.folder / "judged.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(r["data"], r["network"], r["budget"], r["way"]) for r in rows}
    for name in () if given.table_only else given.data:
        made = data.make(name, given.folder, *given.images).to(given.device)
        for network in given.networks:
            model = dense(given.folder, made, network, 0, given.epochs, given.device)
            for budget in given.budgets:
                task = Task(model, made, budget, 0)
                plans, words = judged(task, given.judge, given.folder / f"search_{name}_{network}_{budget}")
                for way, plan in plans.items():
                    if (name, network, budget, way) in known:
                        continue
                    row = {"data": name, "network": network, "budget": budget, "way": way}
                    row |= {
                        "distance": words[way].distance,
                        "trained": words[way].tuned,
                        "taken": way == next(iter(words)),
                    }
                    row |= accuracies(task, plan, given.tuning, given.seeds)
                    rows.append(row)
                    with path.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
