"""Images a second at the speed-ups that the paper reports: networks pruned to that share of the latency."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models.detection import ssd300_vgg16

import halp_fx
from halp_fx.latency import MeasuredLatency
from halp_fx.latency.interleaving import interleaved

from .setting import Row, Setting

RATIOS = {"resnet50": 1.60, "resnet101": 1.90, "ssd300_vgg16": 1.94}
"""HALP (arXiv 2110.10811), tables 1 and 4: speed-ups on a TITAN V at which accuracy was kept."""


class Raw(nn.Module):
    """What a detector computes of images before boxes are decoded and suppressed: those loops over images and classes
    are thousands of launches, the same ones before and after, and no part of what the paper timed."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = self.head(list(self.backbone(x).values()))
        return found


def run(setting: Setting) -> Iterator[Row]:
    if setting.rehearsal:
        for case in setting.due("squeezenet1_1 1.6"):
            yield from _network(case, setting, batch=1, side=64, dtype=torch.float32)
        return
    for case in setting.due(*(f"{name} {ratio}" for name, ratio in RATIOS.items())):
        detector = case.startswith("ssd")
        dtype = torch.float32 if detector else torch.float16
        yield from _network(case, setting, 32 if detector else 256, 300 if detector else 224, dtype)


def _network(case: str, setting: Setting, batch: int, side: int, dtype: torch.dtype) -> Iterator[Row]:
    """A row for eager mode, then one for compiled networks."""
    name, ratio = case.split()
    torch.manual_seed(0)
    x = torch.rand(batch, 3, side, side, device=setting.device, dtype=dtype).to(memory_format=torch.channels_last)
    inputs: Any = (x,)
    if name.startswith("ssd"):
        model: nn.Module = Raw(ssd300_vgg16(weights=None, weights_backbone=None))
    else:
        model = getattr(models, name)(weights=None)
    model = model.to(setting.device, dtype).to(memory_format=torch.channels_last).eval()
    start = time.perf_counter()
    kind = str(dtype).removeprefix("torch.")
    latency = MeasuredLatency(table=setting.table("eager", kind, batch))
    try:
        small = halp_fx.prune(model, 1 / float(ratio), inputs, latency=latency, progress=False)
    except halp_fx.HalpError as error:
        yield {"case": case, "runtime": "eager", "batch": batch, "dtype": kind, "wanted": float(ratio)} | {
            "failed": str(error)[:300]
        }
        return
    row: Row = {"batch": batch, "dtype": kind, "wanted": float(ratio)}
    row |= {"seconds": time.perf_counter() - start, "stages": small.halp.seconds}
    row |= {"macs": halp_fx.MacsCost().total(halp_fx.channel_groups(small, inputs)) / _macs(model, inputs)}
    for runtime in ("eager", "inductor"):
        try:
            dense, pruned = interleaved([model, small], (inputs, {}), runtime=runtime, max_time_s=3.0)
        except Exception as error:  # What a compiler makes of a network is not known beforehand.
            yield {"case": case, "runtime": runtime, **row, "failed": f"{type(error).__name__}: {error}"[:300]}
            continue
        pruned_ms = pruned.share * dense.median_ms
        yield {
            "case": case if runtime == "inductor" else f"{case} {runtime}",
            "runtime": runtime,
            **row,
            "dense_per_s": 1e3 * batch / dense.median_ms,
            "pruned_per_s": 1e3 * batch / pruned_ms,
            "ratio": 1 / pruned.share,
        }


def _macs(model: nn.Module, inputs: Any) -> float:
    return halp_fx.MacsCost().total(halp_fx.channel_groups(model, inputs))
