"""batchwise: channel groups + batches -> what each channel is worth where batch norms will be re-estimated.

A pruned network's batch norms are re-estimated, so what counts is the loss with statistics of the network as it then
is. Gates are therefore differentiated through the statistics of the batch: what a channel adds to the mean and the
scale of what a norm sees is taken out by the norm, and is no loss. Samples of a batch share its statistics, so a row is
the derivative of a batch's loss by the gates, s_B, and the value of a channel 1/2 E[s_B^2] / samples: with labels drawn
from the network the Fisher information of its gate, in the unit of the loss of a sample. Values of channels add up: of
a few tens of rows for hundreds of channels, sets would be found that cancel by chance.

Networks of small budgets were better by it than by sets of gates with fixed statistics (docs/benchmarks_accuracy.md).

Values are remembered from step to step (`Saliency.recalling`), so a step on the way to a budget looks at a share of the
batches alone, each at another one (`in_turn`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Any

import torch
from torch import nn

from ..errors import SaliencyError
from ..model.preserving import preserved, uncached_autocast
from ..progress import counted
from ..types import Coupling
from .gates import Gates, Rows
from .losses import moved
from .recalibrating import BATCH_NORMS
from .sampled import Sampled, none_counted, samples_in, samples_of

logger = logging.getLogger("halp_fx")

SIZE = 64
"""Samples of a row: larger batches are cut into pieces of about this size."""

LEAST = 16
"""Samples of a batch: statistics of fewer are noise, and of one there are none."""

ROWS = 4
"""Pieces, at least: what one or two say of a channel is chance."""

SHARES = 2
"""Parts of the data that steps take turns with, once all of it was looked at. Networks of 10 % of the MACs were as good
by halves in turn, and perhaps a point worse by quarters (docs/benchmarks_accuracy.md)."""


def batch_rows(
    model: nn.Module, coupling: Coupling, data: Iterable[Any], loss: Sampled, batches: int
) -> tuple[Rows | None, Iterable[Any]]:
    """The rows of as many pieces as `batches` batches hold, each divided by the root of its samples.

    Returns:
        None for the rows where nothing can be told this way: no batch norms, small or few batches, a forward that fails
        with statistics of the batch. And the batches, the ones that were looked at first.

    Raises:
        SaliencyError: no batch with finite gradients.
    """
    source = iter(data)
    seen = list(islice(source, 1))
    if not seen or not has_batch_norms(model) or (samples_in(seen[0]) or 0) < LEAST:
        return None, chain(seen, source)
    gates = Gates.of(model, coupling, loss)
    gates.statistics = True
    rows: list[torch.Tensor] = []
    lost: list[int] = []
    used = skipped = 0
    with preserved(model), uncached_autocast():
        for i, batch in enumerate(counted(chain(seen[:1], source), "score", "batches", batches)):
            if used + skipped >= batches:
                break
            number = data.number if isinstance(data, Turn) else i
            if used + skipped and len(rows) < ROWS:
                seen.append(batch)
            try:
                own = [gates.by_weights(moved(p, gates.device), number) / n**0.5 for p, n in pieces(batch)]
            except SaliencyError as error:
                if used + skipped:
                    raise
                logger.info("no values through the statistics of batches: %s", error)
                return None, chain(seen, source)
            good = [row for row in own if bool(torch.isfinite(row).all())]
            rows += good
            lost += [number] if len(good) < len(own) else []
            used, skipped = used + bool(good), skipped + (bool(own) and not good)
    if not rows:
        raise none_counted(skipped)
    if len(rows) < ROWS:
        return None, seen
    found = torch.stack(rows)
    gates.clear_masked(found, coupling.prunable)
    return Rows(found, used, skipped, "batches with their own statistics", tuple(dict.fromkeys(lost))), ()


def has_batch_norms(model: nn.Module) -> bool:
    """Whether there are statistics that are re-estimated."""
    return any(isinstance(m, BATCH_NORMS) and m.track_running_stats for m in model.modules())


@dataclass(slots=True)
class Turn:
    """The pieces of some batches that a step looks at.

    Attributes:
        data, batches: the batches, and how many of them count.
        shares, turn: it looks at every so manieth piece, beginning with this one.
        number: of the batch that the last piece was of.
    """

    data: Iterable[Any]
    batches: int
    shares: int
    turn: int
    number: int = 0

    def __iter__(self) -> Iterator[Any]:
        numbered = enumerate(islice(self.data, self.batches))
        whole = ((number, piece) for number, batch in numbered for piece, _ in pieces(batch))
        for self.number, piece in islice(whole, self.turn, None, self.shares):  # noqa: B020
            yield piece


def in_turn(data: Iterable[Any], batches: int, rows: int, turn: int) -> tuple[Turn, int]:
    """The pieces of some batches that a step looks at, and how many these are.

    Args:
        batches: of the data, that count.
        rows: pieces that these have.
        turn: number of the step. `SHARES` steps in a row look at different pieces, or fewer, so that each has `ROWS`.
    """
    shares = max(1, min(SHARES, rows // ROWS))
    return Turn(data, batches, shares, turn % shares), -(-rows // shares)


def pieces(batch: Any) -> Iterator[tuple[Any, int]]:
    """A batch in pieces of about `SIZE` samples, and how many samples each has; nothing of a batch that is too small,
    as the last of a loader may be."""
    count = samples_in(batch) or 0
    if count < 1.5 * SIZE:
        if count >= LEAST:
            yield batch, count
        return
    number = round(count / SIZE)
    ends = [count * i // number for i in range(number + 1)]
    for start, end in pairwise(ends):
        yield samples_of(batch, start, end - start), end - start
