"""Resliced: code of a pruned network that follows the weights of the dense one."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from ..model.copying import hollowed
from ..model.members import named_tensors
from ..rewriting.slicing import shrink
from ..types import Coupling, Plan
from .unlifting import Unlifted

State = tuple[int, int]
"""Identity and version of a tensor."""


class Resliced:
    """A function of Dynamo's inputs. Weights that have changed since the last call (`load_state_dict`, a step of an
    optimizer), or that are other tensors, are sliced again, by the same plan.

    The dense weights are not held: only what they looked like.
    """

    def __init__(self, small: fx.GraphModule, found: Unlifted, plan: Plan, coupling: Coupling, code: Any) -> None:
        self._small, self._plan, self._coupling, self._code = small, plan, coupling, code
        self._names, self._positions, self._others = found.names, found.positions, found.others
        self._seen = list(states_of(found).values())
        self._template = hollowed(found.network)

    def __call__(self, *inputs: Any) -> Any:
        given = [inputs[i] for i in self._positions]
        now = list(map(_state, given))
        if now != self._seen:
            self._slice(given, [name for name, a, b in zip(self._names, now, self._seen, strict=True) if a != b])
            self._seen = now
        return self._code(*(inputs[i] for i in self._others))

    def _slice(self, given: list[torch.Tensor], changed: list[str]) -> None:
        """Copy what is kept of these tensors into the pruned network's."""
        with torch.no_grad():
            for name, tensor in zip(self._names, given, strict=True):
                _put(self._template, name, tensor)
            fresh = dict(named_tensors(shrink(self._template, self._plan, self._coupling)))
            for name, tensor in named_tensors(self._small):
                if name in changed:
                    tensor.copy_(fresh[name])
            for name, tensor in zip(self._names, given, strict=True):
                _put(self._template, name, tensor.detach().to("meta"))


def states_of(found: Unlifted) -> dict[str, State]:
    """Which tensors a graph was given, and what was done to them so far, by name."""
    return {name: _state(_tensor(found.network, name)) for name in found.names}


def _state(tensor: torch.Tensor) -> State:
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def _tensor(model: nn.Module, name: str) -> torch.Tensor:
    path, _, last = name.rpartition(".")
    found: torch.Tensor = getattr(model.get_submodule(path), last)
    return found


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, last = name.rpartition(".")
    owner = model.get_submodule(path)
    if last in owner._parameters:
        owner._parameters[last] = nn.Parameter(tensor.detach(), requires_grad=False)
    else:
        owner._buffers[last] = tensor.detach()
