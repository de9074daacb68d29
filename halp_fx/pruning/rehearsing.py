"""rehearsing: a network that meets a budget -> a copy that was trained for a little while (`teaching`), which foretells
better what fine-tuning will make of it than the network as it stands.

At a twentieth of the cost by much, at a tenth by little (docs/benchmarks_accuracy.md, "What the judge knows"). It takes
some hundred steps: fewer, or an epoch of ordinary training, tell less.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import words_of
from ..scoring.losses import Loss, moved
from .teaching import ROOM, Teacher, in_random_order, lessons_of

logger = logging.getLogger("halp_fx")

STEPS, PASSES = 450, 48
"""Steps of a rehearsal, and how often it sees the same samples at most. With a third of the steps, ranks of eight
networks agreed with those after fine-tuning by 0.1 to 0.9 instead of 0.9 to 1.0, in the pools that this was chosen on
(docs/benchmarks_accuracy.md)."""


@dataclass(frozen=True, slots=True, eq=False)
class Rehearsal:
    """What networks are taught, the same for all.

    Attributes:
        lessons: pieces of batches.
    """

    teacher: Teacher
    lessons: Sequence[Any]

    @classmethod
    def of(cls, model: nn.Module, batches: Sequence[Any], loss: Loss | None = None) -> Rehearsal:
        """By what the dense network puts out for these batches and for mixtures of their samples."""
        teacher = Teacher(model, loss, room=ROOM)
        there = (moved(batch, teacher.device) for batch in batches)
        return cls(teacher, [lesson for batch in there for lesson in lessons_of(batch)])

    def rehearsed(self, network: nn.Module) -> nn.Module | None:
        """A trained copy, its batch norms re-estimated; None where it cannot be trained, which is logged."""
        try:
            steps, order = min(STEPS, PASSES * len(self.lessons)), in_random_order(self.lessons)
            with torch.inference_mode(False):
                return self.teacher.taught(network, order, steps, self.lessons, len(self.lessons))[0]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            logger.warning("a network is judged as it stands, for a copy cannot be trained: %s", words_of(error))
            return None
