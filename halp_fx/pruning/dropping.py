"""A network as it stands, and its branches -> what it loses without each of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..coupling.branches import Branch
from ..coupling.upstream import unaffected
from ..errors import HalpError, SaliencyError, words_of
from ..model.preserving import unsynchronised
from ..rewriting.applying import rewrite
from ..rewriting.dropping import dropped
from ..scoring.batchwise import pieces
from ..scoring.divergence import Apart, Reference, shared_out
from ..scoring.recalibrating import BATCH_NORMS, norms_of, renew
from ..scoring.sharing import Form, apart_from
from ..types import Coupling, Plan
from .networks import Network
from .request import Request

logger = logging.getLogger("halp_fx")

SAMPLES = 64
"""That outputs without a branch are compared on."""


def shares_lost(
    network: Network, request: Request, coupling: Coupling, branches: Sequence[Branch], whole: float
) -> dict[str, float]:
    """What is lost without each branch, of what all groups are worth (`whole`): measured in the dense network, and
    again where others went, for two that do the same are each worth little beside the other. The larger counts: what a
    narrow branch still does says little about what it will do when it has learned to be narrow."""
    known = {} if network.saliency is None else network.saliency.dropping
    if whole > 0 and (network.saliency is None or network.step.dropped):
        found = _losses_without(network, request, coupling, branches)
        known = {n: max(loss / whole, known.get(n, 0.0)) for n, loss in found.items()}
    return {b.name: known[b.name] for b in branches if b.name in known}


def _losses_without(
    network: Network, request: Request, coupling: Coupling, branches: Sequence[Branch]
) -> dict[str, float]:
    """How much further a network is from itself without each of its branches, per sample (`Apart.loss`). Empty where
    what it puts out does not compare.

    Batch norms will be re-estimated, so what counts is the network with its own statistics: those of the batches that
    are compared, as where channels are valued (`batchwise`). Where batches are too small for that, or a forward fails
    so, others are found on as many samples beside.
    """
    own = _pieces(network.model, request)
    try:
        if own:
            try:
                return _losses_on(own, (), network, request, coupling, branches)
            except (HalpError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # Batches of one size alone, as where channels were valued.
                logger.info("branches are not valued through the statistics of batches: %s", words_of(error))
        return _losses_on(*_whole_batches(network.model, request), network, request, coupling, branches)
    except SaliencyError as error:
        logger.info("branches are valued by the channels that they add: %s", error)
        return {}


def _losses_on(
    compared: Sequence[Any],
    settled: Sequence[Any],
    network: Network,
    request: Request,
    coupling: Coupling,
    branches: Sequence[Branch],
) -> dict[str, float]:
    """The same on these batches, with batch norms re-estimated on others, if there are any."""
    by_batch = bool(request.recalibrate) and not settled
    if request.loss is None and not settled:
        try:
            return _losses(request, *_side_by_side(compared, by_batch, network, request, coupling, branches))
        except Exception as error:  # Where networks cannot share anything, each is made and run by itself.
            logger.info("networks without a branch are run one by one: %s", words_of(error))

    def apart(*dropped: str) -> Apart:
        plan = Plan({}, dropped)
        other = rewrite(network.model, plan, request.examples, coupling=coupling, check=False)
        if settled:
            with unsynchronised(other):
                renew(other, settled, loss=request.loss)
        return reference.apart(other)

    reference = Reference.of(network.model, compared, request.loss, statistics=by_batch)
    return _losses(request, apart(), reference.told, {b.name: apart(b.name) for b in branches})


def _losses(request: Request, whole: Apart, told: float, without: Mapping[str, Apart]) -> dict[str, float]:
    held_against = math.inf if request.sooner else told
    found = {name: apart.loss(whole, held_against) for name, apart in without.items()}
    return {name: loss for name, loss in found.items() if math.isfinite(loss)}


def _side_by_side(
    compared: Sequence[Any],
    by_batch: bool,
    network: Network,
    request: Request,
    coupling: Coupling,
    branches: Sequence[Branch],
) -> tuple[Apart, float, dict[str, Apart]]:
    """How far the network is from itself, what it tells, and how far it is without each branch. All are one copy that
    lacks a branch for a while, and what does not depend on that is computed once: half of it, on average."""
    copy = rewrite(network.model, Plan(), request.examples, coupling=coupling, check=False)
    same = unaffected(coupling, branches)
    forms = {b.name: Form(partial(dropped, copy, [b]), same[b.name]) for b in branches}
    reference, without = apart_from(copy, compared, forms, statistics=by_batch)
    return reference.to_itself, reference.told, without


def by_their_own(model: nn.Module) -> bool:
    """Whether all statistics that a network keeps can be those of a batch instead."""
    return all(isinstance(norm, BATCH_NORMS) for norm in norms_of(model))


def _pieces(model: nn.Module, request: Request) -> Sequence[Any]:
    """Batches to compare on through the statistics of each; none where that does not go, or nothing is re-estimated."""
    assert request.data is not None
    if not (request.recalibrate and norms_of(model) and by_their_own(model)):
        return ()
    own = (piece for batch in islice(request.data, request.batches) for piece, _ in pieces(batch))
    return shared_out(own, SAMPLES)[0]


def _whole_batches(model: nn.Module, request: Request) -> tuple[Sequence[Any], Sequence[Any]]:
    """Batches to compare on, and those that batch norms are re-estimated on: none where they are not."""
    assert request.data is not None
    compared, settled = shared_out(islice(request.data, request.batches), SAMPLES)
    return compared, settled if request.recalibrate and norms_of(model) else ()
