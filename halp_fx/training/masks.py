"""masks: channels that are gone for the forward, in a network that keeps its size until the end of training.

Hard masks hold weights, gradients and the optimizer's state at zero in every slot of a removed channel. Soft masks
(straight-through, as in SMCP) hold at zero only what reads the channel, and only while the network runs: for the
optimizer's step the hidden weights come back, and learn from gradients that pass the mask. They may return.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from ..model.preserving import named_tensors
from ..rewriting.slicing import index_of, removed_slots
from ..types import Axis, Coupling, Plan

DECAY = 2e-4
"""Of hidden weights, times the learning rate, beside the optimizer's own weight decay (SMCP's published setting)."""


@dataclass(slots=True, eq=False)
class Masks:
    """The masked slots of a model, held by hooks around the optimizer's steps.

    Attributes:
        optimizer: whose steps are watched.
        soft: straight-through.
        places: parameters, the dimension, and the slots along it.
        hidden: of soft masks, the weights behind each place.
    """

    optimizer: Optimizer
    soft: bool
    places: list[tuple[nn.Parameter, int, torch.Tensor]] = field(default_factory=list)
    hidden: list[torch.Tensor] = field(default_factory=list)
    _hooks: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch()

    def watch(self) -> None:
        """Hook into the optimizer's steps, behind the hooks that are there."""
        self.close()
        self._hooks = [
            self.optimizer.register_step_pre_hook(lambda *_: self._before()),
            self.optimizer.register_step_post_hook(lambda *_: self._after()),
        ]

    def set(self, model: nn.Module, coupling: Coupling, plan: Plan) -> None:
        """Mask what a plan removes, and nothing else; soft masks give the others' weights back first."""
        self.lift()
        tensors = dict(named_tensors(model))
        slots = _read_slots(coupling, plan) if self.soft else removed_slots(coupling, plan)
        self.places = [
            (tensor, axis.dim, index_of(found, tensor))
            for axis, found in slots.items()
            if isinstance(tensor := tensors[axis.tensor], nn.Parameter)
        ]
        if not self.soft:
            self.still()
        self._after(decay=False)

    def still(self) -> None:
        """Zero the gradients behind hard masks."""
        if not self.soft:
            for parameter, dim, slots in self.places:
                if parameter.grad is not None:
                    parameter.grad.index_fill_(dim, slots, 0)

    @torch.no_grad()
    def lift(self) -> None:
        """Put hidden weights back, until `_after` hides them again."""
        # In reverse: where two places of one tensor meet, the first that was hidden has the numbers.
        for (parameter, dim, slots), hidden in reversed(list(zip(self.places, self.hidden, strict=False))):
            parameter.index_copy_(dim, slots, hidden)
        self.hidden = []

    @contextmanager
    def lifted(self) -> Iterator[None]:
        self.lift()
        try:
            yield
        finally:
            self._after(decay=False)

    def close(self) -> None:
        """Watch no longer; what is masked stays zero."""
        for hook in self._hooks:
            hook.remove()

    def _before(self) -> None:
        if self.soft:
            self.lift()
        else:
            self.still()

    @torch.no_grad()
    def _after(self, decay: bool = True) -> None:
        rates = {id(p): group["lr"] for group in self.optimizer.param_groups for p in group["params"]}
        self.hidden = []
        for parameter, dim, slots in self.places:
            if self.soft:
                behind = parameter.index_select(dim, slots)
                self.hidden.append(behind * (1 - DECAY * rates.get(id(parameter), 0.0)) if decay else behind)
            else:
                for value in self.optimizer.state.get(parameter, {}).values():
                    if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                        value.index_fill_(dim, slots, 0)
            parameter.index_fill_(dim, slots, 0)


def _read_slots(coupling: Coupling, plan: Plan) -> dict[Axis, np.ndarray]:
    """The slots of removed channels where they are read; where nothing reads a group's channels by a weight, those
    that make them."""
    found: dict[Axis, list[np.ndarray]] = {}
    for group in coupling.groups:
        if group.name not in plan:
            continue
        gone = np.setdiff1d(np.arange(group.size), plan[group.name])
        readers = [m for m in group.members if m.role == "consumer"] or list(group.members)
        for member in readers if len(gone) else ():
            found.setdefault(member.axis, []).append(member.slots.take(gone, axis=0).reshape(-1))
    return {axis: np.sort(np.concatenate(parts)) for axis, parts in found.items()}
