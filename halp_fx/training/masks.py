"""masks: channels that are gone for the forward, in a network that keeps its size until the end of training.

Hard masks hold weights, gradients and the optimizer's state at zero in every slot of a removed channel. Soft masks
(straight-through, as in SMCP) hold at zero only what reads the channel, and only while the network runs: for the
optimizer's step the hidden weights come back, and learn from gradients that pass the mask. They may return.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import TrainingError
from ..model.members import named_tensors
from ..rewriting.slicing import index_of, removed_slots
from ..scoring.evaluated import evaluated
from ..types import Axis, Coupling, Plan
from .optimizer import innermost

DECAY = 2e-4
"""Of hidden weights, times the learning rate, beside the optimizer's own weight decay (SMCP's published setting)."""


@dataclass(slots=True, eq=False)
class Masks:
    """The masked slots of a model, held by hooks around the optimizer's steps.

    Attributes:
        optimizers: whose steps are watched, and whose states are masked.
        averages: averaged networks, which are masked as the model is.
        soft: straight-through.
        places: parameters, the dimension, and the slots along it.
        hidden: of soft masks, the weights behind each place.
    """

    optimizers: Sequence[Optimizer]
    averages: Sequence[nn.Module]
    soft: bool
    places: list[tuple[nn.Parameter, int, torch.Tensor]] = field(default_factory=list)
    hidden: list[torch.Tensor] = field(default_factory=list)
    _hooks: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch()

    def watch(self) -> None:
        """Hook into the optimizers' steps, behind the hooks that are there."""
        self.close()
        for own in innermost(self.optimizers):
            self._hooks += [own.register_step_pre_hook(self._before), own.register_step_post_hook(self._after)]

    def set(self, model: nn.Module, coupling: Coupling, plan: Plan) -> None:
        """Mask what a plan removes, and nothing else; soft masks give the others' weights back first."""
        tensors = dict(named_tensors(model))
        slots = _slots(coupling, plan, self.soft)
        places = [
            (tensor, axis.dim, index_of(found, tensor))
            for axis, found in slots.items()
            if isinstance(tensor := tensors[axis.tensor], nn.Parameter)
        ]
        self.lift()
        self.places = places
        self.still()
        self._hide()
        for average in self.averages:
            own = dict(named_tensors(average))
            for axis, found in slots.items():
                if isinstance(tensor := own[axis.tensor], nn.Parameter):
                    tensor.data.index_fill_(axis.dim, index_of(found, tensor), 0)

    def check(self, model: nn.Module) -> None:
        """Raises TrainingError if something has written to what is masked: cut, it would be another network than the
        one that was trained."""
        for parameter, dim, slots in self.places:
            if parameter.index_select(dim, slots).any():
                name = next((n for n, p in model.named_parameters() if p is parameter), "a parameter")
                raise TrainingError(
                    f"{name} is not zero where its channels are masked: weights of another time were loaded (the best "
                    "checkpoint of before the last step of pruning, an average that Pruner was not told of). Load "
                    "those of after it, or pass averages=[...]"
                )

    def still(self) -> None:
        """Zero the gradients behind hard masks."""
        if not self.soft:
            for parameter, dim, slots in self.places:
                if parameter.grad is not None:
                    parameter.grad.index_fill_(dim, slots, 0)

    @torch.no_grad()
    def lift(self) -> None:
        """Put hidden weights back, until `_hide` hides them again."""
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
            self._hide()

    def close(self) -> None:
        """Watch no longer; what is masked stays zero."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.soft:
            self.still()
            return
        if given_closure(args, kwargs):
            raise TrainingError(
                "regrow=True needs the forward before the optimizer's step, where masks are on: it was given a closure"
            )
        self.lift()

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        self._hide({id(p): group.get("lr", 0.0) for group in optimizer.param_groups for p in group["params"]})

    @torch.no_grad()
    def _hide(self, rates: Mapping[int, float] = MappingProxyType({})) -> None:
        """Zero what is masked.

        Args:
            rates: of learning in the step that was taken, by the id of the parameter.
        """
        self.hidden = []
        for parameter, dim, slots in self.places:
            if self.soft:
                behind = parameter.index_select(dim, slots)
                self.hidden.append(behind * (1 - DECAY * rates.get(id(parameter), 0.0)))
            else:
                states = [own.state[parameter] for own in self.optimizers if parameter in own.state]
                for value in (value for state in states for value in state.values()):
                    if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                        value.index_fill_(dim, slots, 0)
            parameter.index_fill_(dim, slots, 0)


def given_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an optimizer's `step` was given a function that runs the forward inside of it."""
    return callable(kwargs.get("closure", args[1] if len(args) > 1 else None))


def check_maskable(model: nn.Module, coupling: Coupling, soft: bool) -> None:
    """See that weights that are computed of what is masked stay numbers: a norm of zeros that something is divided by
    leaves none.

    Raises:
        TrainingError: they do not.
    """
    plan = Plan({g.name: tuple(range(1, g.size)) for g in coupling.prunable if g.size > 1})
    tensors = {name: tensor.detach() for name, tensor in named_tensors(model)}
    touched = set()
    for axis, found in _slots(coupling, plan, soft).items():
        tensors[axis.tensor] = tensors[axis.tensor].index_fill(axis.dim, index_of(found, tensors[axis.tensor]), 0)
        touched.add(axis.tensor)
    computed = [weight for weight in coupling.computed if touched & weight.sources]
    values = evaluated(coupling.traced.graph, (weight.node for weight in computed), tensors)
    for weight in computed:
        value = values[weight.node]
        if isinstance(value, torch.Tensor) and not torch.isfinite(value).all():
            raise TrainingError(
                f"the weight that the forward computes of {' and '.join(sorted(weight.sources))} is not finite where "
                "channels are zero (a weight norm divides by the norm of each), so it cannot be masked: use "
                "mode='shrink'" + ("" if soft else ", or regrow=True, which masks only what reads a channel")
            )


def _slots(coupling: Coupling, plan: Plan, soft: bool) -> dict[Axis, np.ndarray]:
    """By axis, what is masked for a plan."""
    return _read_slots(coupling, plan) if soft else removed_slots(coupling, plan)


def _read_slots(coupling: Coupling, plan: Plan) -> dict[Axis, np.ndarray]:
    """The slots of removed channels where they are read; where nothing reads a group's channels by a weight, those
    that make them."""
    found: dict[Axis, list[np.ndarray]] = {}
    for group in coupling.groups:
        if group.name not in plan:
            continue
        gone = np.setdiff1d(np.arange(group.size), plan[group.name])
        readers = [m for m in group.members if m.role == "consumer" or m.also_read] or list(group.members)
        for member in readers if len(gone) else ():
            found.setdefault(member.axis, []).append(member.slots.take(gone, axis=0).reshape(-1))
    return {axis: np.sort(np.concatenate(parts)) for axis, parts in found.items()}
