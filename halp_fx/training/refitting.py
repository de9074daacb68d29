"""refitting: a checkpoint that a trainer loads, and a network of other widths -> one is cut to the other, or an error
says what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import TrainingError
from ..internals import tree_map
from ..model.inputs import normalize_examples
from ..model.naming import Ignored, ignored_names
from ..model.tensors import state_shapes
from ..rewriting.descent import ancestry, descend
from ..rewriting.slicing import cuts_of, sliced
from ..trials.trials import channel_groups
from ..types import Plan
from .checkpoint import apart_from
from .optimizer import Optimizers, check_bound
from .pruner import Pruner
from .shrinking import shrink


def cut_ahead(model: nn.Module, example_inputs: Any, ignore: Ignored | Iterable[Ignored], plan: Plan) -> None:
    """Cut a dense network in place by the plan of a checkpoint, before its weights are loaded.

    Args:
        example_inputs, ignore: as for the `Pruner` that wrote the checkpoint; the former on any device.

    Raises:
        PlanError, RewriteError: the plan is of another network; nothing is changed.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    here = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, example_inputs)
    examples = normalize_examples(model, here)
    line = ancestry(model, examples)
    shrink(model, plan, channel_groups(model, examples, ignored_names(model, ignore)))
    descend(model, line, plan)


def adopt(pruner: Pruner, model: nn.Module, optimizer: Optimizers) -> None:
    """Let a pruner go on with another object of its network, as it stands, and with the optimizer of that."""
    pruner.model, pruner._optimizers = model, check_bound(optimizer, model)
    pruner._trained.model, pruner._trained.optimizers = model, pruner._optimizers
    rows, pruner._gathered = pruner._gathered.rows, pruner._gather(pruner._trained.here, pruner.plan)
    pruner._gathered.rows = rows
    pruner._remember(pruner.plan)


def fit_to(pruner: Pruner, state: dict[str, Any], prefix: str, held: Mapping[str, Any]) -> None:
    """Make saved weights those of the network that a pruner has cut, in place: masked ones are cut as it was.

    Args:
        state: weights by name, those of the network behind `prefix`.
        held: what the pruner's own state was when they were saved; empty if there was none.

    Raises:
        TrainingError: they are of a network with other channels.
    """
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    here = state_shapes(pruner.model)
    apart = apart_from(own, here)
    if not apart:
        return
    if not held or Plan.from_json(held["plan"]) != pruner.plan:
        name = apart[0]
        theirs = tuple(own[name].shape) if name in own else "missing"
        raise TrainingError(
            f"the checkpoint holds another network than the pruned one ({prefix}{name} is {theirs} in it, and "
            f"{here.get(name, 'missing')} here): it was saved before the last step of pruning. Load one that was saved "
            "after it, or none: the network in the trainer is the pruned one. For the wider one, make it anew and load "
            "the file there"
        )
    cuts = cuts_of(pruner._trained.dense, pruner.plan)
    first: dict[int, str] = {}
    for name, tensor in pruner.model.state_dict(keep_vars=True).items():
        kept = cuts.of(first.setdefault(id(tensor), name))  # The second name of a tied weight is not in the cuts.
        if name in apart and kept:
            state[prefix + name] = sliced(own[name], kept)
