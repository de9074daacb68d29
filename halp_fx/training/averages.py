"""Moving averages of a network that is pruned: the averaged network is cut as the network is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import torch
from torch import nn

from ..arguments import a_kind
from ..errors import TrainingError
from ..model.tensors import state_shapes
from ..rewriting.inplace import Undo, narrow
from ..types import Coupling, Plan


def averages_checked(averages: Iterable[nn.Module], model: nn.Module) -> list[nn.Module]:
    """The averaged networks, each once.

    Raises:
        TrainingError: one is not of this model.
    """
    if isinstance(averages, nn.Module) or not isinstance(averages, Iterable):
        raise TrainingError(f"averages is {a_kind(averages)}: pass a list of moving averages")
    found: list[nn.Module] = []
    own = {id(tensor) for tensor in _tensors(model)}
    wanted = state_shapes(model)
    for average in averages:
        inner = getattr(average, "module", None)
        if not isinstance(inner, nn.Module):
            raise TrainingError(
                f"{type(average).__name__} is no moving average: its attribute `module` should be the averaged network"
            )
        shapes = state_shapes(inner)
        if shapes != wanted:
            off = next(name for name in (*wanted, *shapes) if shapes.get(name) != wanted.get(name))
            raise TrainingError(
                f"the network in {type(average).__name__} is another than the model: {off} is "
                f"{shapes.get(off, 'missing')} there and {wanted.get(off, 'missing')} here"
            )
        if any(id(tensor) in own for tensor in _tensors(inner)):
            raise TrainingError(
                f"the network in {type(average).__name__} is the model, or shares its tensors, and would be cut twice: "
                "an average keeps a copy. What is around the model needs not be passed"
            )
        if not any(inner is known for known in found):
            found.append(inner)
    return found


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [t for t in model.state_dict(keep_vars=True).values() if isinstance(t, torch.Tensor)]


def narrow_averages(networks: Sequence[nn.Module], plan: Plan, coupling: Coupling) -> Undo:
    """Cut averaged networks in place, all or none; returns a function that puts them back."""
    with ExitStack() as undone:
        for network in networks:
            undone.callback(narrow(network, plan, coupling=coupling)[1])
        return undone.pop_all().close
