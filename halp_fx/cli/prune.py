"""`halp-fx prune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from . import options
from .guarding import MISSED, OUT_OF_REACH, as_options, guarded, search_goes_on

if TYPE_CHECKING:
    from torch import nn

    from ..reporting.report import Report
    from .output import Output

_RESULT = ("met", "unit", "dense", "budget", "predicted", "measured", "parameters", "notes")
"""Of the report, in what --json prints."""


@guarded(
    OUT_OF_REACH,
    MISSED,
    examples=(
        "prune resnet18 --budget 60%",
        "prune timm:resnet50 --budget 4ms --weights w.pt \\\n"
        "      --set num_classes=10 --data photos/train --out small",
        "prune nets.py:make --input 1x1x28x28 --cost macs \\\n      --budget 50%",
    ),
)
def prune(
    model: options.Model,
    budget: Annotated[
        list[str],
        typer.Option(
            "--budget",
            "-b",
            metavar="BUDGET",
            help="60% of dense, or 4ms. Several: -b latency=4ms -b params=50%.",
        ),
    ],
    inputs: options.Inputs = None,
    weights: options.Weights = None,
    settings: options.Settings = None,
    data: options.Data = None,
    loss: options.Loss = None,
    batch: options.Batch = 32,
    out: options.Out = Path("pruned"),
    cost: options.Cost = "latency",
    runtime: options.Runtime = "eager",
    table: options.Table = None,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    channels_last: options.ChannelsLast = False,
    ignore: options.Ignore = None,
    round_to: options.RoundTo = None,
    min_keep: options.MinKeep = 0.1,
    branches: options.Branches = None,
    steps: options.Steps = None,
    tolerance: options.Tolerance = 0.02,
    compensate: options.Compensate = None,
    heal: options.Heal = False,
    effort: options.Effort = "normal",
    state: options.State = None,
    exports: Annotated[
        list[str] | None,
        typer.Option("--export", metavar="KIND", help="Also write model.onnx or model.pt2: onnx, pt2."),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Prune a model to a budget that is met when measured here.

    Leaves a folder: model.safetensors (`halp_fx.load` reads it), plan.json (which channels stay), report.html,
    report.json, and what --export asks for. With --data, channels go where your images lose least by it;
    without, all layers become about equally narrow. Then fine-tune: this command does not train, but for --heal.
    """
    from .costs import budget_of, cost_of
    from .data import data_for
    from .folders import in_options, kinds_of, next_steps
    from .models import ModelSpec, import_function
    from .output import Output, writable

    output = Output(as_json)
    writable(out)
    if state is not None:
        writable(state, "--state")
    price = cost_of(cost, runtime, device, table, threads)
    kinds = kinds_of(exports or ())
    asked = budget_of(budget)
    source = ModelSpec(model, inputs or (), settings or (), weights, dtype, device, channels_last)
    dense, example = source.load()
    source.say_untrained(output)
    batches = data_for(data, dense, example, batch, output)

    import halp_fx

    search_goes_on(cost, state)
    small = halp_fx.prune(
        dense,
        asked,
        example,
        data=batches,
        loss_fn=import_function(loss) if loss else None,
        compensate=compensate,
        heal=heal,
        latency=price,
        ignore=ignore or (),
        round_to=round_to,
        min_keep=min_keep,
        branches=branches,
        steps=steps,
        tolerance=tolerance,
        effort=cast(Any, effort),
        state=state,
        progress=not quiet,
    )
    report = halp_fx.reporting.report.report_of(small)
    wrote = _leave(small, report, out, output)
    for kind in kinds:
        made = halp_fx.export(small, out / f"model.{kind}", example)
        wrote.append(output.wrote(made.path).name)
        output.say(made)
    shown = in_options(report)
    output.say(f"{as_options(str(shown))}\n\nwrote {out}: {', '.join(sorted(wrote))}\n")
    output.say(next_steps(source, out))
    output.result({name: getattr(shown, name) for name in _RESULT} | {"out": str(out)})
    if not report.met:
        raise typer.Exit(MISSED)


def _leave(small: nn.Module, report: Report, out: Path, output: Output) -> list[str]:
    """The network, its plan and its report in a folder; returns the names of the files."""
    from .folders import CHECKPOINT, PAGE, PLAN, REPORT, leave, leave_report

    leave(small, report.plan, out, output)
    leave_report(report, out, output)
    return [PLAN, CHECKPOINT, REPORT, PAGE]
