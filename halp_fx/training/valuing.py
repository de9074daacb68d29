"""valuing: rows gathered in training -> saliency."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..scoring.callables import Importance
from ..scoring.saliency import EVENNESS, Saliency, heard, score
from ..types import Coupling


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
