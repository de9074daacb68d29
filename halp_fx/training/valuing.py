"""valuing: rows gathered in training -> saliency; batches -> what a network in training loses without its branches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..coupling.residual import find_branches
from ..errors import SaliencyError, TrainingError, words_of
from ..model.preserving import unsynchronised
from ..pruning.dropping import shares_lost
from ..pruning.networks import Network
from ..pruning.request import Request, rereadable
from ..scoring.callables import Importance
from ..scoring.losses import Loss, LossFn
from ..scoring.saliency import EVENNESS, Saliency, heard, score
from ..types import Coupling, Plan


def saliency_of(
    rows: Mapping[str, torch.Tensor], importance: Importance, model: nn.Module, coupling: Coupling
) -> Saliency:
    """What the groups of a network are worth.

    Args:
        rows: by group, of shape (batches, channels), on the CPU.
        importance: "fisher": half the mean square; "taylor": the mean absolute value; anything else does not need the
            rows (`score`).
        model, coupling: as it stands; a group without rows keeps its width.
    """
    if importance not in ("fisher", "taylor"):
        return score(model, coupling, importance=importance)
    known = {g.name: rows[g.name] for g in coupling.prunable if g.name in rows and rows[g.name].shape[1] == g.size}
    count = len(next(iter(known.values()), ()))
    if importance == "taylor":
        scores = {name: own.double().abs().mean(0).numpy() for name, own in known.items()}
        return heard(Saliency(scores, "taylor", count), model, coupling)
    # Scores add up here. Of a few tens of rows for hundreds of channels, sets are found that cancel by chance, so
    # products of different channels say little (docs/training_details.md).
    scores = {name: (own.double().square().mean(0) / 2).numpy() for name, own in known.items()}
    return heard(Saliency(scores, "fisher", count, evenness=EVENNESS), model, coupling)


@dataclass(frozen=True, slots=True)
class LostWithout:
    """What is lost without each branch, measured on data, as `prune` has it (`pruning.dropping`).

    Rows of a training are of mean losses over batches of a size that nobody tells (accumulated, averaged over
    processes), so they are in no unit that this could be compared with. But it is a share of what all groups are worth,
    so these are valued once more by the same data, and the share is taken over.

    Attributes:
        request: with the data.
    """

    request: Request

    @classmethod
    def of(
        cls, request: Request, data: Iterable[Any], loss_fn: LossFn | None = None, loss: Loss | None = None
    ) -> LostWithout:
        """By a pruner's own request, which has no data, and the data and the loss that it was given.

        Raises:
            SaliencyError: the data cannot be read.
        """
        known = rereadable(data)
        return cls(replace(request, data=known, loss_fn=loss_fn, loss=loss, importance="batches", recalibrate=True))

    def __call__(
        self, network: Network, coupling: Coupling, names: Sequence[str], known: Saliency | None
    ) -> dict[str, float]:
        """Measured in the dense network, and again after branches went.

        Args:
            network: as it stands, in whichever mode; it stays as it is.
            coupling: its own.
            names: of the branches that may go.
            known: what was said before the last step.

        Returns:
            By branch, shares of what all groups are worth.

        Raises:
            TrainingError: the data does not fit, or what the network puts out for it does not compare.
        """
        measured = known.dropping if known is not None else {}
        gone = tuple(name for name in measured if name in network.plan.dropped)
        if measured and not gone:
            return {name: measured[name] for name in names if name in measured}
        before = replace(network, saliency=known if measured else None, step=Plan({}, gone))
        request, branches = self.request, find_branches(coupling).among(names)
        try:
            with unsynchronised(network.model):
                asked = (request.data, request.loss_fn, request.importance)
                own = score(network.model, coupling, *asked, loss=request.loss, batches=request.batches)
                return shares_lost(before, request, coupling, branches, own.whole)
        except SaliencyError as error:
            raise TrainingError(
                f"the data given to Pruner cannot tell what is lost without a branch: {words_of(error)}. Or leave "
                "data out: branches then stay (with branches=True they are valued by the gradients of what they add)"
            ) from error
