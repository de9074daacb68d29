"""healing: a network that was cut -> the same one, trained for a while to do what the dense one does (`teaching`), if
that brings it closer on samples that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..arguments import check_switches, whole
from ..errors import SaliencyError
from ..model.checks import check_module, check_whole
from ..model.copying import copied
from ..model.members import registered
from ..model.preserving import making, random_kept, set_mode, unsynchronised
from ..model.tensors import overwrite
from ..progress import counted, shown
from ..scoring.divergence import Reference
from ..scoring.losses import Loss, check_loss
from ..scoring.recalibrating import renew
from ..scoring.sampled import HELD_OUT, divided, samples_in
from .request import rereadable
from .teaching import Teacher, in_random_order, lessons_of

STEPS = 1000
"""Of about 64 samples each."""

RATE = 0.02
"""Lower than a rehearsal's: with 0.05 a network of half of the MACs lost a point (docs/benchmarks_accuracy.md)."""

COMPARED = 64
"""Samples that are held out, or more: whole batches are. At most a quarter of what is there."""

NORMS = 64
"""Batches that batch norms are re-estimated on, at most."""

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Parts of the way from the network as it was to the trained one at which it may end."""


@dataclass(frozen=True, slots=True)
class Healing:
    """What `halp_fx.heal` did.

    Attributes:
        steps: that were taken, of about 64 samples each.
        share: of the way from the network as it was to the trained one that it went.
        kind: what says how far two networks are apart: "divergence" (Kullback-Leibler, of class scores), "squared
            error" (half of it, relative to the mean square of the outputs), or "loss" (the caller's).
        samples: that were held out, which both figures are of.
        before, after: how far the network was from the dense one, and is when trained.
    """

    steps: int
    share: float
    kind: str
    samples: int
    before: float
    after: float

    @property
    def taken(self) -> bool:
        """Whether the network is the trained one: where that is no closer, it stays as it was."""
        return self.after < self.before

    def __str__(self) -> str:
        figures = f"{self.kind} {self.before:.4g} before, {self.after:.4g} after, on {self.samples} samples held out"
        if self.taken:
            part = "" if self.share == 1 else f", {self.share:.0%} of what they changed taken"
            return f"healed in {self.steps} steps{part}: {figures}"
        return (
            f"not healed: {self.steps} steps did not bring it closer to the dense network ({figures}); it is as it was"
        )


def heal(
    small: nn.Module,
    model: nn.Module,
    data: Iterable[Any],
    *,
    steps: int = STEPS,
    loss: Loss | None = None,
    progress: bool = True,
) -> Healing:
    """Train a pruned network for a while to do what the dense one does, in place: without labels and without a recipe.

    The dense network is asked about mixtures of two samples each, so that a few samples do not end up known by heart,
    and the narrow one is trained to answer alike (docs/healing.md). It ends on the line between what it was and what
    that made of it, where it is closest to the dense network on samples held out; where nothing there is closer, it
    stays as it was. Batch norms are re-estimated; modes, gradients and random states are given back. Where labels and
    a recipe are at hand, fine-tuning with them is better.

    Args:
        small: the pruned network. Parameters that need no gradient stay, unless none of them does.
        model: the network that it was made of; it is not changed.
        data: batches as for `recalibrate`: a list of them, read in a random order again and again, or a loader, whose
            batches are read once a pass. The first are held out, 64 samples or more; of few samples a quarter.
        steps: of about 64 samples each.
        loss: (model, batch) -> scalars, for batches of another kind: it calls the model, in eval mode but for batch
            norms, and is then what is made small.
        progress: as for `prune`.

    Raises:
        ModelError: one of the networks cannot be copied.
        SaliencyError: too little data, outputs that do not compare, or a training that is not finite; `small` is as it
            was.
    """
    for network in (small, model):
        check_module(network)
        check_whole(network)
    check_switches(SaliencyError, progress=progress)
    batches = rereadable(data)
    if batches is None:
        raise SaliencyError("a network cannot be healed without data: pass batches, such as a DataLoader")
    check_loss(batches, None, loss)
    steps = whole("steps", steps, SaliencyError)
    with making(), shown(progress):
        return healed(small, model, batches, steps, loss)


def healed(small: nn.Module, model: nn.Module, data: Iterable[Any], steps: int, loss: Loss | None = None) -> Healing:
    """As `heal`, of arguments that are checked."""
    with random_kept():  # A loader that shuffles draws its order.
        taught, held = held_apart(data)
        reference = Reference.of(model, held, loss)
        lessons = counted(islice(_endless(taught), steps), "heal", "steps", steps)
        trained, taken = Teacher(model, loss, RATE, moving=True).taught(small, lessons, steps, taught, NORMS)
        before = reference.distance(small)
        distances = {s: reference.distance(_between(small, trained, s, taught, loss)) for s in SHARES}
        share = min(SHARES, key=distances.__getitem__)
        best = _between(small, trained, share, taught, loss)
        found = Healing(taken, share, reference.kind, reference.samples, before, reference.distance(best))
    if found.taken:
        overwrite(small, registered(best))
    return found


def _between(
    small: nn.Module, trained: nn.Module, share: float, settling: Iterable[Any], loss: Loss | None
) -> nn.Module:
    """A network part of the way from `small` to `trained`, in eval mode, its batch norms re-estimated. There more is
    left of what was known than is missing of what was learnt (arXiv 2109.01903)."""
    if share == 1:
        return trained
    network = copied(trained)
    with torch.no_grad(), unsynchronised(network):
        for there, start in zip(network.parameters(), small.parameters(), strict=True):
            if there.is_floating_point():
                there.lerp_(start, 1 - share)
        renew(network, settling, NORMS, loss)
        set_mode(network)
    return network


@dataclass(frozen=True, slots=True)
class _Without:
    """Batches without the first ones, as often as they are read."""

    data: Iterable[Any]
    first: int

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.data), self.first, None)


def held_apart(data: Iterable[Any]) -> tuple[Iterable[Any], list[Any]]:
    """Batches to teach, and those to compare on: the first ones, or, of few, a quarter of the samples of each. A loader
    that shuffles has others in front each time.

    Raises:
        SaliencyError: there is too little to hold some out.
    """
    source = iter(data)
    seen = list(islice(source, 1))
    held = -(-COMPARED // max(1, (samples_in(seen[0]) or 1) if seen else 1))
    seen += islice(source, HELD_OUT * held - 1)
    if len(seen) == HELD_OUT * held:
        return data[held:] if isinstance(data, Sequence) else _Without(data, held), seen[:held]
    if len(seen) >= HELD_OUT:
        part = len(seen) // HELD_OUT
        return seen[part:], seen[:part]
    return divided(seen, lambda count: count // HELD_OUT, "heal holds a quarter of the data out to compare on")[::-1]


def _endless(data: Iterable[Any]) -> Iterator[Any]:
    """Lessons again and again: of a list in another order each time, of a loader in its own."""
    if isinstance(data, Sequence):
        yield from in_random_order([lesson for batch in data for lesson in lessons_of(batch)])
    while True:
        read = 0
        for batch in data:
            yield from lessons_of(batch)
            read += 1
        if not read:
            return
