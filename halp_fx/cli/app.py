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
    context_settings={"help_option_names": ["--help", "-h"]},
    no_args_is_help=True,
    rich_markup_mode=None,  # Words that are not boxed read in 60 columns and in log files.
    pretty_exceptions_enable=False,
    help="Make a trained vision network smaller until it meets a latency budget on this machine, measured.\n\n"
    "`halp-fx demo` shows it; `halp-fx COMMAND --help` has examples.",
)
# In the list of commands each has one line, also in 60 columns.
_COMMANDS = {
    demo: "Try it: train, prune and fine-tune on digits.",
    profile: "Where the time goes, and what can be reached.",
    explain: "Which channels go together, and what stays.",
    prune: "Prune a model to a budget.",
    sweep: "Prune a model to many budgets.",
    compare: "Time pruned networks beside the dense one.",
    report: "Show a report again.",
    export: "Write a pruned network as ONNX or .pt2.",
    apply: "Cut a model as a plan says.",
    bench: "Time models in turn.",
    solve: "Solve a width problem that is in a file.",
    info: "Versions, devices, runtimes, latency tables.",
}
for command, words in _COMMANDS.items():
    app.command(command.__name__, short_help=words)(command)
app.add_typer(table_app, name="table", short_help="Latency tables, also of another device.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"halp-fx {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say more: what is done, and tracebacks of errors.")
    ] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")


def main() -> None:
    """Entry point."""
    app()
