"""The command `halp-fx`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from tabulate import tabulate

from .. import __version__
from ..errors import HalpError
from .tables import profile_command, table_app

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Hardware-aware latency pruning.", pretty_exceptions_enable=False
)
app.add_typer(table_app, name="table")
app.command("profile")(profile_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"halp-fx {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what happens.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")


@app.command()
def demo(
    budget: Annotated[str, typer.Option(help='Latency budget, e.g. "50%" or "3ms".')] = "50%",
    output: Annotated[Path, typer.Option(help="Folder for report.md and plan.json.")] = Path("halp_demo"),
    epochs: Annotated[int, typer.Option(min=2, help="Training epochs; fine-tuning takes half as many.")] = 10,
) -> None:
    """Train a small network on handwritten digits, prune it to a measured budget, fine-tune, report."""
    from .demo import run

    run(budget, output, epochs, typer.echo)


@app.command()
def solve(
    problem: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A width problem in JSON.")],
    method: Annotated[str, typer.Option(help="auto, exact, lagrangian, halp, uniform or greedy.")] = "auto",
    time_limit: Annotated[float, typer.Option(help="Seconds.")] = 10.0,
) -> None:
    """Choose the widths of greatest value within the budgets of a problem file."""
    from ..solver import WidthProblem
    from ..solver import solve as solve_problem

    found = solve_problem(WidthProblem.from_json(problem), method, time_limit)  # type: ignore[arg-type]
    typer.echo(tabulate(list(found.widths.items()), headers=["group", "width"]))
    figures = [
        ["value", found.value],
        ["upper bound", found.upper_bound],
        ["relative gap", found.gap],
        *found.costs.items(),
        ["seconds", found.seconds],
    ]
    typer.echo("\n" + tabulate([[name, f"{value:.6g}"] for name, value in figures], disable_numparse=True))
    typer.echo(f"{found.method}: {found.status}" + (f"; dropped {', '.join(found.dropped)}" if found.dropped else ""))


def main() -> None:
    """Entry point: errors raised on purpose are shown without a traceback."""
    try:
        app()
    except HalpError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
