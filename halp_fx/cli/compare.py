"""`halp-fx compare`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .guarding import guarded


@guarded(examples=("compare resnet18 pruned", "compare resnet18 sweep/60 sweep/40 --runtime inductor"))
def compare(
    model: options.Model,
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that `prune` or `apply` wrote.")],
    inputs: options.Inputs = None,
    weights: options.Weights = None,
    settings: options.Settings = None,
    runtime: options.Runtime = "eager",
    threads: options.Threads = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    channels_last: options.ChannelsLast = False,
    seconds: Annotated[float, typer.Option(min=0.0, metavar="S", help="Seconds spent on each, at least.")] = 1.0,
    as_json: options.Json = False,
) -> None:
    """Time pruned networks and their dense one in turn, on this machine, in any runtime."""
    from .folders import checkpoint_in, come_back
    from .models import ModelSpec
    from .output import Output, told_apart

    output = Output(as_json)
    for folder in folders:
        checkpoint_in(folder)
    dense, example = ModelSpec(model, inputs or (), settings or (), weights, dtype, device, channels_last).load()
    names = told_apart(["dense", *map(str, folders)])
    networks = dict(zip(names, [dense, *(come_back(folder, dense, example) for folder in folders)], strict=True))
    from ..latency.benchmarking import benchmark

    found = benchmark(networks, example, runtime=runtime, threads=threads, min_time_s=seconds, max_time_s=5 * seconds)
    output.say(found)
    output.result(asdict(found))
