"""`halp-fx demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .guarding import OUT_OF_REACH, guarded


@guarded(OUT_OF_REACH, examples=("demo", "demo --budget 30% --epochs 20"))
def demo(
    budget: Annotated[
        str, typer.Option("--budget", "-b", metavar="BUDGET", help='Latency budget, e.g. "50%" or "3ms".')
    ] = "50%",
    output: Annotated[
        Path, typer.Option("--out", "--output", "-o", metavar="DIR", help="Folder for the report and the plan.")
    ] = Path("halp_demo"),
    epochs: Annotated[
        int, typer.Option(min=2, metavar="N", help="Training epochs; fine-tuning takes half as many.")
    ] = 10,
) -> None:
    """Train a small network on handwritten digits, prune it to a measured budget, fine-tune, report."""
    from .digits import run
    from .output import writable

    run(budget, writable(output), epochs, typer.echo)
