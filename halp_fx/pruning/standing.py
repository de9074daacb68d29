"""A network as it stands -> the same, scored: with its own coupling, and what its groups and branches are worth."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

from torch import nn

from ..coupling.branches import Branch
from ..coupling.residual import find_branches
from ..errors import SaliencyError
from ..model.preserving import unsynchronised
from ..rewriting.applying import rewrite
from ..scoring.batchwise import in_turn
from ..scoring.callables import Importance
from ..scoring.divergence import Apart, Reference, shared_out
from ..scoring.gates import BATCH_NORMS
from ..scoring.recalibrating import norms_of, renew
from ..scoring.saliency import Saliency
from ..scoring.saliency import scored as score
from ..trials.trials import channel_groups
from ..types import Coupling, Plan
from .networks import Network
from .published import as_taken, stand_ins
from .request import Request
from .yardstick import Yardstick

logger = logging.getLogger("halp_fx")

BRANCH_SAMPLES = 64
"""That outputs without a branch are compared on, and again that batch norms are re-estimated on."""

Scorer = Callable[[nn.Module, Coupling], Saliency] | None
"""What a network as it stands is worth, given it and its coupling; None: score it as was asked for."""


def scored(network: Network, request: Request, yardstick: Yardstick, scorer: Scorer = None, turn: int = 0) -> Network:
    """The network with its coupling and its saliency. Steps that remember what earlier ones saw look at a share of the
    data, by their number (`turn`)."""
    scored = now = standing(network, request, yardstick)
    _, _, branches = yardstick.left(network.plan)
    if branches:
        # Of a stream of one channel, which may as well be spread over many, a branch is not found again: it stays.
        here = find_branches(now).among(b.name for b in branches)
        scored = replace(now, groups=(*now.groups, *stand_ins(request, now, here)))
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
        saliency = replace(saliency, dropping=_dropping(network, request, now, here, saliency.whole))
    if network.saliency is not None:
        saliency = saliency.recalling(network.saliency, network.step)
    return replace(network, coupling=now, saliency=as_taken(request, saliency))


def tries_branches(network: Network) -> bool:
    """Whether what is lost without a branch is measured now."""
    return network.saliency is None or bool(network.step.dropped)


def reads_statistics(network: Network, request: Request, yardstick: Yardstick) -> bool:
    """Whether a scoring, or what is made of its network later, reads the statistics that norms keep: values through the
    statistics of batches do not."""
    compensated = request.compensate and request.on_the_way > 0
    if not network.remembered or compensated or (tries_branches(network) and yardstick.left(network.plan)[2]):
        return True
    return not all(isinstance(norm, BATCH_NORMS) for norm in norms_of(network.model))


def value_of(request: Request) -> Importance | None:
    """What a caller who left it open is given: values through the statistics of batches, where batch norms are
    re-estimated. After fine-tuning to 10 and 20 % of the MACs they were ahead of sets of gates, at 50 % level
    (docs/benchmarks_accuracy.md)."""
    left_open = request.importance in (None, "auto") and request.data is not None
    return "batches" if left_open and request.recalibrate else request.importance


def _dropping(
    network: Network, request: Request, coupling: Coupling, branches: Sequence[Branch], whole: float
) -> dict[str, float]:
    """What is lost without each branch, of what all groups are worth (`whole`): measured in the dense network, and
    again where others went, for two that do the same are each worth little beside the other. The larger counts: what a
    narrow branch still does says little about what it will do when it has learned to be narrow."""
    known = {} if network.saliency is None else network.saliency.dropping
    if tries_branches(network) and whole > 0:
        found = _losses_without(network, request, coupling, branches)
        known = {n: max(loss / whole, known.get(n, 0.0)) for n, loss in found.items()}
    return {b.name: known[b.name] for b in branches if b.name in known}


def _losses_without(
    network: Network, request: Request, coupling: Coupling, branches: Sequence[Branch]
) -> dict[str, float]:
    """What a network loses without each of its branches: how much further it is from itself, per sample
    (`Apart.loss`). Empty where what it puts out does not compare."""
    assert request.data is not None
    compared, settled = shared_out(islice(request.data, request.batches), BRANCH_SAMPLES)

    def apart(*dropped: str) -> Apart:
        plan = Plan({}, dropped)
        other = rewrite(network.model, plan, request.examples, coupling=coupling, check=False)
        if request.recalibrate:
            with unsynchronised(other):
                renew(other, settled, loss=request.loss)
        return reference.apart(other)

    try:
        reference = Reference.of(network.model, compared, request.loss)
        whole = apart()
        told = reference.told
        found = {b.name: apart(b.name).loss(whole, told) for b in branches}
    except SaliencyError as error:
        logger.info("branches are valued by the channels that they add: %s", error)
        return {}
    return {name: loss for name, loss in found.items() if math.isfinite(loss)}


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
