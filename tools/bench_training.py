"""What pruning inside a loop costs: the share of a training step that `Pruner.step` takes, and steps a second before
the first cut and after the last.

    python tools/bench_training.py --networks resnet18 mobilenet_v2 --batch 16 --side 96
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
import torchvision
from tabulate import tabulate
from torch import nn

import halp_fx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--budget", type=float, default=0.3)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    rows = [row(name, given, device) for name in given.networks]
    heads = ["network", "step, ms", "Pruner.step, ms", "share", "decision, s", "steps/s before", "after"]
    print(tabulate(rows, heads, floatfmt=".3g", tablefmt="github"))


def row(name: str, given: argparse.Namespace, device: torch.device) -> list[object]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=100).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    x, y = torch.randn(given.batch, 3, given.side, given.side, device=device), torch.arange(given.batch, device=device)
    # Three calls more than are timed, the last of which is decided in.
    pruner = halp_fx.Pruner(
        model, given.budget, x, optimizer=optimizer, latency="macs", steps=1, interval=given.calls + 3
    )

    def step() -> tuple[float, float]:
        """Milliseconds of the step, and of the pruner's part of it."""
        times = [now(device)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        times.append(now(device))
        pruner.step()
        times.append(now(device))
        optimizer.step()
        times.append(now(device))
        return 1e3 * (times[3] - times[0]), 1e3 * (times[2] - times[1])

    found = [step() for _ in range(given.calls + 3)]
    wide, decided = found[2:-1], found[-1]
    narrow = [step() for _ in range(given.calls)][2:]
    part = median(b for _, b in wide)
    before, after = median(a - b for a, b in wide), median(a - b for a, b in narrow)
    return [name, before, part, f"{part / before:.2%}", decided[1] / 1e3, 1e3 / before, 1e3 / after]


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
