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

import numpy as np
import torch
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


def network(name: str, dtype: torch.dtype, device: str) -> tuple[SegmentLayout, list[Tensor], list[Tensor]]:
    """Every weight by rows, coupled with its BatchNorm or bias and the next weight's columns; random gradients."""
    torch.manual_seed(0)
    with torch.device(device):
        weights = [p.detach().to(dtype) for p in getattr(models, name)().parameters()]
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


def copy_bandwidth() -> float:
    """GB/s, read plus written, of a 1 GiB device copy."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / gpu_ms(lambda: target.copy_(source)) / 1e6


def saliency_gpu(name: str, dtype: str, bandwidth: float) -> list[Row]:
    """One row per contender: ms, GB/s of the bytes that must be read, share of copy bandwidth, speed-up."""
    layout, weights, grads = network(name, DTYPES[dtype], "cuda")
    ours = kernels.saliency.prepare(layout, weights, grads, VARIANTS["taylor"])
    out, moved = torch.empty(layout.num_channels, device="cuda"), ours.plan.bytes_read

    def launch() -> Tensor:
        ours.run(VARIANTS["taylor"], out, accumulate=False)
        return out

    plain, multi = eager(layout, "cuda"), foreach(layout, "cuda")
    contenders: dict[str, Callable[[], Tensor]] = {
        "halp_fx, launch": launch,
        "halp_fx, whole call": lambda: kernels.channel_scores(layout, weights, grads),
        "eager per layer": lambda: plain(weights, grads),
        "torch._foreach_mul": lambda: multi(weights, grads),
    }
    for tensor in (*weights, *grads):
        torch._dynamo.mark_static_address(tensor)  # else CUDA graphs would copy every tensor first
    for mode in ("default", "reduce-overhead"):
        compiled = torch.compile(eager(layout, "cuda"), mode=mode, dynamic=False)
        contenders[f"torch.compile ({mode})"] = lambda compiled=compiled: compiled(weights, grads)
    times: dict[str, float | None] = {}
    for label, call in contenders.items():
        try:
            times[label] = gpu_ms(call) if agrees(call().clone(), layout, weights, grads) else None
        except torch._dynamo.exc.TorchDynamoException as error:
            print(f"{name} {dtype} {label}: {error}")
            times[label] = None
    same = torch.equal(launch().clone(), launch())
    others = [ms for label, ms in times.items() if ms is not None and not label.startswith("halp_fx")]
    rows = []
    for label, ms in times.items():
        if ms is None:
            rows.append([name, dtype, label, "wrong or failed", "", "", ""])
            continue
        speedup = f"{min(others) / ms:.1f}x" if label.startswith("halp_fx") and others else ""
        rate = moved / ms / 1e6
        shares = [f"{moved / 1e6:.0f}", f"{rate:.0f} ({100 * rate / bandwidth:.0f} %)"]
        note = f"{speedup}, two runs {'equal' if same else 'DIFFER'}" if label.endswith("launch") else speedup
        rows.append([name, dtype, label, f"{ms:.4f}", *shares, note])
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


def lookup_rows(device: str, bandwidth: float | None) -> list[Row]:
    rows = []
    for label, dtype in (("fp32", torch.float32), ("fp64", torch.float64)):
        stack, queries = tables(dtype, device)
        times = kernels.lookup(stack, *queries)
        wide = kernels.naive.lookup(tables(torch.float64, device)[0], *queries)
        correct = torch.allclose(times.double(), wide, rtol=1e-5, atol=1e-6)
        same = torch.equal(times, kernels.lookup(stack, *queries))
        timer = gpu_ms if bandwidth else cpu_ms
        ms = timer(lambda stack=stack, queries=queries: kernels.lookup(stack, *queries))
        moved = sum(q.nbytes for q in queries) + times.nbytes
        share = f"{moved / ms / 1e6:.1f}" + (f" ({100 * moved / ms / 1e6 / bandwidth:.0f} %)" if bandwidth else "")
        verdict = f"{ms:.4f}" if correct else "wrong result"
        rows.append([device, label, verdict, f"{moved / 1e6:.0f}", share, "equal" if same else "DIFFER"])
    return rows


def training_rows() -> list[Row]:
    """ResNet-50, batch 128, bf16 autocast, SGD: a step with and without accumulating saliency, interleaved."""
    model = models.resnet50().cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(128, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (128,), device="cuda")
    weights = list(model.parameters())
    layout = network("resnet50", torch.float32, "cpu")[0]
    total = torch.zeros(layout.num_channels, device="cuda")

    def step(score: bool) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        if score:
            kernels.channel_scores(layout, weights, [p.grad for p in weights], out=total)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    for _ in range(10):
        step(True), step(False)
    pairs = [(step(False), step(True)) for _ in range(50)]
    without, with_scores = (statistics.median(column) for column in zip(*pairs, strict=True))
    extra = statistics.median(b - a for a, b in pairs)
    return [[f"{without:.2f}", f"{with_scores:.2f}", f"{extra:.3f}", f"{100 * extra / without:.2f} %"]]


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
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "absent"
    head = [
        ["date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")],
        ["device", kernels_on],
        ["CPU", f"{platform.machine()}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} at the start"],
        ["versions", f"Python {platform.python_version()}, torch {torch.__version__}, Triton {triton_version}"],
    ]
    bandwidth = copy_bandwidth() if has_gpu else None
    head.append(["copy bandwidth of this run", f"{bandwidth:.0f} GB/s" if bandwidth else ABSENT])
    saliency, training = [], [[ABSENT] * 4]
    lookups = [["cuda", dtype, *[ABSENT] * 4] for dtype in ("fp32", "fp64")]
    if bandwidth:
        lookups, training = lookup_rows("cuda", bandwidth), training_rows()
    for name in NETWORKS:
        for dtype in DTYPES:
            if bandwidth:
                saliency += saliency_gpu(name, dtype, bandwidth)
                torch._dynamo.reset()
            else:
                saliency.append([name, dtype, "all", *[ABSENT] * 4])
    lookups += lookup_rows("cpu", None)
    sections = [
        ("# Kernels: what was measured", ["", ""], head),
        (
            "## Saliency on the GPU: one launch per network, `taylor`, rows and columns of every weight",
            ["network", "dtype", "code", "ms", "MB read", "GB/s (of copy)", "against the best other"],
            saliency,
        ),
        (
            f"## Lookup of {QUERIES:,} queries",
            ["device", "dtype", "ms", "MB moved", "GB/s (of copy)", "two runs"],
            lookups,
        ),
        (
            "## ResNet-50 training step, batch 128, bf16 autocast: cost of accumulating saliency",
            ["ms without", "ms with", "difference, ms", "share"],
            training,
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
