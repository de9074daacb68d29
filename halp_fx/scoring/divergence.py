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
from ..internals import tree_leaves
from ..model.preserving import preserved, set_mode
from .losses import Loss, called, described, moved, total
from .sampled import inputs_of, samples_in

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
        found = 0.0
        with preserved(other), torch.no_grad():
            set_mode(other)
            for i, batch in enumerate(self.batches):
                if self.loss is not None:
                    found += float(total(self.loss(other, batch))) * (samples_in(batch) or 1)
                else:
                    found += _apart(self.outputs[i], _parts(called(other, inputs_of(batch))))
        return found / self.samples if math.isfinite(found) else math.inf


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
    parts = [t.detach() for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    if not parts:
        raise SaliencyError(
            f"networks cannot be compared by what they put out, {described(output)}: pass loss=lambda model, batch: …"
        )
    return parts


def _classes(parts: Parts) -> bool:
    return len(parts) == 1 and parts[0].ndim == 2 and parts[0].shape[1] > 1


def _apart(wanted: Parts, found: Parts) -> float:
    """Of one batch, summed over its samples."""
    if [t.shape for t in wanted] != [t.shape for t in found]:
        raise SaliencyError(
            f"networks cannot be compared by what they put out: {described(wanted)} and {described(found)} for one "
            "batch. Pass loss=lambda model, batch: … instead"
        )
    if _classes(wanted):
        log_p, log_q = (torch.log_softmax(parts[0].double(), 1) for parts in (wanted, found))
        return float((log_p.exp() * (log_p - log_q)).sum())
    pairs = [(a.double(), b.double()) for a, b in zip(wanted, found, strict=True)]
    return sum(float((a - b).square().sum() / (2 * a.square().mean().clamp_min(1e-24))) for a, b in pairs)
