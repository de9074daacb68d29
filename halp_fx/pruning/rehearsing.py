"""rehearsing: a network that meets a budget -> a copy that was trained for a little while to do what the dense network
does, which foretells better what fine-tuning will make of it than the network as it stands.

At a twentieth of the cost by much, at a tenth by little (docs/benchmarks_accuracy.md, "What the judge knows"). It takes
some hundred steps: fewer, or an epoch of ordinary training, tell less. They have to teach more than the few samples at
hand: the dense network can be asked about any input, so it is asked about mixtures of two (mixup, arXiv 1710.09412; a
patient teacher of consistent views, arXiv 2106.05237). No labels are needed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import torch
from torch import nn

from ..errors import SaliencyError, words_of
from ..internals import tree_leaves, tree_map
from ..model.copying import copied
from ..model.preserving import random_kept, set_mode, unsynchronised
from ..scoring.batchwise import pieces
from ..scoring.divergence import Parts, numbers_of, parts_of, running, terms, to_compare
from ..scoring.losses import Loss, called, inputs_of, moved, total
from ..scoring.recalibrating import norms_of, renew
from ..scoring.sampled import samples_in

logger = logging.getLogger("halp_fx")

STEPS, PASSES = 450, 48
"""Steps of a rehearsal, and how often it sees the same samples at most. With a third of the steps, ranks of eight
networks agreed with those after fine-tuning by 0.1 to 0.9 instead of 0.9 to 1.0, in the pools that this was chosen on
(docs/benchmarks_accuracy.md)."""

RATE, ADAPTIVE_RATE = 0.05, 1.5e-3
"""Of SGD with Nesterov momentum, and of AdamW where there are no batch norms: SGD hardly trains such networks."""

WARM, NORM = 0.2, 5.0
"""Share of the steps in which the rate rises, and the largest norm of a gradient."""

ROOM = 256 * 2**20
"""Bytes of the dense network's answers that are kept: all networks are asked the same."""


@dataclass(slots=True, eq=False)
class Rehearsal:
    """What networks are taught, the same for all.

    Attributes:
        model: the dense network, in eval mode while it is asked.
        lessons: pieces of batches on its device, of about 64 samples.
        loss: (model, batch) -> scalars, which is then what is taught, of lessons that are not mixed; or None.
        answers: of the dense network, by the number of the step; as many as there is room for.
    """

    model: nn.Module
    lessons: Sequence[Any]
    loss: Loss | None = None
    answers: dict[int, Parts] = field(default_factory=dict)
    room: int = ROOM

    @classmethod
    def of(cls, model: nn.Module, batches: Sequence[Any], loss: Loss | None = None) -> Rehearsal:
        """By what the dense network puts out for these batches and for mixtures of their samples."""
        device = next(model.parameters()).device
        there = [moved(batch, device) for batch in batches]
        return cls(model, [piece for batch in there for piece, _ in pieces(batch)] or there, loss)

    def rehearsed(self, network: nn.Module) -> nn.Module | None:
        """A trained copy, its batch norms re-estimated; None where it cannot be trained, which is logged."""
        try:
            with random_kept(), torch.inference_mode(False), torch.enable_grad():
                copy = copied(network)
                with unsynchronised(copy):
                    return self._trained(copy)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            logger.warning("a network is judged as it stands, for a copy cannot be trained: %s", words_of(error))
            return None

    def _trained(self, network: nn.Module) -> nn.Module:
        # Without dropout, as the dense network answers; batch norms by the batch.
        to_compare(network, True)
        numbers = [p for p in network.parameters() if p.is_floating_point()]
        if not any(p.requires_grad for p in numbers):
            for parameter in numbers:
                parameter.requires_grad_()
        parameters = [p for p in numbers if p.requires_grad]
        optimizer = _optimizer(network, parameters)
        steps = min(STEPS, PASSES * len(self.lessons))
        draw = torch.Generator().manual_seed(0)
        for step, lesson in enumerate(islice(_endless(self.lessons, draw), steps)):
            share = float(torch.rand((), generator=draw))
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * _part_of_rate(step, steps)
            optimizer.zero_grad()
            loss = self._loss(network, step, lesson, share)
            if not bool(torch.isfinite(loss)):
                raise SaliencyError(f"what is to be minimised is {loss.item()} in step {step} of {steps}")
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, NORM)
            optimizer.step()
        if norms_of(network):
            renew(network, self.lessons, len(self.lessons), self.loss)
        set_mode(network)
        return network

    def _loss(self, network: nn.Module, step: int, lesson: Any, share: float) -> torch.Tensor:
        if self.loss is not None:
            return total(self.loss(network, lesson))
        inputs = mixed(inputs_of(lesson), share)
        answer = self.answers.get(step) or self._asked(step, inputs)
        return terms(answer, numbers_of(called(network, inputs)))[0].mean()

    def _asked(self, step: int, inputs: Any) -> Parts:
        """What the dense network puts out; it is kept while there is room."""
        with running(self.model, False):
            answer = parts_of(called(self.model, inputs))
        size = sum(part.nbytes for part in answer)
        if size <= self.room:
            self.answers[step] = answer
            self.room -= size
        return answer


def mixed(inputs: Any, share: float) -> Any:
    """Each sample mixed with its neighbour, in all numbers of the inputs that samples have; inputs whose samples cannot
    be counted, or that are not only numbers (indices of tokens), as they are."""
    samples = samples_in(inputs) or 0
    leaves = [t for t in tree_leaves(inputs) if isinstance(t, torch.Tensor)]
    if samples < 2 or not all(t.is_floating_point() for t in leaves):
        return inputs

    def one(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == samples:
            return torch.lerp(value.roll(1, 0), value, share)
        return value

    return tree_map(one, inputs)


def _endless(lessons: Sequence[Any], draw: torch.Generator) -> Iterator[Any]:
    """All lessons in a random order, again and again."""
    for _ in count():
        for place in torch.randperm(len(lessons), generator=draw).tolist():
            yield lessons[place]


def _part_of_rate(step: int, steps: int) -> float:
    return min((step + 1) / max(1.0, WARM * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps))


def _optimizer(network: nn.Module, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    if norms_of(network):
        return torch.optim.SGD(parameters, lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return torch.optim.AdamW(parameters, lr=ADAPTIVE_RATE)
