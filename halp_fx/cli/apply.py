"""`halp-fx apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .guarding import guarded


@guarded(examples=("apply resnet18 pruned/plan.json --weights w.pt", "apply nets.py:make plan.json --input 1x1x28x28"))
def apply(
    model: options.Model,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan in JSON, or a folder that `prune` wrote.")],
    inputs: options.Inputs = None,
    weights: options.Weights = None,
    settings: options.Settings = None,
    out: options.Out = Path("applied"),
    as_json: options.Json = False,
) -> None:
    """Cut a model as a plan says.

    The plan may come from another machine, or from another training of the same model."""
    from .folders import leave, read_plan
    from .models import ModelSpec
    from .output import Output, writable

    output = Output(as_json)
    writable(out)
    wanted = read_plan(plan)
    source = ModelSpec(model, inputs or (), settings or (), weights)
    dense, example = source.load()
    source.say_untrained(output)
    from ..api import rewrite
    from ..model.tensors import parameter_count

    small = rewrite(dense, wanted, example)
    leave(small, wanted, out, output)
    before, after = map(parameter_count, (dense, small))
    output.say(f"parameters {before:,} -> {after:,} ({after / before:.1%})\nwrote {out}")
    output.result({"parameters": [before, after], "out": str(out)})
