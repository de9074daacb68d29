"""distill: outputs of a small network and of the dense one -> a loss that pulls the small one's to the dense one's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

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
    if student.shape != teacher.shape or student.ndim < 2:
        raise TrainingError(
            f"logits of the student have shape {tuple(student.shape)}, of the teacher {tuple(teacher.shape)}: both "
            "must be (batch, classes, …)"
        )
    if not temperature > 0:
        raise TrainingError(f"temperature={temperature!r} must be positive")
    wanted = F.log_softmax(teacher.detach().float() / temperature, 1)
    found = F.log_softmax(student.float() / temperature, 1)
    return (wanted.exp() * (wanted - found)).sum(1).mean() * temperature**2


def distill_features(student: torch.Tensor, teacher: torch.Tensor, kept: Sequence[int] | None = None) -> torch.Tensor:
    """The squared error of features of a network from its teacher's, relative to the teacher's mean square.

    Args:
        student: (batch, channels, …).
        teacher: (batch, channels, …), with the channels of the dense network. No gradient flows to it.
        kept: which of them the student has: `plan[group]`, for the output of a layer that makes a group. None: all.

    Raises:
        TrainingError: the shapes do not fit.
    """
    wanted = teacher.detach() if kept is None else teacher.detach()[:, list(kept)]
    if student.shape != wanted.shape:
        raise TrainingError(
            f"features of the student have shape {tuple(student.shape)}, of the teacher {tuple(wanted.shape)}"
            + ("; pass kept=plan[group] for a group that was pruned" if kept is None else " with the channels kept")
        )
    return F.mse_loss(student.float(), wanted.float()) / wanted.float().square().mean().clamp_min(1e-12)
