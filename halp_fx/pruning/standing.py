"""A network as it stands -> the same, scored: with its own coupling, and what its groups and branches are worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from ..coupling.residual import find_branches
from ..scoring.saliency import Saliency, score
from ..trials.trials import channel_groups
from ..types import Coupling
from .networks import Network
from .published import as_taken, stand_ins
from .request import Request
from .yardstick import Yardstick

Scorer = Callable[[nn.Module, Coupling], Saliency] | None
"""What a network as it stands is worth, given it and its coupling; None: score it as was asked for."""


def scored(network: Network, request: Request, yardstick: Yardstick, scorer: Scorer = None) -> Network:
    """The network with its coupling and its saliency."""
    scored = now = standing(network, request, yardstick)
    _, _, branches = yardstick.left(network.plan)
    if branches:
        here = find_branches(now).named(b.name for b in branches)
        scored = replace(now, groups=(*now.groups, *stand_ins(request, now, here)))
    if scorer is not None:
        saliency = scorer(network.model, scored)
    else:
        saliency = score(
            *(network.model, scored, request.data, request.loss_fn, request.importance),
            loss=request.loss,
            batches=request.batches,
        )
    return replace(network, coupling=now, saliency=as_taken(request, saliency))


def standing(network: Network, request: Request, yardstick: Yardstick) -> Coupling:
    """The coupling of a network that was cut. Groups are frozen that the original coupling does not let shrink
    (ignored by the caller), or that a dropped branch held together and are other groups now."""
    left, _, _ = yardstick.left(network.plan)
    if not network.plan:
        return left
    now = channel_groups(network.model, request.examples, like=left)
    widths = left.widths(network.plan)
    known = {(g.name, widths[g.name]) for g in left.prunable}
    groups = tuple(
        g if g.frozen or (g.name, g.size) in known else replace(g, frozen="frozen in the original network")
        for g in now.groups
    )
    return replace(now, groups=groups)
