"""`halp-fx table …`: latency tables."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .guarding import goes_on, guarded

if TYPE_CHECKING:
    from ..latency.table import LatencyTable

table_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Times of layers, kept in files: of this device, or of another one.\n\n"
    "For another device: `request` where the model is, `measure` there, then `halp-fx prune --table`.",
)


@table_app.command("build", short_help="Time the layers of a model here.")
@guarded(examples=("table build resnet18", "table build timm:resnet50 --input 8x3x224x224 \\\n      --table t.json"))
def build(
    model: options.Model,
    inputs: options.Inputs = None,
    settings: options.Settings = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    runtime: options.Runtime = "eager",
    threads: options.Threads = None,
    channels_last: options.ChannelsLast = False,
    table: options.Table = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure the layers of a model over all widths it may be pruned to; resumes where an earlier run stopped."""
    from .models import ModelSpec
    from .output import Output, writable_table

    output = Output(as_json)
    if table is not None:
        writable_table(table)
    network, example = ModelSpec(model, inputs or (), settings or (), None, dtype, device, channels_last).load()
    from ..latency.measured import MeasuredLatency
    from ..progress import shown
    from ..pruning.widths import width_options
    from ..trials.trials import channel_groups

    goes_on("what was timed is kept: run the same command again")
    cost = MeasuredLatency(runtime, device, table, threads)
    coupling = channel_groups(network, example)
    with shown(not quiet):
        cost.tables(coupling, {g.name: width_options(g) for g in coupling.prunable})
    total = cost.total(coupling)
    output.say(f"{cost.path or 'in memory'}: {len(cost.measured)} points of {len(cost.measured.entries)} layers")
    output.say(f"sum of the dense network's layers: {total:.4g} ms")
    output.result({"path": str(cost.path), "points": len(cost.measured), "sum_ms": total})


@table_app.command("request", short_help="Write down what to time elsewhere.")
@guarded(examples=("table request resnet18 --out request.json", "table request timm:resnet50 --input 8x3x224x224"))
def request(
    model: options.Model,
    inputs: options.Inputs = None,
    settings: options.Settings = None,
    dtype: options.Dtype = "float32",
    runtime: Annotated[
        str, typer.Option(metavar="RUNTIME", help="What will run the network: eager, cudagraph or onnxruntime.")
    ] = ("eager"),
    channels_last: options.ChannelsLast = False,
    min_keep: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, metavar="SHARE", help="Least share of a layer's channels that can be asked for later."
        ),
    ] = 0.1,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="File to write.")] = Path("request.json"),
    as_json: options.Json = False,
) -> None:
    """Write down what has to be timed of a model, for a device that does not have it: see `table measure`."""
    from .models import ModelSpec
    from .output import Output, writable_file

    output = Output(as_json)
    writable_file(out)
    network, example = ModelSpec(model, inputs or (), settings or (), None, dtype, "cpu", channels_last).load()
    from ..fitting import command
    from ..latency.request import TableRequest, write_request
    from ..pruning.widths import width_options
    from ..trials.trials import channel_groups

    coupling = channel_groups(network, example)
    widths = {g.name: width_options(g, min_keep=min_keep) for g in coupling.prunable}
    made = TableRequest.of(coupling, widths, model, runtime)
    write_request(made, out)
    output.say(f"{out}: {len(made.rows)} layers. Where the network will run:")
    output.say(command(["halp-fx", "table", "measure", out.name]))
    output.result({"path": str(out), "layers": len(made.rows)})


