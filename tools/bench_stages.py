"""Seconds of CPU time that each stage takes, and Torch-Pruning's beside it where it is installed and works.

    python tools/bench_stages.py resnet50 densenet201 --repeats 5

Interleaved, on one thread, medians of CPU time: what else the machine does counts less so. halp_fx: trace + couple
(with the trial of constants), then rewrite with its verification. Torch-Pruning (pip install torch-pruning): building
the graph, then pruning every group to half with magnitude importance, output layers ignored.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from tabulate import tabulate

import halp_fx

DEFAULT = (
    *("resnet18", "resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_large", "densenet121", "densenet201"),
    *("convnext_tiny", "googlenet", "efficientnet_b0", "shufflenet_v2_x1_0", "vgg11_bn", "vit_b_16", "swin_t"),
)


def ours(model: Any, inputs: torch.Tensor) -> dict[str, float]:
    start = time.process_time()
    coupling = halp_fx.channel_groups(model, inputs)
    coupled = time.process_time()
    plan = {g.name: range(max(1, g.size // 2)) for g in coupling.prunable}
    small = halp_fx.rewrite(model, plan, inputs, coupling=coupling)
    done = time.process_time()
    share = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    return {"couple": coupled - start, "rewrite": done - coupled, "total": done - start, "kept": share}


def theirs(model: Any, inputs: torch.Tensor) -> dict[str, float]:
    import torch_pruning

    model = copy.deepcopy(model)
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)][-1]
    before = sum(p.numel() for p in model.parameters())
    start = time.process_time()
    pruner = torch_pruning.pruner.MetaPruner(
        model,
        inputs,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[last],
    )
    built = time.process_time()
    pruner.step()
    done = time.process_time()
    with torch.no_grad():
        model.eval()(inputs)
    share = sum(p.numel() for p in model.parameters()) / before
    return {"build": built - start, "prune": done - built, "total": done - start, "kept": share}


def median(run: Callable[[], dict[str, float]], into: list[dict[str, float]]) -> str:
    try:
        into.append(run())
    except Exception as error:
        return type(error).__name__
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=DEFAULT)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    peer = options.peer
    if peer:
        try:
            import torch_pruning  # noqa: F401
        except ImportError:
            peer = False
            print("torch-pruning is not installed: its columns are left out")
    rows = []
    for name in options.models:
        model = torchvision.models.get_model(name, weights=None).eval()
        inputs = torch.randn(1, 3, 224, 224)
        mine: list[dict[str, float]] = []
        other: list[dict[str, float]] = []
        failed = ""
        for _ in range(options.repeats):
            error = median(lambda model=model, inputs=inputs: ours(model, inputs), mine)
            if error:
                raise SystemExit(f"{name}: {error}")
            if peer and not failed:
                failed = median(lambda model=model, inputs=inputs: theirs(model, inputs), other)
        middle = {k: statistics.median(r[k] for r in mine) for k in mine[0]}
        row: list[Any] = [name, *(middle[k] for k in ("couple", "rewrite", "total", "kept"))]
        if peer:
            total = statistics.median(r["total"] for r in other) if other and not failed else None
            row += [failed or total, "" if total is None else total / middle["total"]]
            row.append("" if total is None else other[0]["kept"])
        rows.append(row)
        print(*row, flush=True)
    headers = ["model", "trace + couple s", "rewrite s", "total s", "kept"]
    headers += ["Torch-Pruning s", "ratio", "its kept"] if peer else []
    print(
        f"\n{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}, Python "
        f"{platform.python_version()}, median of {options.repeats}\n"
    )
    print(tabulate(rows, headers=headers, tablefmt="github", floatfmt=".3f"))


if __name__ == "__main__":
    main()
