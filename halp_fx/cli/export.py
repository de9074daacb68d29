"""`halp-fx export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .guarding import guarded


@guarded(
    examples=(
        "export resnet18 pruned --to resnet18.onnx",
        "export timm:resnet50 small --to small.pt2 \\\n      --set num_classes=10 --dense",
    )
)
def export(
    model: options.Model,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of `prune`, or a checkpoint of it.")],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="What to write: its name ends in .onnx or .pt2.")],
    inputs: options.Inputs = None,
    settings: options.Settings = None,
    dense: Annotated[bool, typer.Option("--dense", help="Time the file beside the dense network's.")] = False,
    tolerance: Annotated[
        float, typer.Option(metavar="SHARE", help="Largest difference of an output, of its largest value.")
    ] = 1e-3,
    as_json: options.Json = False,
) -> None:
    """Write a pruned network as ONNX or .pt2, and check that the file computes the same.

    MODEL makes the dense network again; its weights come from the checkpoint.
    """
    from .folders import checkpoint_in, come_back
    from .models import ModelSpec
    from .output import Output, writable_file

    output = Output(as_json)
    checkpoint_in(folder)
    writable_file(to, "--to")
    network, example = ModelSpec(model, inputs or (), settings or ()).load()
    small = come_back(folder, network, example)
    from ..exporting import export as exported

    made = exported(small, to, example, dense=network if dense else None, tolerance=tolerance)
    output.wrote(made.path)
    output.say(made)
    output.result({**asdict(made), "path": str(made.path)})
