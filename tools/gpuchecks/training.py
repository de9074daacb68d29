"""What accumulating saliency costs in a training step, by the kernel alone and by `Pruner`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

import bench_kernels
import bench_training
import torch

from .setting import Row, Setting


def run(setting: Setting) -> Iterator[Row]:
    sizes = {"batch": 2, "side": 32, "steps": 3} if setting.rehearsal else {}
    for case in setting.due("kernel"):
        yield {"case": case, **bench_kernels.training(setting.device, **sizes)}
    for case in setting.due("Pruner"):
        given = Namespace(
            batch=2 if setting.rehearsal else 64, side=32 if setting.rehearsal else 224, calls=15, budget=0.5
        )
        name = "resnet18" if setting.rehearsal else "resnet50"
        found = bench_training.row(name, given, torch.device(setting.device))
        keys = ("network", "step_ms", "pruner_ms", "share", "decision_s", "steps_before", "steps_after")
        yield {"case": case, **dict(zip(keys, found, strict=True))}
