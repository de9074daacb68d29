"""shrink: a model, its optimizer and its averages -> the same objects, smaller; all of them, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn
from torch.optim import Optimizer

from ..errors import ModelError, TrainingError
from ..model.checks import check_finite
from ..model.inputs import Examples
from ..rewriting.applying import rewrite
from ..rewriting.inplace import Undo, narrow
from ..trials.trials import channel_groups
from ..types import Coupling, Plan
from .averages import narrow_averages
from .optimizer import Heir, Optimizers, check_bound, hand_over
from .wrapping import Rewrapped

Made = TypeVar("Made")


@dataclass(slots=True, eq=False)
class Trained:
    """A network in training, and all that is cut along with it.

    Attributes:
        model: in place.
        examples: that it is coupled by.
        dense: its coupling before anything was cut.
        optimizers, averages: as for `shrink`.
        here: its coupling now.
        wrapped: what is made anew after a cut.
    """

    model: nn.Module
    examples: Examples
    dense: Coupling
    optimizers: tuple[Optimizer, ...]
    averages: Sequence[nn.Module]
    here: Coupling = field(init=False)
    wrapped: list[Rewrapped] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.here = self.dense

    def cut(self, plan: Plan, then: Callable[[Coupling], Made]) -> Made:
        """Take out what a plan of the network as it stands removes.

        Args:
            then: what else is made of the smaller network, by its coupling; if it fails, too, nothing is cut.
        """
        with ExitStack() as undone:
            undone.callback(shrink(self.model, plan, self.here, None, self.optimizers, self.averages))
            here = channel_groups(self.model, self.examples, like=self.dense)
            inside = [own.anew() for own in self.wrapped]
            made = then(here)
            undone.pop_all()
        self.here = here
        for own, wrapper in zip(self.wrapped, inside, strict=True):
            own.take(wrapper)
        return made


def check_trained(model: nn.Module) -> None:
    """Raises TrainingError if weights are not finite: nothing that is measured of them would mean anything."""
    try:
        check_finite(model)
    except ModelError as error:
        raise TrainingError(
            f"{error}. Training has diverged: go on from a checkpoint of before, with a lower learning rate"
        ) from error


def shrink(
    model: nn.Module,
    plan: Plan,
    coupling: Coupling,
    examples: Examples | None = None,
    optimizer: Optimizers = (),
    averages: Sequence[nn.Module] = (),
) -> Undo:
    """Take from a model what a plan removes, in place: modules, parameters and buffers stay the objects that they are.

    Args:
        coupling: of this model.
        examples: a copy is rewritten and verified on them first; None for a plan that has been tried.
        optimizer: of this model, or several.
        averages: averaged networks (`averages_checked`).

    Returns:
        A function that puts everything back.

    Raises:
        PlanError, RewriteError: as `rewrite`; everything is as it was.
        TrainingError: the optimizer cannot follow; likewise.
    """
    optimizers = check_bound(optimizer, model)
    if examples is not None:
        rewrite(model, plan, examples, coupling=coupling)
    shapes = {name: (p, p.shape) for name, p in model.named_parameters()}
    with ExitStack() as undone:
        cuts, undo = narrow(model, plan, coupling=coupling)
        undone.callback(undo)
        heirs = {
            id(p): Heir(name, shape, None if name in cuts.gone else p, cuts.of(name))
            for name, (p, shape) in shapes.items()
        }
        for own in optimizers:
            undone.callback(hand_over(own, heirs))
        undone.callback(narrow_averages(averages, plan, coupling))
        return undone.pop_all().close
