"""`halp-fx bench`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from . import options
from .guarding import guarded


@guarded(
    examples=(
        "bench resnet18 resnet34",
        "bench timm:resnet10t --input 32x3x224x224 \\\n      --runtime inductor --training",
    )
)
def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help=options.MODEL_FORMS)],
    inputs: options.Inputs = None,
    settings: options.Settings = None,
    runtime: options.Runtime = "eager",
    threads: options.Threads = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    channels_last: options.ChannelsLast = False,
    training: Annotated[bool, typer.Option("--training", help="Also forward and backward in train mode.")] = False,
    seconds: Annotated[float, typer.Option(min=0.0, metavar="S", help="Seconds spent on each, at least.")] = 1.0,
    as_json: options.Json = False,
) -> None:
    """Time models in turn: median, spread, throughput, memory on a GPU."""
    from .models import ModelSpec
    from .output import Output, told_apart

    output = Output(as_json)
    loaded = [ModelSpec(n, inputs or (), settings or (), None, dtype, device, channels_last).load() for n in models]
    from ..latency.benchmarking import benchmark

    found = benchmark(
        dict(zip(told_apart(models), (model for model, _ in loaded), strict=True)),
        loaded[0][1],
        runtime=runtime,
        threads=threads,
        training=training,
        min_time_s=seconds,
        max_time_s=5 * seconds,
    )
    output.say(found)
    output.result(asdict(found))
