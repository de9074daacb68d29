"""The kernels beside what one would write without them (`bench_kernels`)."""

from __future__ import annotations

from collections.abc import Iterator

import bench_kernels
import torch

from .setting import Row, Setting

NETWORKS = ("resnet50", "resnet101", "vgg16")
DTYPES = ("fp32", "bf16")


def run(setting: Setting) -> Iterator[Row]:
    """Saliency of whole networks and lookups, with the bandwidth of a copy of the same run."""
    networks = ("tiny",) if setting.rehearsal else NETWORKS
    bandwidth = bench_kernels.copy_bandwidth(setting.device)
    yield {"case": "copy", "gb_per_s": bandwidth}
    for case in setting.due(*(f"saliency {name} {dtype}" for name in networks for dtype in DTYPES)):
        yield {"case": case, "copy": bandwidth, **bench_kernels.saliency(*case.split()[1:], setting.device)}
    for case in setting.due("lookup fp32", "lookup fp64"):
        yield {"case": case, "copy": bandwidth, **bench_kernels.lookups(case.split()[1], setting.device)}


def compiled(setting: Setting) -> Iterator[Row]:
    """The per-layer code compiled: in a part of its own, as it takes minutes to compile."""
    networks = ("tiny",) if setting.rehearsal else ("resnet50",)
    modes = ("default",) if setting.rehearsal else ("default", "reduce-overhead")
    for case in setting.due(*(f"{mode} {name} fp32" for name in networks for mode in modes)):
        mode, name, dtype = case.split()
        torch._dynamo.reset()
        yield {"case": case, **bench_kernels.saliency(name, dtype, setting.device, modes=(mode,), only_compiled=True)}
