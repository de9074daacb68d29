"""What scoring and choosing cost, beside one epoch over the same images.

python tools/bench_scoring.py --network resnet50 --images 64 --budget 0.5
"""

from __future__ import annotations

import argparse
import logging
import time

import torch
import torchvision
from torch import nn

import halp_fx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--importance", nargs="+", default=["batches", "fisher", "taylor", "magnitude"])
    parser.add_argument("--cpu", action="store_true", help="seconds of CPU, where other processes take their share")
    parser.add_argument("--compensate", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    if given.cpu:
        time.perf_counter = time.process_time  # What the report's stages are timed by.
    logging.getLogger("halp_fx").setLevel(logging.ERROR)
    torch.manual_seed(0)
    model = getattr(torchvision.models, given.network)(num_classes=100).to(memory_format=torch.channels_last)
    sizes = [given.batch] * (given.images // given.batch)
    data = [(torch.randn(n, 3, given.pixels, given.pixels), torch.randint(100, (n,))) for n in sizes]
    loss_fn = nn.CrossEntropyLoss()

    start = time.perf_counter()
    for x, y in data:
        loss_fn(model(x), y).backward()
    epoch = time.perf_counter() - start
    model.zero_grad()
    print(f"{given.network}, {len(data) * given.batch} images: one epoch {epoch:.1f} s")
    for importance in given.importance:
        small = halp_fx.prune(
            model, given.budget, data[0][0][:1], data=data, loss_fn=loss_fn, importance=importance,
            latency="macs", progress=False, compensate=None if given.compensate else False,
        )  # fmt: skip
        parts = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in small.halp.seconds.items())
        whole = sum(small.halp.seconds.values())
        chosen = whole - small.halp.seconds.get("compensate", 0.0)
        epochs = f"{whole / epoch:.2f} epochs, {chosen / epoch:.2f} without compensation"
        print(f"  {importance}: {whole:.1f} s, {epochs} ({parts})")


if __name__ == "__main__":
    main()
