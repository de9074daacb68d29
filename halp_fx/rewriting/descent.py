"""A rewritten network remembers where it comes from, and says so when it is given the weights of the dense one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..errors import DenseWeightsError
from ..model.inputs import described
from ..model.tensors import signature
from ..types import Origin, Plan


def ancestry(model: nn.Module, example_inputs: Any = None) -> Origin:
    """Where a network comes from that is about to be pruned: from itself, if it never was. `made` is what it is now.

    Args:
        model: the dense network, or one that was pruned before.
        example_inputs: as for `trace`.
    """
    before, now, inputs = origin_of(model), signature(model), described(example_inputs, values=True)
    if before is None:
        return Origin(now, (), now, inputs)
    return replace(before, made=now, inputs=inputs or before.inputs)


def descend(small: nn.Module, before: Origin, plan: Plan) -> None:
    """Write down in `small.halp_origin` that `plan` made it of the network with the ancestry `before`."""
    if origin_of(small) is None:  # Otherwise it was copied with the hook, or had its steps written down.
        small.register_load_state_dict_pre_hook(_explain)
    small.halp_origin = replace(before, plans=(*before.plans, plan), made=signature(small))  # type: ignore[assignment]


def origin_of(model: nn.Module) -> Origin | None:
    """Where a network comes from; None if nothing was pruned. Its own: wrappers pass on what their network has."""
    origin = vars(model).get("halp_origin")
    return origin if isinstance(origin, Origin) else None


def _explain(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Before `load_state_dict`, whose own message would be a page of shapes, and which takes what fits.

    Raises:
        DenseWeightsError: whatever does not fit is as it was before pruning.
    """
    origin = origin_of(module)
    if origin is None:
        return
    before, now = origin.dense.shapes, origin.made.shapes
    given = {n: tuple(t.shape) for n in now if isinstance(t := state.get(prefix + n), torch.Tensor)}
    wrong = [name for name, shape in given.items() if shape != now[name]]
    if wrong and all(given[name] == before.get(name) for name in wrong):
        raise DenseWeightsError(
            f"these are weights of the network before it was pruned: {wrong[0]} has shape {given[wrong[0]]} there, and "
            f"{now[wrong[0]]} here. To restore a pruned network, save it with halp_fx.save(small, path) and use "
            "halp_fx.load(path, dense_or_factory). To prune these weights the same way, load them into the dense "
            "network and use halp_fx.rewrite(dense, small.halp.plan)"
        )
