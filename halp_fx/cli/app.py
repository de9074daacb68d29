"""The command `halp-fx`. Commands import what they need when they run, so that `--help` is there at once."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from ..version import __version__
from .apply import apply
from .bench import bench
from .compare import compare
from .demo import demo
from .explain import explain
from .export import export
from .info import info
from .profile import profile
from .prune import prune
from .report import report
from .solve import solve
from .sweep import sweep
from .tables import table_app

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # Words that are not boxed read in 60 columns and in log files.
    pretty_exceptions_enable=False,
    help="Hardware-aware latency pruning: make a network meet a budget that is measured on this machine. "
    "`halp-fx COMMAND --help` has examples.",
)
for command in (demo, prune, sweep, apply, export, report, compare, bench, profile, explain, solve, info):
    app.command(command.__name__)(command)
app.add_typer(table_app, name="table")


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


def main() -> None:
    """Entry point."""
    app()
