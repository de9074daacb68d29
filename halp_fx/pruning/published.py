"""HALP and MDP as their authors released them: what a session does otherwise with `solver="halp"` and `"mdp"`.

HALP (Shen et al., arXiv 2110.10811) takes many small steps, each a knapsack over blocks of channels; MDP (Sun et al.,
arXiv 2406.12079) one, over blocks of channels and whole residual branches. Both add up first-order Taylor scores. What
is as released and what is not: docs/solver.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from ..arguments import is_share
from ..coupling.branches import Branch, output_groups
from ..rewriting.compensating import SAMPLES
from ..scoring.batchwise import has_batch_norms
from ..scoring.losses import Loss, loss_of
from ..scoring.saliency import Saliency
from ..scoring.values import WidthValues
from ..solver import CostTable, Method, WidthGroup, WidthProblem
from ..types import ChannelGroup, Coupling, Member, scored_name
from .request import MIN_KEEP, Request
from .widths import branch_choice

STEP_SAMPLES = 256
"""That a network is compensated with which nobody but the next step looks at."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A published method, as a session follows it.

    Attributes:
        method: of the solver.
        steps: with data, where the caller does not say.
        batches: that scores are averaged over, where there are so many.
        stem_stays: whether the first layer keeps its channels.
        splits: whether a group's scores are shared out among its layers, and branches are always choices.
    """

    method: Method
    steps: int
    batches: int
    stem_stays: bool
    splits: bool


RECIPES: Mapping[str, Recipe] = {
    "halp": Recipe("released", steps=30, batches=40, stem_stays=True, splits=False),
    "mdp": Recipe("exact", steps=1, batches=1200, stem_stays=False, splits=True),
}


def as_published(request: Request, model: nn.Module) -> Request:
    """The request with what its method does where the caller leaves it open. With any other method batch norms are
    re-estimated and layers are compensated, if there is data."""
    recipe = RECIPES.get(request.solver)
    recalibrate = recipe is None if request.recalibrate is None else request.recalibrate
    compensate = request.compensate
    if compensate is None:
        compensate = "auto" if recipe is None and request.data is not None and recalibrate else False
    # Where batch norms are re-estimated, values of compensated networks led to no better ones; where there are none,
    # little else keeps a network working that is cut (docs/compensation.md).
    looked_at = request.train_between is not None or request.score_fn is not None
    on_the_way = SAMPLES if looked_at else 0 if has_batch_norms(model) else STEP_SAMPLES
    branches = request.branches
    if branches is None:
        branches = "auto" if recipe is None and _tells_of_branches(request) else False
    request = replace(request, recalibrate=recalibrate, compensate=compensate, on_the_way=on_the_way, branches=branches)
    if recipe is None:
        return request
    importance, loss_fn, loss = request.importance, request.loss_fn, request.loss
    if importance in (None, "auto"):
        importance = "magnitude" if request.data is None else "taylor"
    if importance == "taylor" and (loss_fn or loss):
        loss_fn, loss = None, _in_training(loss_of(loss_fn, loss))
    steps = recipe.steps if request.steps is None and request.data is not None else request.steps
    return replace(
        request, importance=importance, loss_fn=loss_fn, loss=loss, steps=steps, batches=recipe.batches,
        branches=request.branches or recipe.splits,
    )  # fmt: skip


def _tells_of_branches(request: Request) -> bool:
    """Whether what is lost without a branch is measured (`dropping`), and the caller did not ask for wide groups."""
    measured = request.data is not None and request.importance in (None, "auto", "fisher", "batches")
    return measured and (request.min_keep <= MIN_KEEP if is_share(request.min_keep) else request.min_keep == 1)


def _in_training(loss: Loss) -> Loss:
    """The loss of the network as it is trained: scores were taken between a backward pass and the optimizer's step."""

    def trained(model: nn.Module, batch: object) -> object:
        model.train()
        return loss(model, batch)

    return trained


def stem(coupling: Coupling) -> str | None:
    """The group that the first layer makes, unless others make it, too."""
    for group in coupling.groups:
        makers = {m.axis.tensor for m in group.members if m.role == "producer"}
        if makers:
            return group.name if len(makers) == 1 else None
    return None


