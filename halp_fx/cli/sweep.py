"""`halp-fx sweep`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BudgetError
from ..files import replacing
from . import options
from .guarding import OUT_OF_REACH, as_options, guarded, search_goes_on

if TYPE_CHECKING:
    from ..reporting.curve import Curve
    from ..reporting.report import Report
    from .output import Output


@guarded(
    OUT_OF_REACH,
    examples=(
        "sweep resnet18 --budgets 80%,60%,40%",
        "sweep timm:resnet50 --budgets 80%,50% --data photos \\\n      --weights w.pt --out curve",
    ),
)
def sweep(
    model: options.Model,
    budgets: Annotated[
        str, typer.Option("--budgets", "-b", metavar="LIST", help="Budgets with commas between: 80%,60%,40%.")
    ],
    inputs: options.Inputs = None,
    weights: options.Weights = None,
    settings: options.Settings = None,
    data: options.Data = None,
    loss: options.Loss = None,
    batch: options.Batch = 32,
    out: options.Out = Path("sweep"),
    cost: options.Cost = "latency",
    runtime: options.Runtime = "eager",
    table: options.Table = None,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    channels_last: options.ChannelsLast = False,
    ignore: options.Ignore = None,
    branches: options.Branches = None,
    state: options.State = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Prune a model to many budgets, and leave a folder for each, a CSV file, and a curve.

    Layers are timed once. The model is scored once or, with --data, on one way past all budgets. Budgets that no
    network meets are named and left out; exit code 3 if none is met.
    """
    from .costs import cost_of
    from .data import data_for
    from .models import ModelSpec, import_function
    from .output import Output, writable

    output = Output(as_json)
    asked = [b.strip() for b in budgets.split(",") if b.strip()]
    if not asked:
        raise BudgetError(f"--budgets {budgets!r} names none: write them with commas between, 80%,60%,40%")
    writable(out)
    if state is not None:
        writable(state, "--state")
    # One for all: what it has timed serves every budget.
    price = cost_of(cost, runtime, device, table, threads)
    source = ModelSpec(model, inputs or (), settings or (), weights, dtype, device, channels_last)
    dense, example = source.load()
    source.say_untrained(output)
    batches = data_for(data, dense, example, batch, output)
    from ..api import pareto

    search_goes_on(cost, state)
    curve = pareto(
        dense,
        asked,
        example,
        data=batches,
        loss_fn=import_function(loss) if loss else None,
        latency=price,
        ignore=ignore or (),
        branches=branches,
        state=state,
        progress=not quiet,
    )
    for budget, why in curve.refused.items():
        output.say(f"{budget}: {as_options(why)}")
    rows = _leave_points(curve, out, output)
    _draw(curve, out, output)
    output.result({"rows": rows, "out": str(out)})


def _leave_points(curve: Curve, out: Path, output: Output) -> list[dict[str, Any]]:
    """A folder for the network of each budget, and a row for each in `sweep.csv`."""
    from ..reporting.report import report_of
    from .folders import leave, leave_report
    from .output import writable

    rows: list[dict[str, Any]] = []
    for point in curve.points:
        small = curve.network(point)
        report, budget = report_of(small), point.asked
        folder = writable(out / budget.replace("%", ""))
        leave(small, report.plan, folder, output)
        leave_report(report, folder, output)
        rows.append(_row(budget, report))
        output.say(f"{budget}: {report.verdict}")
        _write(out / "sweep.csv", rows)  # After each: an interrupted sweep keeps what it has.
        output.wrote(out / "sweep.csv")
    return rows


def _row(budget: str, report: Report) -> dict[str, Any]:
    return {
        "budget": budget,
        "met": report.met,
        "trusted": report.trusted,
        "unit": report.unit,
        "dense": report.dense,
        "allowed": report.budget,
        "predicted": report.predicted,
        "measured": report.measured,
        "by": _taken(report),
        "of_dense": report.measured / report.dense,
        "parameters": report.parameters[1],
    }


def _taken(report: Report) -> str:
    """What says that the network costs this."""
    return report.conditions.by or ("measured here" if report.timed else "counted")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _draw(curve: Curve, out: Path, output: Output) -> None:
    """The curve, where matplotlib is there."""
    from ..errors import LatencyError

    try:
        for name in ("curve.png", "curve.svg"):
            output.wrote(curve.plot(out / name))
    except LatencyError as error:
        output.say(f"no curve was drawn: {error}\nwrote {out}: sweep.csv, and a folder for each budget")
        return
    output.say(f"wrote {out}: sweep.csv, curve.png, curve.svg, and a folder for each budget")
