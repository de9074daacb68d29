"""How large the items of the saliency kernel and the blocks of the lookup should be: a sweep on a CUDA device.

python tools/bench_tiling.py --rows tiling.jsonl --minutes 2
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import chain, product
from pathlib import Path
from typing import Any

import bench_kernels
import torch

from halp_fx import kernels
from halp_fx.kernels import VARIANTS
from halp_fx.kernels.workplan import Tiling

TILES = ((8, 128), (16, 128), (8, 256), (4, 256))
WARPS = (4, 8)
ITEMS = (350, 500, 700, 1000, 1400, 2000, 2800, 4096)
Row = dict[str, Any]

BLOCKS = ((64, 2), (128, 4), (256, 4), (256, 8), (512, 8), (512, 16), (1024, 8), (1024, 32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path("tiling.jsonl"))
    parser.add_argument("--minutes", type=float, default=2.0)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("not measured: no CUDA device here")
    until = time.monotonic() + 60 * given.minutes
    with given.rows.open("a", encoding="utf-8") as file:
        for row in chain(lookups(), tilings(until)):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(json.dumps(row), flush=True)


def us(call: Callable[[], Any]) -> float:
    from triton.testing import do_bench

    return 1e3 * float(do_bench(call, warmup=5, rep=40, return_mode="median"))


def lookups() -> Iterator[Row]:
    from halp_fx.kernels import interpolate

    for block, warps in BLOCKS:
        interpolate.BLOCK, interpolate.NUM_WARPS = block, warps
        for dtype in (torch.float32, torch.float64):
            stack, queries = bench_kernels.tables(dtype, "cuda")
            found = us(lambda stack=stack, queries=queries: kernels.lookup(stack, *queries))
            yield {"lookup": str(dtype), "block": block, "warps": warps, "us": found}


def tilings(until: float) -> Iterator[Row]:
    from halp_fx.kernels import saliency

    cases = {
        (name, dtype): bench_kernels.network(name, bench_kernels.DTYPES[dtype], "cuda")
        for name, dtype in product(("resnet50", "vgg16"), ("fp32", "bf16"))
    }
    for (high, wide), warps, items in product(TILES, WARPS, ITEMS):
        saliency.NUM_WARPS = warps
        tiling = Tiling(rows=high, cols=wide, items=items)
        for (name, dtype), (layout, weights, grads) in cases.items():
            if time.monotonic() > until:
                return
            launch = saliency.prepare(layout, weights, grads, VARIANTS["taylor"], tiling)
            out = torch.empty(layout.num_channels, device="cuda")
            found = us(lambda launch=launch, out=out: launch.run(VARIANTS["taylor"], out, accumulate=False))
            right = bench_kernels.agrees(out, layout, weights, grads)
            row = {"network": name, "dtype": dtype, "tile": [high, wide], "warps": warps, "items": items}
            yield {**row, "planned": len(launch.plan.items), "us": found, "right": right}


if __name__ == "__main__":
    main()
