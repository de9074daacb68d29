"""valuing: rows gathered in training -> saliency."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..scoring.callables import Importance
from ..scoring.fisher import values_of
from ..scoring.saliency import EVENNESS, Saliency, heard, score
from ..types import Coupling

APART = 0.5
"""A row is a batch, and there are some tens of them, for hundreds of channels: sets that cancel by chance are many."""


def saliency_of(
    rows: Mapping[str, torch.Tensor], importance: Importance, model: nn.Module, coupling: Coupling
) -> Saliency:
    """What the groups of a network are worth.

    Args:
        rows: by group, of shape (batches, channels), on the CPU.
        importance: "fisher": half the mean square of the sum over the removed set; "taylor": the mean absolute value,
            which adds up; anything else does not need the rows (`score`).
        model, coupling: as it stands; a group without rows keeps its width.
    """
    if importance not in ("fisher", "taylor"):
        return score(model, coupling, importance=importance)
    known = {g.name: rows[g.name] for g in coupling.prunable if g.name in rows and rows[g.name].shape[1] == g.size}
    count = len(next(iter(known.values()), ()))
    if importance == "taylor":
        scores = {name: own.double().abs().mean(0).numpy() for name, own in known.items()}
        return heard(Saliency(scores, "taylor", count), model, coupling)
    scores = {name: (own.double().square().mean(0) / 2).numpy() for name, own in known.items()}
    values = {name: values_of(own, APART) for name, own in known.items()}
    return heard(Saliency(scores, "fisher", count, values=values, evenness=EVENNESS), model, coupling)
