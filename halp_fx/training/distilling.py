"""distill: outputs of a small network and of the dense one -> a loss that pulls the small one's to the dense one's."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from ..arguments import a_kind, is_positive, shown
from ..errors import TrainingError


def distill(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    """The divergence of a network's softmax from its teacher's, both softened (Hinton et al., arXiv 1503.02531).

    Args:
        student, teacher: logits of shape (batch, classes, …). No gradient flows to the teacher.
        temperature: that logits are divided by.

    Returns:
        KL(teacher || student) in nats, times the square of the temperature, so that gradients keep their size: the mean
        over the batch and all places.

    Raises:
        TrainingError: the shapes differ, or the temperature is not positive.
    """
    _check_tensors(student=student, teacher=teacher)
    if student.shape != teacher.shape or student.ndim < 2:
        raise TrainingError(
            f"logits of the student have shape {tuple(student.shape)}, of the teacher {tuple(teacher.shape)}: both "
            "must be (batch, classes, …)"
        )
    if not is_positive(temperature):
        raise TrainingError(f"temperature={shown(temperature)} must be a positive number")
    wanted = F.log_softmax(_precise(teacher.detach()) / temperature, 1)
    found = F.log_softmax(_precise(student) / temperature, 1)
    shares = wanted.exp()
    # A class that the teacher rules out (a logit of -inf) counts for nothing, whatever the student says of it.
    return (shares * (wanted - found)).masked_fill(shares == 0, 0).sum(1).mean() * temperature**2


def distill_features(student: torch.Tensor, teacher: torch.Tensor, kept: Sequence[int] | None = None) -> torch.Tensor:
    """The squared error of features of a network from its teacher's, relative to the teacher's mean square.

    Args:
        student: (batch, channels, …).
        teacher: (batch, channels, …), with the channels of the dense network. No gradient flows to it.
        kept: which of them the student has: `plan[group]`, for the output of a layer that makes a group. None: all.

    Raises:
        TrainingError: the shapes do not fit.
    """
    _check_tensors(student=student, teacher=teacher)
    wanted = teacher.detach() if kept is None else teacher.detach()[:, _channels(kept, teacher)]
    if student.shape != wanted.shape:
        raise TrainingError(
            f"features of the student have shape {tuple(student.shape)}, of the teacher {tuple(wanted.shape)}"
            + ("; pass kept=plan[group] for a group that was pruned" if kept is None else " with the channels kept")
        )
    wanted = _precise(wanted)
    return F.mse_loss(_precise(student), wanted) / wanted.square().mean().clamp_min(1e-12)


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    """In float32, or float64 if it is in that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_tensors(**given: object) -> None:
    for name, value in given.items():
        if not isinstance(value, torch.Tensor):
            raise TrainingError(f"{name} is {a_kind(value)}: pass a tensor, what the network put out")


def _channels(kept: Sequence[int], teacher: torch.Tensor) -> list[int]:
    """Channels of the teacher, as indices."""
    try:
        chosen = list(kept)
        rows = [operator.index(channel) for channel in chosen]
    except TypeError as error:
        raise TrainingError(f"kept={shown(kept)} must be the channels that stay, such as plan[group]") from error
    marks = any(isinstance(c, bool | np.bool_) or getattr(c, "dtype", None) == torch.bool for c in chosen)
    if marks or not rows or len(set(rows)) < len(rows):
        raise TrainingError(
            f"kept={shown(kept)} must be the numbers of the channels that stay, each once, such as plan[group]"
        )
    size = teacher.shape[1] if teacher.ndim > 1 else 0
    if any(not 0 <= row < size for row in rows):
        raise TrainingError(f"kept={shown(kept)} names channels that the teacher's features do not have: it has {size}")
    return rows
