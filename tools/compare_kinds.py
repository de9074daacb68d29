"""Accuracy at equal cost on kinds of network that nothing in halp_fx was tuned on: `comparing.kinds`.

For each kind one dense network is trained (and kept); halp_fx as it comes, even widths and Torch-Pruning make of it
networks with the same share of the MACs, and all are fine-tuned alike. Rows go to a JSON-lines file as they are found;
a run that was stopped goes on where it was.

    python tools/compare_kinds.py --folder kinds                         # an hour of one core
    python tools/compare_kinds.py --folder kinds --kinds ghost --budgets 0.1 --methods halp_fx even --draws 3
    python tools/compare_kinds.py --rows docs/benchmarks_kinds.jsonl --table-only
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from comparing.data import Data
from comparing.kinds import KINDS, Kind
from comparing.methods import Task, uniform
from comparing.tables import read
from comparing.training import cosine, descent, settled
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import halp_fx

SEED = 0
"""Of the dense networks."""

FURTHER = 700
"""Samples that a draw goes on by: a method then looks at others."""

OFF = 0.02
"""Shares of the MACs are told where they are further off the budget."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a method is given: a trained network, and the share of its MACs that may stay."""

    kind: Kind
    data: Data
    model: nn.Module
    budget: float
    draw: int

    @property
    def example(self) -> Tensor:
        return self.data.train[0][:1].contiguous()

    @property
    def calibration(self) -> list[tuple[Tensor, Tensor]]:
        """The samples that a method may look at, in batches."""
        inputs, targets = (torch.roll(part, -self.draw * FURTHER, 0) for part in self.data.train)
        drawn = Data(self.data.name, 0, (inputs, targets), self.data.test)
        return drawn.calibration(self.kind.looked_at, self.kind.batch)


def by_halp_fx(cell: Cell) -> nn.Module:
    """The default."""
    return halp_fx.prune(
        cell.model,
        cell.budget,
        cell.example,
        data=cell.calibration,
        loss_fn=cell.kind.loss,
        latency="macs",
        progress=False,
    )


def even(cell: Cell) -> nn.Module:
    """All groups equally narrow, the channels with the largest weights: the same network in every draw."""
    return uniform(Task(cell.model, cell.data, cell.budget, cell.draw))


