"""shrink: a model, its optimizer and its averages -> the same objects, smaller; all of them, or none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from torch import nn

from ..model.inputs import Examples
from ..rewriting.applying import rewrite
from ..rewriting.inplace import Undo, narrow
from ..types import Coupling, Plan
from .averages import narrow_averages
from .optimizer import Heir, Optimizers, check_bound, hand_over


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
