"""divergence: a network, another that should do the same, and batches -> how far apart they are, per sample.

It needs no labels, and its unit is that of the Fisher information of what goes (`fisher`), which is its second-order
term: of class scores the Kullback-Leibler divergence, of other outputs half of the squared error relative to their mean
square. Where the caller's loss says what batches are, the outputs are not looked at: it is how much that loss is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import SaliencyError
from ..model.preserving import preserved, set_mode
from ..model.tensors import tensors_in
from .losses import Loss, LossFn, called, described, inputs_of, moved, pair_of, total
from .sampled import samples_in

Parts = list[torch.Tensor]
"""The floating-point tensors that one forward puts out."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What a network puts out for some batches.

    Attributes:
        batches: on the network's device.
        outputs: for each batch; empty with a `loss`.
        loss: (model, batch) -> scalars, or None.
    """

    batches: Sequence[Any]
    outputs: Sequence[Parts]
    loss: Loss | None = None

    @classmethod
    def of(cls, model: nn.Module, batches: Iterable[Any], loss: Loss | None = None) -> Reference:
        """The reference that a network, in eval mode, gives. It stays as it is.

        Raises:
            SaliencyError: its outputs cannot be compared.
        """
        device = next(model.parameters()).device
        there = [moved(batch, device) for batch in batches]
        if loss is not None:
            return cls(there, (), loss)
        with preserved(model), torch.no_grad():
            set_mode(model)
            outputs = [_parts(called(model, inputs_of(batch))) for batch in there]
        return cls(there, outputs)

    @property
    def kind(self) -> str:
        """What is measured, in words."""
        if self.loss is not None:
            return "loss"
        scores = self.outputs and all(_classes(parts) for parts in self.outputs)
        return "divergence" if scores else "squared error"

    @property
    def samples(self) -> int:
        """Of all batches; a batch whose samples cannot be counted is one."""
        return sum(samples_in(batch) or 1 for batch in self.batches)

    def distance(self, other: nn.Module) -> float:
        """How far another network, in eval mode, is from it: 0 for the same one, unless there is a `loss`; infinite
        where it is not finite. The other network stays as it is.

        Raises:
            SaliencyError: outputs do not compare.
        """
        return self.apart(other).mean

    def apart(self, other: nn.Module) -> Apart:
        """As `distance`, sample by sample."""
        sums, counts = [], []
        with preserved(other), torch.no_grad():
            set_mode(other)
            for i, batch in enumerate(self.batches):
                samples = samples_in(batch) or 1
                if self.loss is not None:
                    found = total(self.loss(other, batch)).detach().double().reshape(1) * samples
                else:
                    found = _apart(self.outputs[i], _parts(called(other, inputs_of(batch))))
                sums.append(found.cpu())
                counts.append(torch.full((len(found),), samples / len(found), dtype=torch.float64))
        return Apart(torch.cat(sums), torch.cat(counts))


@dataclass(frozen=True, slots=True, eq=False)
class Apart:
    """How far a network is from a reference.

    Attributes:
        sums: (K,) float64, of each sample; where they cannot be told apart, of each batch.
        samples: (K,) how many each is of.
    """

    sums: torch.Tensor
    samples: torch.Tensor

    @property
    def mean(self) -> float:
        """Per sample; infinite where it is not finite."""
        found = float(self.sums.sum())
        return found / float(self.samples.sum()) if math.isfinite(found) else math.inf

    def beyond(self, other: Apart) -> tuple[float, float]:
        """How much further it is than another network was for the same samples, and the standard error of that: 0 where
        a single figure is all there is."""
        further, count = self.sums - other.sums, len(self.sums)
        mean = float(further.sum() / self.samples.sum())
        if count < 2:
            return mean, 0.0
        scatter = float((further - mean * self.samples).square().sum()) * count / (count - 1)
        return mean, math.sqrt(scatter) / float(self.samples.sum())


def finite_on(
    model: nn.Module, batches: Sequence[Any], loss_fn: LossFn | None = None, loss: Loss | None = None
) -> tuple[list[Any], tuple[int, ...]]:
    """The batches on which a network, in eval mode, and the caller's loss are finite, and the numbers of the others. A
    batch that fails is kept: who uses it says why."""
    device = next(model.parameters()).device
    kept: list[Any] = []
    lost: list[int] = []
    with preserved(model), torch.no_grad():
        for number, batch in enumerate(batches):
            set_mode(model)
            try:
                numbers = _numbers(model, moved(batch, device), loss_fn, loss)
                good = all(bool(torch.isfinite(t).all()) for t in numbers)
            except Exception:
                good = True
            if good:
                kept.append(batch)
            else:
                lost.append(number)
    return kept, tuple(lost)


def _numbers(model: nn.Module, batch: Any, loss_fn: LossFn | None, loss: Loss | None) -> list[torch.Tensor]:
    if loss is not None:
        return [total(loss(model, batch))]
    output = called(model, inputs_of(batch))
    judged = [] if loss_fn is None else [total(loss_fn(output, pair_of(batch)[1]))]
    return [*judged, *(t for t in tensors_in(output) if t.is_floating_point())]


def shared_out(data: Iterable[Any], samples: int) -> tuple[list[Any], list[Any]]:
    """The first batches, until they have so many samples, to compare on; and as many to re-estimate batch norms on: of
    the next ones where there are any."""
    parts: list[list[Any]] = [[], []]
    counts = [0, 0]
    for batch in data:
        part = int(counts[0] >= samples)
        if counts[part] >= samples:
            break
        parts[part].append(batch)
        counts[part] += samples_in(batch) or 1
    return parts[0], parts[1] or parts[0]


def _parts(output: Any) -> Parts:
    """The tensors that a forward puts out.

    Raises:
        SaliencyError: there are none.
    """
    parts = [t.detach() for t in tensors_in(output) if t.is_floating_point()]
    if not parts:
        raise SaliencyError(
            f"networks cannot be compared by what they put out, {described(output)}: pass loss=lambda model, batch: …"
        )
    return parts


def _classes(parts: Parts) -> bool:
    return len(parts) == 1 and parts[0].ndim == 2 and parts[0].shape[1] > 1


def _apart(wanted: Parts, found: Parts) -> torch.Tensor:
    """(K,) float64 of one batch, of each sample if the first dimension of all parts is the samples', else (1,)."""
    if [t.shape for t in wanted] != [t.shape for t in found]:
        raise SaliencyError(
            f"networks cannot be compared by what they put out: {described(wanted)} and {described(found)} for one "
            "batch. Pass loss=lambda model, batch: … instead"
        )
    if _classes(wanted):
        log_p, log_q = (torch.log_softmax(parts[0].double(), 1) for parts in (wanted, found))
        return (log_p.exp() * (log_p - log_q)).sum(1)
    rows = {len(t) if t.ndim else 0 for t in wanted}
    count = rows.pop() if len(rows) == 1 else 1
    pairs = [(a.double(), b.double()) for a, b in zip(wanted, found, strict=True)]
    sums = [(a - b).square().reshape(max(count, 1), -1).sum(1) / (2 * _mean_square(a)) for a, b in pairs]
    return torch.stack(sums).sum(0)


def _mean_square(values: torch.Tensor) -> torch.Tensor:
    return values.square().mean().clamp_min(1e-24)
