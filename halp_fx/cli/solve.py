"""`halp-fx solve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .guarding import OUT_OF_REACH, guarded


@guarded(OUT_OF_REACH, examples=("solve problem.json", "solve problem.json --method exact --work-limit 60"))
def solve(
    problem: Annotated[Path, typer.Argument(metavar="FILE", help="A width problem in JSON.")],
    method: Annotated[
        str, typer.Option(metavar="METHOD", help="auto, exact, lagrangian, halp, uniform or greedy.")
    ] = "auto",
    work_limit: Annotated[
        float, typer.Option(metavar="S", help="About CPU seconds; the same on every machine.")
    ] = 10.0,
    as_json: options.Json = False,
) -> None:
    """Choose the widths of greatest value within the budgets of a problem file."""
    from ..fitting import Column, tabled
    from ..solver import solve as solve_problem
    from .folders import read_problem
    from .output import Output

    output = Output(as_json)
    found = solve_problem(read_problem(problem), method, work_limit)  # type: ignore[arg-type]
    figures = {
        "value": found.value,
        "upper bound": found.upper_bound,
        "relative gap": found.gap,
        **found.costs,
        "seconds": found.seconds,
        "work": found.work,
    }
    output.say(
        tabled((Column.name("group"), Column.number("width")), [(g, f"{width}") for g, width in found.widths.items()])
    )
    output.say("\n" + tabled((Column(""), Column.number("")), [(what, f"{v:.6g}") for what, v in figures.items()]))
    output.say(
        f"{found.method}: {found.status}"
        + ("; the limit on work ended the search" if found.limited else "")
        + (f"; dropped {', '.join(found.dropped)}" if found.dropped else "")
    )
    output.result({"widths": dict(found.widths), "dropped": list(found.dropped), "status": found.status, **figures})
