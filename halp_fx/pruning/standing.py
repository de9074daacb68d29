"""A network as it stands -> the same, scored: with its own coupling, and what its groups and branches are worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from ..coupling.residual import find_branches
from ..scoring.batchwise import in_turn
from ..scoring.callables import Importance
from ..scoring.saliency import Saliency
from ..scoring.saliency import scored as score
from ..trials.trials import channel_groups
from ..types import Coupling
from .dropping import by_their_own, shares_lost
from .networks import Network
from .published import as_taken, stand_ins
from .request import Request
from .yardstick import Yardstick

Scorer = Callable[[nn.Module, Coupling], Saliency] | None
"""What a network as it stands is worth, given it and its coupling; None: score it as was asked for."""


def scored(network: Network, request: Request, yardstick: Yardstick, scorer: Scorer = None, turn: int = 0) -> Network:
    """The network with its coupling and its saliency, or marked as spent. Steps that remember what earlier ones saw
    look at a share of the data, by their number (`turn`)."""
    scored = now = standing(network, request, yardstick)
    _, _, branches = yardstick.left(network.plan)
    if branches:
        # Of a stream of one channel, which may as well be spread over many, a branch is not found again: it stays.
        here = find_branches(now).among(b.name for b in branches)
        scored = replace(now, groups=(*now.groups, *stand_ins(request, now, here)))
    if not scored.prunable:
        return replace(network, coupling=now, spent=True)
    if scorer is not None:
        saliency = scorer(network.model, scored)
    else:
        data, batches = request.data, request.batches
        if data is not None and network.remembered:
            data, batches = in_turn(data, batches, network.remembered, turn)
        saliency = score(
            *(network.model, scored, data, request.loss_fn, value_of(request)), loss=request.loss, batches=batches
        )
    if branches and saliency.kind == "fisher" and scorer is None:
        saliency = replace(saliency, dropping=shares_lost(network, request, now, here, saliency.whole))
    if network.saliency is not None:
        saliency = saliency.recalling(network.saliency, network.step)
    return replace(network, coupling=now, saliency=as_taken(request, saliency))


def reads_statistics(network: Network, request: Request) -> bool:
    """Whether a scoring, or what is made of its network later, reads the statistics that norms keep: values through the
    statistics of batches do not."""
    compensated = request.compensate and request.on_the_way > 0
    return not network.remembered or compensated or not by_their_own(network.model)


def value_of(request: Request) -> Importance | None:
    """What a caller who left it open is given: values through the statistics of batches, where batch norms are
    re-estimated. After fine-tuning to 10 and 20 % of the MACs they were ahead of sets of gates, at 50 % level
    (docs/benchmarks_accuracy.md)."""
    left_open = request.importance in (None, "auto") and request.data is not None
    return "batches" if left_open and request.recalibrate else request.importance


def standing(network: Network, request: Request, yardstick: Yardstick) -> Coupling:
    """The coupling of a network that was cut, found now unless known. Groups are frozen that the original coupling
    does not let shrink (ignored by the caller), or that a dropped branch held together and are other groups now."""
    left, _, _ = yardstick.left(network.plan)
    if not network.plan:
        return left
    now = network.coupling or channel_groups(network.model, request.examples, like=left)
    widths = left.widths(network.plan)
    known = {(g.name, widths[g.name]) for g in left.prunable}
    groups = tuple(
        g if g.frozen or (g.name, g.size) in known else replace(g, frozen="frozen in the original network")
        for g in now.groups
    )
    return replace(now, groups=groups)