@table_app.command("measure", short_help="Time the layers of a request here.")
@guarded(examples=("table measure request.json --out pi5.json", "table measure request.json --threads 4"))
def measure(
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="What `table request` wrote.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="PATH", help="A file, or a folder, where it is named by device.")
    ] = Path("."),
    device: options.Device = "cpu",
    threads: options.Threads = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Time the layers of a request on this device. The network is not needed; resumes where an earlier run stopped."""
    from .output import Output, writable_table

    output = Output(as_json)
    from ..fitting import command
    from ..latency.elsewhere import UNTIMED, measure_request
    from ..latency.request import read_request
    from ..progress import shown

    asked = read_request(request)
    writable_table(out, "--out")
    goes_on("what was timed is kept: run the same command again")
    with shown(not quiet):
        table, path = measure_request(asked, out, device, threads)
    left = [key for key, note in table.notes.items() if note.startswith(UNTIMED)]
    output.say(f"{path or 'not saved'}: {len(table)} points of {len(table.entries)} layers of {asked.network}")
    if path is not None:
        output.say(
            "To prune by it where the model is, with the --set, --input, --dtype and --channels-last that the request "
            "was made with:"
        )
        output.say(command(["halp-fx", "prune", asked.network, "--table", path.name, "--budget", "60%"]))
    if left:
        output.say(f"{len(left)} layers cannot be timed on their own, and count as nothing: {left[0][:90]}")
    output.result({"path": str(path), "points": len(table), "untimed": left})


@table_app.command("show", short_help="Show what a table holds.")
@guarded(examples=("table show", "table show t.json --rows 5"))
def show(
    table: Annotated[
        Path | None, typer.Argument(metavar="TABLE", help="A table; default: all in the user's cache.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Layers shown.")] = 20,
    as_json: options.Json = False,
) -> None:
    """Show what a table holds."""
    from ..latency.files import read_table
    from ..latency.store import cache_directory
    from .output import Output

    output = Output(as_json)
    found = {path: read_table(path) for path in ([table] if table else sorted(cache_directory().glob("*.json")))}
    for path, one in found.items():
        output.say(f"{path}\n\n{describe(one, rows)}\n")
    if not found:
        output.say(f"no tables in {cache_directory()} yet: `halp-fx table build MODEL` or `prune` makes one")
    output.result({"tables": [_facts(path, one) for path, one in found.items()]})


def _facts(path: Path, table: LatencyTable) -> dict[str, Any]:
    """What `--json` says of a table."""
    return {
        "path": str(path),
        "points": len(table),
        "layers": len(table.entries),
        "fingerprint": asdict(table.fingerprint),
    }


def describe(table: LatencyTable, rows: int = 20) -> str:
    """A table as text, as wide as the terminal: its header, and its most costly layers."""
    import numpy as np

    from ..fitting import Column, tabled
    from ..latency.fingerprint import Fingerprint

    facts = [(fact, f"{getattr(table.fingerprint, fact)}") for fact in Fingerprint.__dataclass_fields__]
    ranked = sorted(table.entries.items(), key=lambda item: -max(t.median_ms for t in item[1].values()))
    body = []
    for key, points in ranked[:rows]:
        times = [t.median_ms for t in points.values()]
        spread = float(np.median([t.spread for t in points.values()]))
        layer = key.replace("(", " (", 1)  # A line breaks there first.
        body.append([f"{len(points)}", *(f"{t:.4g}" for t in (min(times), max(times))), f"{spread:.1%}", layer])
    number = Column.number
    columns = (
        number("points"),
        number("least ms", gives=3),
        number("most ms"),
        number("spread", gives=2),
        Column.words("layer"),
    )
    more = f"\n{len(ranked) - rows} more layers" if len(ranked) > rows else ""
    return f"{tabled((Column(''), Column.words('')), facts)}\n\n{tabled(columns, body)}{more}"


@table_app.command("merge", short_help="Merge tables of one device.")
@guarded(examples=("table merge all.json a.json b.json",))
def merge(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="File to write; if it exists, it is merged, too.")],
    sources: Annotated[list[Path], typer.Argument(metavar="TABLE...", help="Tables of the same device and setting.")],
    as_json: options.Json = False,
) -> None:
    """Merge tables; of points that several have, the most often measured stays."""
    from ..latency.files import read_table, require_same, write_table
    from ..latency.table import LatencyTable
    from .output import Output, writable_file

    output = Output(as_json)
    writable_file(target, "TARGET")
    parts = [read_table(path) for path in [*([target] if target.exists() else []), *sources]]
    merged = LatencyTable(parts[0].fingerprint)
    for path, part in zip([target, *sources][-len(parts) :], parts, strict=True):
        require_same(part, merged.fingerprint, str(path))
        merged.merge(part)
    write_table(merged, target)
    output.say(f"{target}: {len(merged)} points of {len(merged.entries)} layers")
    output.result(_facts(target, merged))


@table_app.command("check", short_help="Is a table sound, and of this device?")
@guarded(examples=("table check t.json", "table check t.json --device cuda", "table check pi5.json --elsewhere"))
def check(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A table.")],
    device: options.Device = "cpu",
    runtime: options.Runtime = "eager",
    threads: options.Threads = None,
    elsewhere: Annotated[bool, typer.Option("--elsewhere", help="It is of another device: is it sound?")] = False,
    as_json: options.Json = False,
) -> None:
    """Whether a file is a sound table, and whether it was measured on this device and setting (exit code 1: no)."""
    import numpy as np
    import torch

    from ..latency.files import read_table, require_same
    from ..latency.fingerprint import Fingerprint
    from ..latency.recheck import slower_when_narrower
    from ..latency.sampler import SPREAD_LIMIT
    from .output import Output

    output = Output(as_json)
    found = read_table(table)
    spread = [t.spread for *_, t in found]
    wide = sum(s > SPREAD_LIMIT for s in spread)
    pairs, slower = slower_when_narrower(found)
    output.say(f"{table}: sound; {len(found)} points of {len(found.entries)} layers")
    if spread:
        output.say(f"spread: median {np.median(spread):.1%}, worst {max(spread):.0%}; {wide} above {SPREAD_LIMIT:.0%}")
    if pairs:
        output.say(f"slower with fewer channels: {slower} of {pairs} adjacent pairs ({slower / pairs:.1%})")
    if elsewhere:
        output.say(f"measured on {found.fingerprint.device}, {found.fingerprint.runtime}")
    else:
        require_same(found, Fingerprint.of(torch.device(device), runtime, threads), str(table))
        output.say("measured on this device and setting")
    output.result(
        {
            **_facts(table, found),
            "median_spread": float(np.median(spread)) if spread else None,
            "worst_spread": max(spread, default=None),
            "slower_when_narrower": [slower, pairs],
        }
    )
