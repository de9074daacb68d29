"""Measures the kernels of halp_fx against PyTorch and writes what it found: one command, no options needed.

    python tools/bench_kernels.py --out docs/benchmarks_kernels.md

On a CUDA device: copy bandwidth of the same run; saliency of whole networks against per-layer eager code,
`torch._foreach_*` and `torch.compile`; table lookup; a ResNet-50 training step with and without accumulation.
Every contender is compared with a float64 reference first, and none that fails is timed. Without a device the
PyTorch twins are measured on the CPU and the other rows say "not measured".
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpuchecks.setting import installed
from tabulate import tabulate
from torch import Tensor
from torchvision import models

from halp_fx import kernels
from halp_fx.kernels import VARIANTS, Segment, SegmentLayout, TableStack

NETWORKS = ("resnet50", "resnet101", "vgg16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUERIES = 1_000_000
ABSENT = "not measured"
Row = list[str]


def tiny() -> torch.nn.Module:
    """For a rehearsal through Triton's interpreter."""
    return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.Conv2d(16, 8, 3))


def network(name: str, dtype: torch.dtype, device: str) -> tuple[SegmentLayout, list[Tensor], list[Tensor]]:
    """Every weight by rows, coupled with its BatchNorm or bias and the next weight's columns; random gradients."""
    torch.manual_seed(0)
    with torch.device(device):
        weights = [p.detach().to(dtype) for p in (tiny() if name == "tiny" else getattr(models, name)()).parameters()]
    segments: list[Segment] = []
    channels, latest = 0, np.zeros(0, np.int64)
    for i, weight in enumerate(weights):
        if weight.dim() > 1:
            if len(latest) and weight.shape[1] % len(latest) == 0:
                # What the layer before produces; 49 columns a channel behind VGG's flatten.
                segments.append(Segment(i, 1, np.repeat(latest, weight.shape[1] // len(latest))))
            latest = channels + np.arange(weight.shape[0])
            channels += weight.shape[0]
        segments.append(Segment(i, 0, latest))
    return SegmentLayout.build(weights, segments, channels), weights, [torch.randn_like(w) for w in weights]


def eager(layout: SegmentLayout, device: str) -> Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]:
    """Per-layer code as a user writes it: one product per parameter, one sum per segment."""
    by_tensor = [[s for s in layout.segments if s.tensor == i] for i in range(len(layout.shapes))]
    channels = _channels(layout, device)

    def scores(weights: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
        total = torch.zeros(layout.num_channels, device=device)
        for weight, grad, segments in zip(weights, grads, by_tensor, strict=True):
            product = weight.float() * grad.float()
            for s in segments:
                total.index_add_(0, channels[id(s)], _sum_but(product, s.dim))
        return total.abs()

    return scores


def _channels(layout: SegmentLayout, device: str) -> dict[int, Tensor]:
    """Channel tensors of the segments, by the segment's id."""
    return {id(s): torch.from_numpy(s.channels).to(device) for s in layout.segments}


def foreach(layout: SegmentLayout, device: str) -> Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]:
    """The same with the products in multi-tensor launches (there is no segmented `_foreach_` reduction)."""
    channels = _channels(layout, device)

    def scores(weights: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
        wide = [[t.float() for t in part] for part in (weights, grads)]
        products = torch._foreach_mul(*wide)
        total = torch.zeros(layout.num_channels, device=device)
        for s in layout.segments:
            total.index_add_(0, channels[id(s)], _sum_but(products[s.tensor], s.dim))
        return total.abs()

    return scores


def _sum_but(value: Tensor, dim: int) -> Tensor:
    others = [d for d in range(value.dim()) if d != dim]
    return value.sum(others) if others else value


def agrees(scores: Tensor, layout: SegmentLayout, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> bool:
    """Whether "taylor" scores are within float32 rounding of the float64 reference."""
    wide = [[t.double() for t in part] for part in (weights, grads)]
    exact, size = (kernels.naive.channel_scores(layout, *wide, VARIANTS[v]) for v in ("taylor", "taylor_abs"))
    return bool(((scores - exact).abs() <= 4e-6 * size + 1e-30).all())


def gpu_ms(call: Callable[[], object]) -> float:
    """Median, L2 cleared before each run. The clearing outlasts a launch, so host time below it is hidden."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=50, rep=300, return_mode="median"))


def cpu_ms(call: Callable[[], object], repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def timed(call: Callable[[], object], device: str) -> float:
    """Milliseconds of a call."""
    return gpu_ms(call) if device == "cuda" else cpu_ms(call)


def copy_bandwidth(device: str) -> float:
    """GB/s, read plus written, of a 1 GiB device copy (of 16 MiB on a CPU)."""
    source = torch.empty(1 << (28 if device == "cuda" else 22), device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source), device) / 1e6


def saliency(
    name: str, dtype: str, device: str, modes: Sequence[str] = (), only_compiled: bool = False
) -> dict[str, Any]:
    """Milliseconds of each contender (None: wrong or failed), and what must be read.

    Args:
        modes: of torch.compile for the per-layer code, which takes minutes for a large network.
        only_compiled: nothing beside those.
    """
    from halp_fx.kernels.saliency import prepare

    layout, weights, grads = network(name, DTYPES[dtype], device)
    ours = prepare(layout, weights, grads, VARIANTS["taylor"])
    out = torch.empty(layout.num_channels, device=device)

    def launch() -> Tensor:
        ours.run(VARIANTS["taylor"], out, accumulate=False)
        return out

    plain, multi = eager(layout, device), foreach(layout, device)
    contenders: dict[str, Callable[[], Tensor]] = {
        "halp_fx, launch": launch,
        "halp_fx, whole call": lambda: kernels.channel_scores(layout, weights, grads),
        "eager per layer": lambda: plain(weights, grads),
        "torch._foreach_mul": lambda: multi(weights, grads),
    }
    if only_compiled:
        contenders.clear()
    if modes:
        for tensor in (*weights, *grads):
            torch._dynamo.mark_static_address(tensor)  # else CUDA graphs would copy every tensor first
    for mode in modes:
        compiled = torch.compile(eager(layout, device), mode=mode, dynamic=False)
        contenders[f"torch.compile ({mode})"] = lambda compiled=compiled: compiled(weights, grads)
    times: dict[str, float | None] = {}
    for label, call in contenders.items():
        try:
            good = agrees(call().clone(), layout, weights, grads)
            times[label] = timed(call, device) if good else None
        except Exception as error:  # A contender that fails is a row, too.
            print(f"{name} {dtype} {label}: {type(error).__name__}: {error}")
            times[label] = None
    return {
        "network": name,
        "dtype": dtype,
        "ms": times,
        "bytes": ours.plan.bytes_read,
        "bitwise": torch.equal(launch().clone(), launch()),
    }


def saliency_rows(found: dict[str, Any], bandwidth: float) -> list[Row]:
    """One row per contender: ms, GB/s of the bytes that must be read, share of copy bandwidth, speed-up."""
    times, moved = found["ms"], found["bytes"]
    others = [ms for label, ms in times.items() if ms is not None and not label.startswith("halp_fx")]
    rows = []
    for label, ms in times.items():
        case = [found["network"], found["dtype"], label]
        if ms is None:
            rows.append([*case, "wrong or failed", "", "", ""])
            continue
        speedup = f"{min(others) / ms:.1f}x" if label.startswith("halp_fx") and others else ""
        rate = moved / ms / 1e6
        shares = [f"{moved / 1e6:.0f}", f"{rate:.0f} ({100 * rate / bandwidth:.0f} %)"]
        same = f", two runs {'equal' if found['bitwise'] else 'DIFFER'}"
        rows.append([*case, f"{ms:.4f}", *shares, speedup + same * label.endswith("launch")])
    return rows


def tables(dtype: torch.dtype, device: str) -> tuple[TableStack, list[Tensor]]:
    """54 layers of up to 32 x 32 points, widths to 2048, and a million random queries."""
    rng = np.random.default_rng(0)
    stack = []
    for _ in range(54):
        axes = [np.unique(rng.integers(1, 2049, 32)) for _ in range(2)]
        stack.append((axes[0], axes[1], rng.random((len(axes[1]), len(axes[0])))))
    queries = [torch.from_numpy(rng.integers(0, high, QUERIES)).to(device) for high in (54, 2100, 2100)]
    return TableStack.build(stack, dtype=dtype, device=device), queries


def lookups(dtype: str, device: str) -> dict[str, Any]:
    """Milliseconds of a million lookups (None: wrong), and what they move."""
    records = {"fp32": torch.float32, "fp64": torch.float64}[dtype]
    stack, queries = tables(records, device)
    times = kernels.lookup(stack, *queries)
    wide = kernels.naive.lookup(tables(torch.float64, device)[0], *queries)
    good = torch.allclose(times.double(), wide, rtol=1e-5, atol=1e-6)
    return {
        "device": device,
        "dtype": dtype,
        "ms": timed(lambda: kernels.lookup(stack, *queries), device) if good else None,
        "bytes": sum(q.nbytes for q in queries) + times.nbytes,
        "bitwise": torch.equal(times, kernels.lookup(stack, *queries)),
    }


def lookup_row(found: dict[str, Any], bandwidth: float | None) -> Row:
    ms, moved = found["ms"], found["bytes"]
    if ms is None:
        return [found["device"], found["dtype"], "wrong result", "", "", ""]
    share = f"{moved / ms / 1e6:.1f}" + (f" ({100 * moved / ms / 1e6 / bandwidth:.0f} %)" if bandwidth else "")
    same = "equal" if found["bitwise"] else "DIFFER"
    return [found["device"], found["dtype"], f"{ms:.4f}", f"{moved / 1e6:.0f}", share, same]


def training(device: str, batch: int = 128, side: int = 224, steps: int = 50) -> dict[str, Any]:
    """ResNet-50, bf16 autocast, SGD: a step with and without accumulating saliency, in turn, in ms."""
    model = models.resnet50().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(batch, 3, side, side, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=device)
    weights = list(model.parameters())
    layout = network("resnet50", torch.float32, "cpu")[0]
    total = torch.zeros(layout.num_channels, device=device)

    def step(score: bool) -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        if score:
            kernels.channel_scores(layout, weights, [p.grad for p in weights], out=total)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def ms(score: bool) -> float:
        if device == "cpu":
            return cpu_ms(lambda: step(score), 1)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step(score)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    for _ in range(steps // 5):
        ms(True), ms(False)
    pairs = [(ms(False), ms(True)) for _ in range(steps)]
    without, with_scores = (statistics.median(column) for column in zip(*pairs, strict=True))
    extra = statistics.median(b - a for a, b in pairs)
    return {"without": without, "with": with_scores, "extra": extra, "share": extra / without}


def training_row(found: dict[str, Any]) -> Row:
    return [f"{found['without']:.2f}", f"{found['with']:.2f}", f"{found['extra']:.3f}", f"{100 * found['share']:.2f} %"]


def saliency_cpu() -> list[Row]:
    """The twin, against the same eager code, on this machine's CPU."""
    rows = []
    for name in NETWORKS:
        layout, weights, grads = network(name, torch.float32, "cpu")
        plain = eager(layout, "cpu")
        for label, call in (
            ("PyTorch twin", lambda: kernels.channel_scores(layout, weights, grads)),  # noqa: B023 (called here)
            ("eager per layer", lambda: plain(weights, grads)),  # noqa: B023
        ):
            good = agrees(call(), layout, weights, grads)
            rows.append([name, "fp32", label, f"{cpu_ms(call):.1f}" if good else "wrong result"])
    return rows


def report() -> str:
    """The whole page."""
    has_gpu = torch.cuda.is_available()
    kernels_on = torch.cuda.get_device_name() if has_gpu else "no CUDA device"
    head = [
        ["date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")],
        ["device", kernels_on],
        ["CPU", f"{platform.machine()}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} at the start"],
        ["versions", f"Python {platform.python_version()}, torch {torch.__version__}, Triton {installed('triton')}"],
    ]
    bandwidth = copy_bandwidth("cuda") if has_gpu else None
    head.append(["copy bandwidth of this run", f"{bandwidth:.0f} GB/s" if bandwidth else ABSENT])
    salient, trained = [], [[ABSENT] * 4]
    looked = [["cuda", dtype, *[ABSENT] * 4] for dtype in ("fp32", "fp64")]
    if bandwidth:
        looked = [lookup_row(lookups(dtype, "cuda"), bandwidth) for dtype in ("fp32", "fp64")]
        trained = [training_row(training("cuda"))]
    for name in NETWORKS:
        for dtype in DTYPES:
            if bandwidth:
                salient += saliency_rows(saliency(name, dtype, "cuda", ("default", "reduce-overhead")), bandwidth)
                torch._dynamo.reset()
            else:
                salient.append([name, dtype, "all", *[ABSENT] * 4])
    looked += [lookup_row(lookups(dtype, "cpu"), None) for dtype in ("fp32", "fp64")]
    sections = [
        ("# Kernels: what was measured", ["", ""], head),
        (
            "## Saliency on the GPU: one launch per network, `taylor`, rows and columns of every weight",
            ["network", "dtype", "code", "ms", "MB read", "GB/s (of copy)", "against the best other"],
            salient,
        ),
        (
            f"## Lookup of {QUERIES:,} queries",
            ["device", "dtype", "ms", "MB moved", "GB/s (of copy)", "two runs"],
            looked,
        ),
        (
            "## ResNet-50 training step, batch 128, bf16 autocast: cost of accumulating saliency",
            ["ms without", "ms with", "difference, ms", "share"],
            trained,
        ),
        ("## Saliency on the CPU", ["network", "dtype", "code", "ms"], saliency_cpu()),
    ]
    parts = [f"{title}\n\n{tabulate(rows, headers, tablefmt='github')}" for title, headers, rows in sections]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--ptx", action="store_true", help="inspect the compiled kernels instead (no device needed)")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.ptx:
        print("No CUDA device here: the PyTorch twins run on the CPU, the other rows say 'not measured'.\n")
    if options.ptx:
        from halp_fx.kernels import aot

        page = aot.report(90)
    else:
        page = report()
    print(page)
    if options.out:
        options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
