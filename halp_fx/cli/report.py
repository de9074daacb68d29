"""`halp-fx report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .guarding import as_options, guarded


@guarded(examples=("report pruned", "report pruned/report.json --html page.html", "report pruned --plots pictures"))
def report(
    place: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A folder of `prune`, its report.json, or a network of `halp_fx.save`."),
    ],
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write it as a page, too.")] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for pictures (needs matplotlib).")] = None,
    as_json: options.Json = False,
) -> None:
    """Show a report again: as text, as a page, as pictures."""
    import json

    from .folders import in_options, read_report
    from .output import Output, writable, writable_file

    output = Output(as_json)
    found = read_report(place)
    shown = in_options(found)
    if html is not None:
        writable_file(html, "--html")
    if plots is not None:
        writable(plots, "--plots")
    output.say(as_options(shown.summary()))
    if html is not None:
        output.say(output.wrote(shown.to_html(html)))
    if plots is not None:
        from ..reporting.plots import save_report_plots

        for path in save_report_plots(found, plots):
            output.say(output.wrote(path))
    output.result(json.loads(found.to_json()))
