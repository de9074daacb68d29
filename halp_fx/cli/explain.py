"""`halp-fx explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .guarding import guarded


@guarded(
    examples=(
        "explain resnet18",
        "explain resnet18 --between conv1 layer1.1.conv2",
        "explain timm:resnet50 --json > groups.json",
    )
)
def explain(
    model: options.Model,
    inputs: options.Inputs = None,
    between: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Only why these two layers or tensors are coupled.")
    ] = None,
    ignore: options.Ignore = None,
    settings: options.Settings = None,
    weights: options.Weights = None,
    as_json: options.Json = False,
) -> None:
    """Say which channels go together and why, what is frozen and why. Nothing is measured or changed."""
    from .models import ModelSpec
    from .output import Output

    output = Output(as_json)
    dense, example = ModelSpec(model, inputs or (), settings or (), weights).load()
    from ..model.naming import ignored_names
    from ..reporting.explaining import describe, why
    from ..trials.trials import channel_groups

    coupling = channel_groups(dense, example, ignored_names(dense, ignore or ()))
    output.say(describe(coupling) if between is None else why(coupling.dependencies, *between))
    output.result(
        {
            "groups": [
                {"name": g.name, "size": g.size, "frozen": g.frozen, "axes": [str(m.axis) for m in g.members]}
                for g in coupling.groups
            ],
            "notes": list(coupling.notes),
        }
    )
