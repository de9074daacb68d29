"""divergence: a network, another that should do the same, and batches -> how far apart they are, per sample.

It needs no labels, and its unit is that of the Fisher information of what goes (`fisher`), which is its second-order
term: of class scores the Kullback-Leibler divergence, of other outputs half of the squared error relative to their mean
square. Where the caller's loss says what batches are, the outputs are not looked at: it is how much that loss is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import SaliencyError
from ..model.inputs import own
from ..model.preserving import preserved, set_mode
from ..model.tensors import tensors_in
from .losses import Loss, LossFn, called, described, inputs_of, moved, pair_of, total
from .recalibrating import by_batch
from .sampled import samples_in

LEAST_LEFT = 1 / 64
"""Of what a network tells, without a part: a loss is not counted more than so many times."""

Parts = list[torch.Tensor]
"""The floating-point tensors that one forward puts out."""

Terms = tuple[torch.Tensor, torch.Tensor]
"""`Apart.sums` and `Apart.bent` of one batch: (K,) of each sample, or (1,) where samples cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What a network puts out for some batches.

    Attributes:
        batches: on the network's device.
        outputs: for each batch; empty with a `loss`.
        loss: (model, batch) -> scalars, or None.
        statistics: networks run with the statistics of each batch in their batch norms, not with those that they keep.
    """

    batches: Sequence[Any]
    outputs: Sequence[Parts]
    loss: Loss | None = None
    statistics: bool = False

    @property
    def told(self) -> float:
        """What the outputs tell about the samples, in nats: how far class scores are from their mean over all samples.
        No divergence tells more of a network than that none of it works. Infinite where it has no such bound."""
        if self.kind != "divergence":
            return math.inf
        log_p = torch.cat([torch.log_softmax(parts[0].double(), 1) for parts in self.outputs])
        return float((log_p.exp() * (log_p - log_p.exp().mean(0).log())).sum(1).mean())

    @classmethod
    def of(
        cls, model: nn.Module, batches: Iterable[Any], loss: Loss | None = None, *, statistics: bool = False
    ) -> Reference:
        """The reference that a network, in eval mode, gives. It stays as it is.

        Raises:
            SaliencyError: its outputs cannot be compared.
        """
        device = next(model.parameters()).device
        there = [moved(batch, device) for batch in batches]
        if loss is not None:
            return cls(there, (), loss, statistics)
        with running(model, statistics):
            outputs = [parts_of(called(model, inputs_of(batch))) for batch in there]
        return cls(there, outputs, None, statistics)

    @property
    def kind(self) -> str:
        """What is measured, in words."""
        if self.loss is not None:
            return "loss"
        scores = self.outputs and all(_classes(parts) for parts in self.outputs)
        return "divergence" if scores else "squared error"

    @property
    def to_itself(self) -> Apart:
        """How far the network is from itself: nothing, sample by sample, where its outputs are numbers."""
        return self.joined([terms(parts, parts) for parts in self.outputs])

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

    def bounded(self, other: nn.Module) -> float:
        """As `distance`, of class scores the squared Hellinger distance, 1 - sum(sqrt(p q)) per sample: at most 1, so
        that no few samples of which both are sure, and not of the same, decide between two networks. Of a few hundred
        samples it says nearly as much as the divergence of some thousand (docs/benchmarks_accuracy.md).

        Raises:
            SaliencyError: outputs do not compare.
        """
        if self.kind != "divergence":
            return self.distance(other)
        found = []
        with running(other, self.statistics):
            for batch, outputs in zip(self.batches, self.outputs, strict=True):
                parts = parts_of(called(other, inputs_of(batch)))
                check_alike(outputs, parts)
                log_p, log_q = (torch.log_softmax(p[0].double(), 1) for p in (outputs, parts))
                found.append(1 - ((log_p + log_q) / 2).exp().sum(1))
        mean = float(torch.cat(found).mean())
        return mean if math.isfinite(mean) else math.inf

    def apart(self, other: nn.Module) -> Apart:
        """As `distance`, sample by sample."""
        rows = []
        with running(other, self.statistics):
            for i, batch in enumerate(self.batches):
                if self.loss is not None:
                    found = total(self.loss(other, own(batch))).detach().double().reshape(1) * (samples_in(batch) or 1)
                    rows.append((found, found))
                else:
                    rows.append(terms(self.outputs[i], parts_of(called(other, inputs_of(batch)))))
        return self.joined(rows)

    def joined(self, rows: Sequence[Terms]) -> Apart:
        """How far another network is, of the terms for each batch."""
        counts = [
            torch.full((len(found),), (samples_in(batch) or 1) / len(found), dtype=torch.float64, device="cpu")
            for batch, (found, _) in zip(self.batches, rows, strict=True)
        ]
        sums, bent = (torch.cat([term.cpu() for term in own]) for own in zip(*rows, strict=True))
        return Apart(sums, bent, torch.cat(counts))


@dataclass(frozen=True, slots=True, eq=False)
class Apart:
    """How far a network is from a reference.

    Attributes:
        sums: (K,) float64, of each sample; where they cannot be told apart, of each batch.
        bent: (K,) the second-order terms of these divergences at the change of the scores: half of its variance under
            the reference's own classes. The same as `sums` where these are squares already, or losses.
        samples: (K,) how many each is of.
    """

    sums: torch.Tensor
    bent: torch.Tensor
    samples: torch.Tensor

    @property
    def mean(self) -> float:
        """Per sample; infinite where it is not finite."""
        found = float(self.sums.sum())
        return found / float(self.samples.sum()) if math.isfinite(found) else math.inf

    def loss(self, whole: Apart, told: float) -> float:
        """What is lost beyond what another network lost for the same samples, in the unit in which channels are valued
        (`fisher`), whatever its size: the second-order term and its standard error, for what few samples leave open
        should not be lost by chance.

        The divergence itself is no such unit: it never exceeds what a network tells, while what channels are worth
        grows tenfold on the way to a small budget. But a change that turns sure scores over has a small second-order
        term, so that is divided by the part of what the network tells (`Reference.told`) that is left.
        """
        further, count = self.bent - whole.bent, len(self.bent)
        mean, error = float(further.sum() / self.samples.sum()), 0.0
        if count > 1:
            scatter = float((further - mean * self.samples).square().sum()) * count / (count - 1)
            error = math.sqrt(scatter) / float(self.samples.sum())
        gone = (self.mean - whole.mean) / told if told > 0 else 1.0
        return (max(mean, 0.0) + error) / max(1.0 - max(gone, 0.0), LEAST_LEFT)


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
        return [total(loss(model, own(batch)))]
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


@contextmanager
def running(model: nn.Module, statistics: bool) -> Iterator[None]:
    """Without gradients, in eval mode (`to_compare`); the model stays as it is."""
    with preserved(model), torch.no_grad():
        to_compare(model, statistics)
        yield


def to_compare(model: nn.Module, statistics: bool) -> None:
    """Eval mode, but for batch norms where these take the statistics of each batch."""
    set_mode(model)
    if statistics:
        by_batch(model)


def parts_of(output: Any) -> Parts:
    """The tensors that a forward puts out.

    Raises:
        SaliencyError: there are none.
    """
    return [t.detach() for t in numbers_of(output)]


def numbers_of(output: Any) -> Parts:
    """As `parts_of`, with what they were computed from.

    Raises:
        SaliencyError: there are none.
    """
    parts = [t for t in tensors_in(output) if t.is_floating_point()]
    if not parts:
        raise SaliencyError(
            f"networks cannot be compared by what they put out, {described(output)}: pass loss=lambda model, batch: …"
        )
    return parts


def _classes(parts: Parts) -> bool:
    return len(parts) == 1 and parts[0].ndim == 2 and parts[0].shape[1] > 1


def terms(wanted: Parts, found: Parts) -> Terms:
    """How far what a network puts out for one batch is from what was wanted: of each sample if the first dimension of
    all parts is the samples'.

    Raises:
        SaliencyError: they do not compare.
    """
    check_alike(wanted, found)
    if _classes(wanted):
        log_p, log_q = (torch.log_softmax(parts[0].double(), 1) for parts in (wanted, found))
        p, moved_by = log_p.exp(), log_q - log_p
        mean = (p * moved_by).sum(1)
        return -mean, (p * (moved_by - mean[:, None]).square()).sum(1) / 2
    rows = {len(t) if t.ndim else 0 for t in wanted}
    count = rows.pop() if len(rows) == 1 else 1
    pairs = [(a.double(), b.double()) for a, b in zip(wanted, found, strict=True)]
    sums = [(a - b).square().reshape(max(count, 1), -1).sum(1) / (2 * _mean_square(a)) for a, b in pairs]
    squares = torch.stack(sums).sum(0)
    return squares, squares


def check_alike(wanted: Parts, found: Parts) -> None:
    """Refuse outputs of other shapes."""
    if [t.shape for t in wanted] != [t.shape for t in found]:
        raise SaliencyError(
            f"networks cannot be compared by what they put out: {described(wanted)} and {described(found)} for one "
            "batch. Pass loss=lambda model, batch: … instead"
        )


def _mean_square(values: torch.Tensor) -> torch.Tensor:
    return values.square().mean().clamp_min(1e-24)
