"""rebind: an optimizer of a network -> the same optimizer of the network that was made of it.

An optimizer keeps tensors of a parameter's shape (momentum, moments, sums of squares) or of that shape with some
dimensions of length one, and numbers (steps). The former are cut as the parameter was, the latter stay; second moments
that are kept as two factors are cut as what they stand for (`factored`). Parameter groups keep their options and their
order, so schedulers, which hold the groups, go on.

Several optimizers may share a network (Muon for matrices, AdamW for the rest), and one may hold another, whose state is
its own (SAM, Lookahead): all of them follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from ..arguments import a_kind
from ..errors import TrainingError
from ..model.checks import is_plain
from ..model.naming import by_group
from ..rewriting.inplace import Undo
from ..rewriting.slicing import cuts_of, sliced
from ..trials.trials import coupling_of
from ..types import Coupling, Cuts, Plan
from .averages import averages_checked, narrow_averages
from .factored import cut_factors, form_of

Optimizers = Optimizer | Sequence[Optimizer]
"""One, or several that share the parameters of a network."""


def rebind(
    optimizer: Optimizers,
    before: nn.Module,
    after: nn.Module,
    plan: Plan | Mapping[str, Any],
    example_inputs: Any = None,
    *,
    coupling: Coupling | None = None,
    averages: Iterable[nn.Module] = (),
) -> Optimizers:
    """Give an optimizer of `before` the parameters of `after`, with its state cut as the parameters were.

    The next step of the optimizer is the one that it would take for `after` had it known no other network. The object
    and its parameter groups stay, so schedulers and loss scalers go on. Gradients are not handed over.

    Args:
        optimizer: any whose state tensors have the shape of their parameter, or are factors as of Adafactor; or
            several. The parameters of `before` that are not trained need not be in it.
        before, after: a network, and what `rewrite` or `prune` made of it.
        plan: that led from the one to the other (`after.halp.plan`).
        example_inputs: as for `trace`.
        coupling: of `before`, if at hand; otherwise found afresh.
        averages: moving averages of `before`, with the averaged network in their attribute `module`
            (`torch.optim.swa_utils.AveragedModel`, timm's `ModelEmaV3`): those are cut in place.

    Returns:
        What was passed as `optimizer`.

    Raises:
        TrainingError: the optimizer has a parameter that `before` has not, or keeps something that cannot be cut; an
            average is not one of `before`; `after` is not what the plan makes of `before`. Nothing was changed.
    """
    optimizers = check_bound(optimizer, before)
    averages = averages_checked(averages, before)
    coupling = coupling_of(before, example_inputs, coupling)
    plan = by_group(plan, coupling)
    cuts = cuts_of(coupling, plan)
    heirs = _heirs(before, after, cuts)
    with ExitStack() as undone:
        for own in optimizers:
            undone.callback(hand_over(own, heirs))
        undone.callback(narrow_averages(averages, plan, coupling))
        undone.pop_all()
    return optimizer


@dataclass(frozen=True, slots=True, eq=False)
class Heir:
    """What becomes of one parameter.

    Attributes:
        name: its first qualified name.
        shape: before.
        new: the parameter that takes its place, which may be itself; None if it is gone.
        kept: by dimension, the slots that stay.
    """

    name: str
    shape: torch.Size
    new: nn.Parameter | None
    kept: Mapping[int, np.ndarray] = field(default_factory=dict)


Heirs = Mapping[int, Heir]
"""By the id of the parameter that was."""


def check_bound(optimizers: Optimizers, model: nn.Module) -> tuple[Optimizer, ...]:
    """See that optimizers can follow a model.

    Returns:
        All of them, and those that they hold.

    Raises:
        TrainingError: one is none, or its state cannot be cut, or has a parameter that the model has not.
    """
    found: list[Optimizer] = []
    left = [optimizers] if not isinstance(optimizers, Sequence) else list(optimizers)
    for optimizer in left:
        _check_bound(optimizer, model)
        if not any(optimizer is known for known in found):
            found.append(optimizer)
            left += held(optimizer)
    return tuple(found)


def held(optimizer: Optimizer) -> list[Optimizer]:
    """Optimizers that another one holds, and steps (`base_optimizer`)."""
    return [value for value in vars(optimizer).values() if isinstance(value, Optimizer)]


def innermost(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """Those that change parameters: what is around them may not run hooks."""
    return [optimizer for optimizer in optimizers if not held(optimizer)]


def check_kind(optimizer: Optimizer) -> None:
    """Raises TrainingError if an optimizer is none that can follow a network."""
    if not isinstance(optimizer, Optimizer):
        raise TrainingError(
            f"optimizer={type(optimizer).__name__} is no torch.optim.Optimizer: pass the one that a wrapper is around"
        )
    if isinstance(optimizer, LBFGS) or type(optimizer).__name__ == "ZeroRedundancyOptimizer":
        raise TrainingError(
            f"{type(optimizer).__name__} keeps its state for all parameters at once, or spread over processes: prune "
            "first, then build it of the smaller network's parameters"
        )
    if getattr(optimizer, "is_second_order", False):  # As timm marks them.
        raise TrainingError(
            f"{type(optimizer).__name__} takes second derivatives, and notes them on the parameters: prune first, then "
            "build it of the smaller network's parameters"
        )


def _check_bound(optimizer: Optimizer, model: nn.Module) -> None:
    check_kind(optimizer)
    own = {id(p): name for name, p in model.named_parameters()}
    for number, group in enumerate(optimizer.param_groups):
        names = group.get("param_names", ())
        for place, parameter in enumerate(group["params"]):
            if id(parameter) not in own:
                told = f" ({names[place]!r})" if place < len(names) else ""
                raise TrainingError(
                    f"the optimizer's parameter {place} of group {number}{told}, of shape {tuple(parameter.shape)}, is "
                    "not one of the model's: it was built of another network, or before this one was pruned. Build it "
                    "of model.parameters(), and another of what else is trained"
                )
            _check_state(optimizer, own[id(parameter)], parameter, group)


def hand_over(optimizer: Optimizer, heirs: Heirs) -> Undo:
    """Put the heirs of its parameters into an optimizer that was checked (`check_bound`); returns a function that puts
    the old ones back."""
    states: dict[torch.Tensor, Any] = {}
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for parameter, state in optimizer.state.items():
        heir = heirs.get(id(parameter))
        if heir is None:
            states[parameter] = state
        elif heir.new is not None:
            states[heir.new] = _inherited(heir, state, groups.get(id(parameter), {}))
    before = [(dict(group), list(group["params"])) for group in optimizer.param_groups]
    known = dict(optimizer.state)

    def undo() -> None:
        for group, (options, parameters) in zip(optimizer.param_groups, before, strict=True):
            group.update(options)
            group["params"][:] = parameters
        _replace(optimizer.state, known)

    for group in optimizer.param_groups:
        stay = [i for i, p in enumerate(group["params"]) if _heir(heirs, p) is not None]
        if "param_names" in group:
            group["param_names"] = [group["param_names"][i] for i in stay]
        group["params"][:] = [_heir(heirs, group["params"][i]) for i in stay]
    _replace(optimizer.state, states)
    return undo


def _heir(heirs: Heirs, parameter: nn.Parameter) -> nn.Parameter | None:
    heir = heirs.get(id(parameter))
    return parameter if heir is None else heir.new


def _replace(table: Any, items: Mapping[Any, Any]) -> None:
    # The object stays: it makes the state of a parameter that has none yet.
    table.clear()
    table.update(items)


def _inherited(heir: Heir, state: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's state, for its heir."""
    form = form_of(state, heir.shape, group) if heir.kept else None
    if form is None:
        return {key: _cut(heir, value) for key, value in state.items()}
    rest = {key: _cut(heir, value) for key, value in state.items() if key not in (form.r, form.c)}
    return rest | cut_factors(form, state, heir.shape, heir.kept, group)


def _cut(heir: Heir, value: Any) -> Any:
    """One entry of a parameter's state, for its heir."""
    if not (heir.kept and isinstance(value, torch.Tensor) and _follows(value, heir.shape)):
        return value
    return sliced(value, {d: slots for d, slots in heir.kept.items() if value.shape[d] == heir.shape[d]})


def _follows(value: torch.Tensor, shape: torch.Size) -> bool:
    """Whether a tensor has a parameter's shape, or is of length one along some of its dimensions."""
    return value.ndim == len(shape) and all(n in (m, 1) for n, m in zip(value.shape, shape, strict=True))


def _check_state(optimizer: Optimizer, name: str, parameter: torch.Tensor, group: Mapping[str, Any]) -> None:
    """Raises TrainingError if what an optimizer keeps of a parameter is neither a number nor follows its shape."""
    state = optimizer.state.get(parameter, {})
    form = form_of(state, parameter.shape, group)
    for key, value in state.items():
        if form is not None and key in (form.r, form.c):
            continue
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        if isinstance(value, torch.Tensor):
            if value.numel() <= 1 or (_follows(value, parameter.shape) and is_plain(value)):
                continue
        elif not any(isinstance(part, torch.Tensor) for part in parts):
            continue
        what = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else a_kind(value)
        if isinstance(value, torch.Tensor) and not is_plain(value):
            what = f"{a_kind(value)} of {what}"
        raise TrainingError(
            f"{type(optimizer).__name__} keeps {key!r} ({what}) of {name} (shape {tuple(parameter.shape)}): how that "
            "is to be cut is not known. Prune first, then build the optimizer; or, to go on from a checkpoint, load "
            "the pruner's state before the optimizer's"
        )


def _heirs(before: nn.Module, after: nn.Module, cuts: Cuts) -> dict[int, Heir]:
    """The parameters of a network and those of the network that was made of it, by their names.

    Raises:
        TrainingError: names or shapes are not what the plan asks for.
    """
    new = dict(after.named_parameters())
    heirs = {}
    for name, parameter in before.named_parameters():
        kept = cuts.of(name)
        shape = tuple(len(kept[d]) if d in kept else n for d, n in enumerate(parameter.shape))
        if name in cuts.gone:
            heirs[id(parameter)] = Heir(name, parameter.shape, None)
            continue
        found = tuple(new[name].shape) if name in new else None
        if found != shape:
            raise TrainingError(
                f"{name} should have shape {shape} in the smaller network, by the plan, and "
                f"{'is missing' if found is None else f'has {found}'}: the plan is not the one that led there"
            )
        heirs[id(parameter)] = Heir(name, parameter.shape, new[name], kept)
    return heirs
