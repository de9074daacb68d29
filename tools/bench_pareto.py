"""What a curve of ten budgets costs, against `prune` for each of them.

    OMP_NUM_THREADS=1 python tools/bench_pareto.py [--network resnet50] [--measured | --data]

CPU seconds of the process, which a busy machine changes least; "before measuring" leaves out the end-to-end timing.
With `--measured`: a small network (four convolutions) by its time on this machine. With `--data`: ResNet-18 at 32 x 32
and four batches of 16 images of noise, against `prune` to half and to the smallest of the budgets.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Mapping
from statistics import mean
from typing import Any

import torch
import torchvision
from torch import nn

import halp_fx
from halp_fx.pruning import clock

BUDGETS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


class CpuTime:
    """In place of `time` where stages are timed."""

    perf_counter = staticmethod(time.process_time)


def small() -> nn.Module:
    layers: list[nn.Module] = []
    for inner, outer in ((3, 32), (32, 64), (64, 64), (64, 128)):
        layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)).eval()


def before_measuring(seconds: Mapping[str, float]) -> float:
    return sum(s for stage, s in seconds.items() if stage not in ("measure", "check layers"))


def with_data(model: nn.Module, x: torch.Tensor, settings: dict[str, Any]) -> None:
    halp_fx.prune(model, 0.9, x, **settings)
    alone = {b: before_measuring(halp_fx.prune(model, b, x, **settings).halp.seconds) for b in (0.5, BUDGETS[-1])}
    curve = halp_fx.pareto(model, BUDGETS, x, **settings)
    all_ = before_measuring(curve.seconds)
    for budget, one in alone.items():
        ratio = f"{budget:.0%} alone {one:.2f} s ({all_ / one:.1f} times)"
        print(f"with data: {len(curve.points)} budgets {all_:.2f} s, {ratio}")
    print(curve)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--measured", action="store_true")
    what.add_argument("--data", action="store_true")
    given = parser.parse_args()
    logging.getLogger("halp_fx").setLevel(logging.ERROR)
    clock.time = CpuTime  # type: ignore[assignment]
    torch.manual_seed(0)
    if given.measured:
        model, x = small(), torch.randn(1, 3, 64, 64)
        budgets: tuple[float, ...] = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
        latency = None
    elif given.data:
        model, x = torchvision.models.resnet18(num_classes=10).eval(), torch.randn(1, 3, 32, 32)
        budgets, latency = BUDGETS, "macs"
    else:
        model, x = getattr(torchvision.models, given.network)().eval(), torch.randn(1, 3, 224, 224)
        budgets, latency = BUDGETS, "macs"
    settings = {"latency": latency, "progress": False}
    if given.data:
        settings["data"] = [torch.randn(16, 3, 32, 32) for _ in range(4)]
        with_data(model, x, settings)
        return
    halp_fx.prune(model, 0.7, x, **settings)  # Tables are stored, and everything is imported.
    for solver in ("auto", "lagrangian"):
        alone = [dict(halp_fx.prune(model, b, x, solver=solver, **settings).halp.seconds) for b in budgets]
        curve = halp_fx.pareto(model, budgets, x, solver=solver, **settings)
        one, all_ = mean(map(before_measuring, alone)), before_measuring(dict(curve.seconds))
        met = sum(p.met for p in curve.points)
        print(
            f"solver={solver!r}, before measuring: one budget {one:.2f} s in the mean (at most "
            f"{max(map(before_measuring, alone)):.2f}), {len(curve.points)} budgets {all_:.2f} s ({all_ / one:.1f} "
            f"times), {met} met; measuring {curve.seconds['measure']:.2f} s against "
            f"{sum(s['measure'] for s in alone):.2f} s"
        )
    print(curve)


if __name__ == "__main__":
    main()
