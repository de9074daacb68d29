"""Budgets in milliseconds, met or not: pruned in one process, with a cold table, and measured in another."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

import bench_budget

from .setting import Row, Setting

BUDGETS = (0.75, 0.55)
CASES = (
    "resnet50 eager float16 256",
    "resnet50 eager float32 256",
    "resnet50 cudagraph float16 256",
    "resnet50 cudagraph float32 8",
    "resnet50 cudagraph float16 8",
    "resnet50 eager float16 8",
    "resnet50 cudagraph float16 1",
    "resnet50 eager float16 1",
    "resnet50 cudagraph float32 256",
    "resnet50 eager float32 8",
    "resnet50 cudagraph float32 1",
    "resnet50 eager float32 1",
)
"""Network, runtime, dtype (float16: channels last), batch."""


def run(setting: Setting) -> Iterator[Row]:
    cases = ("squeezenet1_1 eager float32 1",) if setting.rehearsal else CASES
    for case in setting.due(*cases):
        name, runtime, dtype, batch = case.split()
        yield from ({"case": case, **row} for row in _measured(name, runtime, dtype, int(batch), setting))


def _measured(name: str, runtime: str, dtype: str, batch: int, setting: Setting) -> list[Row]:
    words = Namespace(
        device=setting.device,
        dtype=dtype,
        runtime=runtime,
        side=64 if setting.rehearsal else 224,
        threads=1 if setting.rehearsal else 8,
        table=setting.table(runtime, dtype, batch),
        images=8 if setting.rehearsal else 256,
        channels_last=dtype == "float16",
    )
    return bench_budget.one_network(name, batch, BUDGETS, bench_budget.forwarded(words))
