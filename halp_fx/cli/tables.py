"""`halp-fx table …` and `halp-fx profile`, to be mounted by the command line's main application."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tabulate import tabulate
from torch import nn

from ..latency.errors import LatencyError
from ..latency.files import read_table, require_same, write_table
from ..latency.fingerprint import Fingerprint
from ..latency.measured import MeasuredLatency
from ..latency.recheck import slower_when_narrower
from ..latency.sampler import SPREAD_LIMIT
from ..latency.store import cache_directory
from ..latency.table import LatencyTable
from ..pruning.widths import width_options
from ..trials.trials import channel_groups

table_app = typer.Typer(no_args_is_help=True, help="Latency tables: build, show, merge, check.")

ModelArgument = Annotated[
    str, typer.Argument(help='A torchvision model ("resnet50") or "package.module:function" that returns a model.')
]
ShapeOption = Annotated[str, typer.Option("--shape", help="Input shape.")]
DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
DeviceOption = Annotated[str, typer.Option(help='"cpu", "cuda", "cuda:1", …')]
RuntimeOption = Annotated[str, typer.Option(help="eager, inductor or cudagraph.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
LastOption = Annotated[bool, typer.Option("--channels-last", help="Channels-last memory format.")]
TableOption = Annotated[Path | None, typer.Option(help="File or folder; default: the user's cache.")]


def load_model(name: str, shape: str, dtype: str, device: str, channels_last: bool) -> tuple[nn.Module, torch.Tensor]:
    """A model by name, in eval mode, and a random input for it.

    Raises:
        LatencyError: no such model, or a malformed shape or dtype.
    """
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise LatencyError(f"dtype {dtype!r} is not known: float32, bfloat16 or float16")
    try:
        sizes = [int(part) for part in shape.replace("x", ",").split(",")]
    except ValueError as error:
        raise LatencyError(f"shape {shape!r} is malformed: write e.g. 1x3x224x224") from error
    model = _make_model(name).eval().to(device, kind)
    x = torch.rand(sizes, device=device).to(kind)
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return model, x


def _make_model(name: str) -> nn.Module:
    try:
        if ":" in name:
            module, _, function = name.partition(":")
            model = getattr(importlib.import_module(module), function)()
        else:
            from torchvision.models import get_model

            model = get_model(name, weights=None)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise LatencyError(
            f"model {name!r} cannot be made: {error}. Name a torchvision model, or package.module:function"
        ) from error
    if not isinstance(model, nn.Module):
        raise LatencyError(f"{name!r} returned {type(model).__name__}, not an nn.Module")
    return model


@table_app.command("build")
def build(
    model: ModelArgument,
    shape: ShapeOption = "1x3x224x224",
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    runtime: RuntimeOption = "eager",
    threads: ThreadsOption = None,
    channels_last: LastOption = False,
    table: TableOption = None,
) -> None:
    """Measure the layers of a model over all widths it may be pruned to; resumes where an earlier run stopped."""
    network, x = load_model(model, shape, dtype, device, channels_last)
    cost = MeasuredLatency(runtime, device, table, threads)
    coupling = channel_groups(network, x)
    cost.tables(coupling, {g.name: width_options(g) for g in coupling.prunable})
    typer.echo(f"{cost.path or 'in memory'}: {len(cost.measured)} points of {len(cost.measured.entries)} layers")
    typer.echo(f"sum of the dense network's layers: {cost.total(coupling):.4g} ms")


@table_app.command("show")
def show(
    table: Annotated[Path | None, typer.Argument(help="A table; default: all in the user's cache.")] = None,
    rows: Annotated[int, typer.Option(help="Layers shown.")] = 20,
) -> None:
    """Show what a table holds."""
    for path in [table] if table else sorted(cache_directory().glob("*.json")):
        typer.echo(f"{path}\n\n{describe(read_table(path), rows)}\n")


def describe(table: LatencyTable, rows: int = 20) -> str:
    """A table as text: its header, and its most costly layers."""
    names = Fingerprint.__dataclass_fields__
    head = tabulate([(name, getattr(table.fingerprint, name)) for name in names], tablefmt="plain")
    ranked = sorted(table.entries.items(), key=lambda item: -max(t.median_ms for t in item[1].values()))
    body = []
    for key, points in ranked[:rows]:
        times = [t.median_ms for t in points.values()]
        spread = float(np.median([t.spread for t in points.values()]))
        body.append([key[:90], len(points), min(times), max(times), f"{spread:.1%}"])
    headers = ["layer", "points", "least ms", "most ms", "spread"]
    more = f"\n{len(ranked) - rows} more layers" if len(ranked) > rows else ""
    return f"{head}\n\n{tabulate(body, headers=headers, floatfmt='.4g')}{more}"


@table_app.command("merge")
def merge(
    target: Annotated[Path, typer.Argument(help="File to write; if it exists, it is merged, too.")],
    sources: Annotated[list[Path], typer.Argument(help="Tables of the same device and setting.")],
) -> None:
    """Merge tables; of points that several have, the most often measured stays."""
    parts = [read_table(path) for path in [*([target] if target.exists() else []), *sources]]
    merged = LatencyTable(parts[0].fingerprint)
    for path, part in zip([target, *sources][-len(parts) :], parts, strict=True):
        require_same(part, merged.fingerprint, str(path))
        merged.merge(part)
    write_table(merged, target)
    typer.echo(f"{target}: {len(merged)} points of {len(merged.entries)} layers")


@table_app.command("check")
def check(
    table: Annotated[Path, typer.Argument(help="A table.")],
    device: DeviceOption = "cpu",
    runtime: RuntimeOption = "eager",
    threads: ThreadsOption = None,
) -> None:
    """Whether a file is a sound table, and whether it was measured on this device and setting (exit status 1: no)."""
    found = read_table(table)
    spread = [t.spread for *_, t in found]
    wide = sum(s > SPREAD_LIMIT for s in spread)
    pairs, slower = slower_when_narrower(found)
    typer.echo(f"{table}: sound; {len(found)} points of {len(found.entries)} layers")
    if spread:
        typer.echo(f"spread: median {np.median(spread):.1%}, worst {max(spread):.0%}; {wide} above {SPREAD_LIMIT:.0%}")
    if pairs:
        typer.echo(f"slower with fewer channels: {slower} of {pairs} adjacent pairs ({slower / pairs:.1%})")
    require_same(found, Fingerprint.of(torch.device(device), runtime, threads), str(table))
    typer.echo("measured on this device and setting")


def profile_command(
    model: ModelArgument,
    shape: ShapeOption = "1x3x224x224",
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    runtime: RuntimeOption = "eager",
    threads: ThreadsOption = None,
    channels_last: LastOption = False,
    table: TableOption = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for PNG files (needs matplotlib).")] = None,
    rows: Annotated[int, typer.Option(help="Layers and groups shown.")] = 15,
) -> None:
    """Show where a network's time goes, which widths pay and which budgets can be reached."""
    from ..reporting.profiling import profile

    network, x = load_model(model, shape, dtype, device, channels_last)
    found = profile(network, x, cost=MeasuredLatency(runtime, device, table, threads))
    typer.echo(found.summary(rows))
    if plots is not None:
        from ..reporting.plots import save_plots

        for path in save_plots(found, plots):
            typer.echo(path)