def stand_ins(request: Request, coupling: Coupling, branches: Sequence[Branch]) -> tuple[ChannelGroup, ...]:
    """Groups that are scored beside those of the network, for what branches are worth."""
    recipe = RECIPES.get(request.solver)
    if recipe is None:
        return output_groups(branches)
    return _parts(coupling, branches) if recipe.splits else ()


def as_taken(request: Request, saliency: Saliency) -> Saliency:
    """What scores say to a method. Where nothing was asked for and there is no data, magnitudes say which channels go,
    and not how many; published methods add up scores, whatever they are."""
    values = saliency.values if request.solver not in RECIPES else {}
    uniform = saliency.uniform or request.blind or request.even
    evenness = saliency.evenness if request.evenness is None else request.evenness
    return replace(saliency, uniform=uniform, evenness=evenness, values=values)


def _parts(coupling: Coupling, branches: Sequence[Branch]) -> tuple[ChannelGroup, ...]:
    """Groups to score that show which layers the scores of a group come from: for each that branches add to, its
    channels in each of these, and in each layer elsewhere; see `part_name`."""
    made = []
    for group in coupling.prunable:
        inside: dict[str, list[Member]] = {}
        for branch in branches:
            own = {m.axis for m in branch.output}
            found = [m for m in group.members if m.axis in own]
            if found and group.name not in branch.groups:
                inside[branch.name] = found
        if not inside:
            continue
        gone = {tensor for branch in branches for tensor in branch.tensors}
        layers: list[list[Member]] = []
        for member in group.members:  # In the order of the forward: what follows a layer belongs to it.
            if member.axis.tensor in gone or member.role not in ("producer", "norm", "bias"):
                continue
            if member.role == "producer":
                layers.append([])
            if layers:
                layers[-1].append(member)
        elsewhere = {layer[0].axis.tensor: layer for layer in layers}
        for owner, members in {**inside, **elsewhere}.items():
            made.append(ChannelGroup(part_name(group.name, owner), group.size, tuple(members)))
    return tuple(made)


def part_name(group: str, owner: str) -> str:
    """The name under which a group's channels in one branch or layer are scored."""
    return scored_name(f"{owner} in {group}")


def published_problem(
    coupling: Coupling,
    saliency: Saliency,
    options: Mapping[str, Sequence[int]],
    tables: Sequence[CostTable],
    budgets: Mapping[str, float],
    unit: str,
    branches: Sequence[Branch],
) -> WidthProblem:
    """What the solver is asked: sums of the highest scores, and branches that are worth what their groups are, and what
    `stand_ins` say that they add to others.

    Args:
        coupling, tables: of the network that is left; `tables` may hold costs of branches dropped from it.
        saliency: of the groups as they stand, with `stand_ins` where branches are worth more than their groups.
        branches: that may be dropped.
    """
    groups, ranked = {}, {}
    for group in coupling.prunable:
        widths = np.asarray(options[group.name])
        scores = saliency.scores.get(group.name, np.zeros(group.size))
        ranked[group.name] = WidthValues.of_scores(scores)
        groups[group.name] = WidthGroup(widths, ranked[group.name].value[widths])
    choices = [choice for b in branches if (choice := branch_choice(b, tables, groups, 0.0))]
    for name, own in list(groups.items()):
        shares = _shares(name, saliency)
        rest = own.value
        for i, choice in enumerate(choices):
            share = shares.get(part_name(name, choice.name))
            if share is None:
                continue
            scores = saliency.scores[name] * share
            added = np.concatenate([[0.0], np.cumsum(scores[ranked[name].order])])[own.widths]
            choices[i] = replace(choice, adds={**choice.adds, name: added.tolist()})
            rest = rest - added
        groups[name] = WidthGroup(own.widths, rest)
    return WidthProblem("network", groups, tuple(tables), dict(budgets), tuple(choices), unit)


def _shares(group: str, saliency: Saliency) -> dict[str, np.ndarray]:
    """By `part_name`, what part of each channel's score comes from there: in proportion to the layers' own scores."""
    start, end = scored_name(""), f" in {group}"
    found = {n: s for n, s in saliency.scores.items() if n.startswith(start) and n.endswith(end)}
    whole = sum(found.values())
    return {name: np.divide(s, whole, out=np.zeros_like(s), where=whole > 0) for name, s in found.items()}