def torch_pruning(cell: Cell) -> nn.Module:
    """Torch-Pruning's group Taylor with global ranking, its ratio found by bisection in ten steps."""
    import torch_pruning as tp

    model, example = copy.deepcopy(cell.model).eval(), cell.example
    for x, y in cell.calibration:
        cell.kind.loss(model(x), y).backward()
    gradients = [p.grad for p in model.parameters()]
    last = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)][-1:]
    whole, best, low, high = _macs(model, example), None, 0.0, 1.0
    for _ in range(10):
        ratio = (low + high) / 2
        small = copy.deepcopy(cell.model)
        for parameter, gradient in zip(small.parameters(), gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        pruner = tp.pruner.BasePruner(
            small, example, importance=tp.importance.GroupTaylorImportance(), pruning_ratio=ratio, iterative_steps=1,
            global_pruning=True, ignored_layers=[small.get_submodule(n) for n in cell.kind.heads or last],
        )  # fmt: skip
        small.eval()
        pruner.step()
        small.zero_grad()
        share = _macs(small, example) / whole
        if share > 1.01 * cell.budget:
            low = ratio
            continue
        best, high = small, ratio
        if share >= 0.99 * cell.budget:
            break
    if best is None:
        raise RuntimeError("no ratio reaches the budget")
    return best


def _macs(model: nn.Module, example: Tensor) -> float:
    """As operators tell them, which needs no coupling."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example)
    return counter.get_total_flops() / 2


METHODS: Mapping[str, Callable[[Cell], nn.Module]] = {
    "halp_fx": by_halp_fx,
    "even": even,
    "torch-pruning": torch_pruning,
}

TITLES = {"halp_fx": "halp_fx", "even": "even widths", "torch-pruning": "Torch-Pruning"}


def train(model: nn.Module, kind: Kind, data: Data, epochs: int, rate: float, seed: int) -> nn.Module:
    """A cosine from `rate` to 0 after a short warm-up, in place; left in eval mode. AdamW has 0.03 of the rate."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    inputs, targets = data.train
    _laid_out(model.train(), inputs)
    optimizer = descent(model, rate, kind.adam)
    schedule = cosine(optimizer, epochs * (len(inputs) // kind.batch))
    for _ in range(epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for start in range(0, len(inputs) - kind.batch + 1, kind.batch):
            rows = order[start : start + kind.batch]
            optimizer.zero_grad(set_to_none=True)
            kind.loss(model(inputs[rows]), targets[rows]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def _laid_out(model: nn.Module, inputs: Tensor) -> nn.Module:
    return model.to(memory_format=torch.channels_last) if inputs.ndim == 4 else model


@torch.inference_mode()
def judged(model: nn.Module, kind: Kind, data: Data) -> float:
    inputs, targets = data.test
    return kind.metric(model.eval()(inputs), targets)


def dense(folder: Path, name: str, data: Data) -> nn.Module:
    """The trained network, from the folder if it is there."""
    kind, path = KINDS[name], folder / f"{name}_{SEED}.pt"
    torch.manual_seed(SEED)
    model = kind.network()
    if path.exists():
        model.load_state_dict(torch.load(path))
    else:
        train(model, kind, data, kind.epochs, kind.rate, SEED)
        torch.save(model.state_dict(), path)
    return _laid_out(model.eval(), data.train[0])


def row(cell: Cell, method: str) -> dict[str, Any]:
    """One method on one cell; seconds are of the CPU."""
    torch.manual_seed(cell.draw)
    start = time.process_time()
    small = METHODS[method](cell)
    seconds = time.process_time() - start
    own, whole = (
        halp_fx.MacsCost().total(halp_fx.channel_groups(model, cell.example)) for model in (small, cell.model)
    )
    small = copy.deepcopy(small)
    for parameter in small.parameters():
        parameter.requires_grad_(True)
    found = {"macs": own / whole, "seconds": round(seconds, 1), "pruned": judged(small, cell.kind, cell.data)}
    settled(small, cell.data.train[0][:1024])
    train(small, cell.kind, cell.data, cell.kind.tuning, cell.kind.rate / 2, cell.draw)
    return {**found, "tuned": judged(small, cell.kind, cell.data)}


def table(rows: list[dict[str, Any]]) -> str:
    """Means after fine-tuning with their standard errors, the best in bold, in brackets the share of the MACs where it
    is off; numbers in square brackets lead to why a method has none."""
    cells: dict[tuple[str, float], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for r in sorted(rows, key=lambda r: (list(KINDS).index(r["kind"]), -r["budget"])):
        cells[r["kind"], r["budget"]][r["method"]].append(r)
    notes: list[str] = []
    methods = [m for m in METHODS if any(m in by for by in cells.values())]
    lines = []
    for (kind, budget), by in cells.items():
        whole = next(r["dense"] for found in by.values() for r in found)
        best = max((_mean(found) for found in by.values()), default=-math.inf)
        lines.append([kind, f"{whole:.1f}", f"{budget:.0%}", *(_text(by.get(m, []), best, notes) for m in methods)])
    headers = ["kind", "dense", "MACs", *(TITLES[m] for m in methods)]
    text = tabulate(lines, headers, "github", disable_numparse=True) + "\n"
    return text + "".join(f"{'' if n > 1 else chr(10)}{n}. {note}\n" for n, note in enumerate(notes, 1))


def _mean(rows: list[dict[str, Any]]) -> float:
    tuned = [r["tuned"] for r in rows if "tuned" in r]
    return mean(tuned) if tuned else -math.inf


def _text(rows: list[dict[str, Any]], best: float, notes: list[str]) -> str:
    made = [r for r in rows if "tuned" in r]
    text = f"{_mean(made):.1f}" if made else "-" if rows else ""
    if len(made) > 1:
        text += f" ± {stdev(r['tuned'] for r in made) / math.sqrt(len(made)):.1f}"
    if made:
        text = f"**{text}**" if _mean(made) == best else text
        share, budget = mean(r["macs"] for r in made), made[0]["budget"]
        text += f" ({100 * share:.1f})" if abs(share - budget) > OFF * budget else ""
    for reason in dict.fromkeys(r["failed"] for r in rows if "failed" in r):
        note = reason + (f", in {len(rows) - len(made)} of {len(rows)} draws" if made else "")
        notes += [] if note in notes else [note]
        text += f" [{notes.index(note) + 1}]"
    return text


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("kinds"), help="dense networks and rows")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.2, 0.1], help="shares of the MACs")
    parser.add_argument("--draws", type=int, default=1, help="networks that a method makes of one, of other samples")
    parser.add_argument("--rows", type=Path, help="the file of the rows; of itself rows.jsonl in the folder")
    parser.add_argument("--table-only", action="store_true")
    return parser.parse_args()


def main() -> None:
    given = options()
    rows = given.rows or given.folder / "rows.jsonl"
    torch.set_num_threads(1)
    logging.getLogger("halp_fx").setLevel(logging.ERROR)
    for name in () if given.table_only else given.kinds:
        keys = [
            {"kind": name, "budget": budget, "method": method, "draw": draw}
            for budget in given.budgets
            for method in given.methods
            for draw in range(given.draws)
        ]
        missing = [key for key in keys if not any(key.items() <= r.items() for r in read(rows))]
        if not missing:
            continue
        given.folder.mkdir(parents=True, exist_ok=True)
        kind, data = KINDS[name], KINDS[name].data()
        model = dense(given.folder, name, data)
        whole = judged(model, kind, data)
        for key in missing:
            try:
                found = row(Cell(kind, data, model, key["budget"], key["draw"]), key["method"])
            except Exception as error:  # What cannot do it is a result, too.
                found = {"failed": str(error).splitlines()[0][:120] if str(error) else type(error).__name__}
            line = {**key, "dense": whole, **found}
            with rows.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)
    print(table([r for r in read(rows) if r["kind"] in given.kinds and r["budget"] in given.budgets]))


if __name__ == "__main__":
    main()
