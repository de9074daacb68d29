"""`halp-fx profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .guarding import guarded, search_goes_on


@guarded(
    examples=(
        "profile resnet18",
        "profile timm:resnet50 --input 8x3x224x224 \\\n      --runtime inductor --plots plots",
        "profile resnet18 --cost macs --json > profile.json",
    )
)
def profile(
    model: options.Model,
    inputs: options.Inputs = None,
    weights: options.Weights = None,
    settings: options.Settings = None,
    cost: options.Cost = "latency",
    runtime: options.Runtime = "eager",
    table: options.Table = None,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    channels_last: options.ChannelsLast = False,
    ignore: options.Ignore = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for pictures (needs matplotlib).")] = None,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Layers and groups shown.")] = 15,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show where a network's time goes, which widths pay and which budgets can be reached."""
    from .costs import cost_of
    from .models import ModelSpec
    from .output import Output, writable

    output = Output(as_json)
    if plots is not None:
        writable(plots, "--plots")
    price = cost_of(cost, runtime, device, table, threads)
    dense, example = ModelSpec(model, inputs or (), settings or (), weights, dtype, device, channels_last).load()
    from ..model.naming import ignored_names
    from ..pruning.goals import cost_called
    from ..reporting.profiling import profile as profiled

    if cost == "latency":
        search_goes_on(cost)
    found = profiled(
        dense,
        example,
        cost=cost_called(price),
        ignore=ignored_names(dense, ignore or ()),
        progress=not quiet,
    )
    output.say(found.summary(rows))
    if plots is not None:
        from ..reporting.plots import save_plots

        for path in save_plots(found, plots):
            output.say(output.wrote(path))
    low, high = found.reachable
    output.result(
        {
            "unit": found.unit,
            "dense": found.dense,
            "sum_of_layers": found.total,
            "reachable": [low, high],
            "fixed_share": found.fixed_share,
            "layers": [{"name": x.name, "op": x.op, "cost": x.cost, "share": x.share} for x in found.layers],
            "groups": [
                {"name": g.name, "size": g.size, "cost": g.cost, "widths_that_pay": list(g.paying), "frozen": g.frozen}
                for g in found.groups
            ],
        }
    )
