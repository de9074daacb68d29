"""teaching: a network that was cut and the dense one -> the cut one trained, in place, to do what the dense one does.

No labels are needed. A few samples would soon be known by heart, but the dense network can be asked about any input, so
it is asked about mixtures of two (mixup, arXiv 1710.09412; a patient teacher of consistent views, arXiv 2106.05237),
and of images that are moved about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..errors import SaliencyError
from ..internals import tree_leaves, tree_map
from ..model.copying import copied
from ..model.inputs import own
from ..model.preserving import random_kept, set_mode, unsynchronised
from ..scoring.batchwise import pieces
from ..scoring.divergence import Parts, numbers_of, parts_of, running, terms, to_compare
from ..scoring.losses import Loss, called, differentiating, inputs_of, moved, total
from ..scoring.recalibrating import norms_of, renew
from ..scoring.sampled import samples_in

RATE, ADAPTIVE_RATE = 0.05, 1.5e-3
"""Of SGD with Nesterov momentum, and of AdamW where there are no batch norms: SGD hardly trains such networks."""

WARM, NORM = 0.2, 5.0
"""Share of the steps in which the rate rises, and the largest norm of a gradient."""

ROOM = 256 * 2**20
"""Bytes of the dense network's answers that are kept where several networks are asked the same."""


@dataclass(slots=True, eq=False)
class Teacher:
    """The dense network, and what it answered.

    Attributes:
        model: in eval mode while it is asked.
        loss: (model, batch) -> scalars, which is then what is taught, of batches that are not mixed; or None.
        answers: by the number of the step; as many as there is room for.
        rate: of SGD, the highest one; that of AdamW goes along.
        moving: images are moved about as well.
        room: bytes that further answers may take.
    """

    model: nn.Module
    loss: Loss | None = None
    rate: float = RATE
    moving: bool = False
    room: int = 0
    answers: dict[int, Parts] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def taught(
        self, network: nn.Module, lessons: Iterator[Any], steps: int, settling: Iterable[Any], batches: int
    ) -> tuple[nn.Module, int]:
        """A trained copy of a network, in eval mode, and the steps that were taken. Random states are given back.

        Args:
            lessons: as `lessons_of` makes them; fewer than `steps` end it.
            settling, batches: what its batch norms are re-estimated on, and how many of them at most.

        Raises:
            ModelError: the network cannot be copied.
            SaliencyError: what is to be minimised is not finite, or outputs do not compare.
        """
        with random_kept(), torch.enable_grad():
            copy = copied(network)
            with unsynchronised(copy):
                taken = self._teach(copy, lessons, steps)
                renew(copy, settling, batches, self.loss)
                set_mode(copy)
        return copy, taken

    def _teach(self, network: nn.Module, lessons: Iterator[Any], steps: int) -> int:
        """Train a network, in place and in eval mode, but for its batch norms: those take the statistics of each lesson
        and keep their own, which have to be re-estimated. Returns the steps that were taken."""
        # Without dropout, as the dense network answers; batch norms by the batch.
        to_compare(network, True)
        parameters = _trainable(network)
        optimizer = _optimizer(network, parameters, self.rate)
        draw, step = torch.Generator().manual_seed(0), -1
        for step, lesson in enumerate(islice(lessons, steps)):
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * _part_of_rate(step, steps)
            optimizer.zero_grad()
            loss = self._loss(network, step, moved(lesson, self.device), draw)
            if not bool(torch.isfinite(loss)):
                raise SaliencyError(f"what is to be minimised is {loss.item()} in step {step} of {steps}")
            with differentiating(f"step {step} of {steps}"):
                loss.backward()
            nn.utils.clip_grad_norm_(parameters, NORM)
            optimizer.step()
        return step + 1

    def _loss(self, network: nn.Module, step: int, lesson: Any, draw: torch.Generator) -> torch.Tensor:
        if self.loss is not None:
            return total(self.loss(network, own(lesson)))
        inputs = mixed(inputs_of(lesson), float(torch.rand((), generator=draw, dtype=torch.float32, device="cpu")))
        if self.moving:
            inputs = moved_about(inputs, draw)
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


def lessons_of(batch: Any) -> list[Any]:
    """A batch in pieces of about 64 samples, where it can be parted."""
    return [piece for piece, _ in pieces(batch)] or [batch]


def in_random_order(lessons: Sequence[Any]) -> Iterator[Any]:
    """All lessons, in another order each time, again and again."""
    draw = torch.Generator().manual_seed(0)
    while lessons:
        for place in torch.randperm(len(lessons), generator=draw, device="cpu").tolist():
            yield lessons[place]


def mixed(inputs: Any, share: float) -> Any:
    """Each sample mixed with its neighbour, in all numbers of the inputs that samples have; inputs whose samples cannot
    be counted, or that are not only numbers (indices of tokens), as they are."""
    leaves = [t for t in tree_leaves(inputs) if isinstance(t, torch.Tensor)]
    if not all(t.is_floating_point() for t in leaves):
        return inputs
    return _of_samples(inputs, 1, lambda value, _: torch.lerp(value.roll(1, 0), value, share))


def moved_about(inputs: Any, draw: torch.Generator) -> Any:
    """Each sample's images moved by up to an eighth of their sides, all of a sample alike; what leaves them on one side
    comes in on the other, so that nothing is made up."""
    shares: list[list[float]] = []

    def one(value: torch.Tensor, samples: int) -> torch.Tensor:
        if not value.is_floating_point():
            return value
        if not shares:
            shares.extend(
                ((torch.rand(samples, 2, generator=draw, dtype=torch.float32, device="cpu") - 0.5) / 4).tolist()
            )
        sides = value.shape[-2:]
        by = [tuple(round(part * side) for part, side in zip(share, sides, strict=True)) for share in shares]
        return torch.stack([image.roll(own, (-2, -1)) for image, own in zip(value, by, strict=True)])

    return _of_samples(inputs, 4, one)


def _of_samples(inputs: Any, least: int, change: Callable[[torch.Tensor, int], torch.Tensor]) -> Any:
    """Inputs of two samples or more, with what `change` makes of each tensor that has a row for each of them.

    Args:
        least: dimensions that such a tensor has.
    """
    samples = samples_in(inputs) or 0

    def one(value: Any) -> Any:
        has = isinstance(value, torch.Tensor) and value.ndim >= least and len(value) == samples
        return change(value, samples) if has else value

    return tree_map(one, inputs) if samples > 1 else inputs


def _trainable(network: nn.Module) -> list[nn.Parameter]:
    """Parameters that learn: all numbers, where the network was frozen whole."""
    numbers = [p for p in network.parameters() if p.is_floating_point()]
    if not any(p.requires_grad for p in numbers):
        for parameter in numbers:
            parameter.requires_grad_()
    return [p for p in numbers if p.requires_grad]


def _part_of_rate(step: int, steps: int) -> float:
    return min((step + 1) / max(1.0, WARM * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps))


def _optimizer(network: nn.Module, parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    if norms_of(network):
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return torch.optim.AdamW(parameters, lr=ADAPTIVE_RATE * rate / RATE)
