"""score: channel groups + data -> saliency: what the groups are worth at every width, and which channels stay.

With data, the Fisher information of the channels that go (`fisher`). Or scores of channels that add up: first-order
Taylor (Molchanov et al., arXiv 1906.10771; summed over coupled layers before the absolute value as in HALP, arXiv
2110.10811, section 3.2): for a channel that passes a normalisation |sum g_gamma*gamma + g_beta*beta|, otherwise
|sum w*g| over the weights that produce it; averaged over batches. Without data: the L2 norm of the weights that produce
the channel, relative to its group's mean, since norms of different layers do not compare. Weights are those that
operators get (`scored`). Groups without a signal are named and ranked by magnitude.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arguments import whole
from ..errors import SaliencyError, few
from ..model.checks import check_coupling, check_model
from ..model.preserving import only_read, preserved, uncached_autocast
from ..progress import counted
from ..types import Coupling, Plan, scored_name
from .batchwise import batch_rows
from .callables import Importance, answer_of, asked, check_importance, scores_of
from .fisher import fisher_values
from .gates import Gates, Rows
from .losses import Loss, LossFn, batch_loss, check_data, check_loss, loss_of, moved, passed_as
from .magnitude import magnitudes, masked, split
from .sampled import Sampled, batches_called, none_counted
from .scored import Weights
from .values import WidthValues

logger = logging.getLogger("halp_fx")


MAX_BATCHES = 64
"""Batches used for one scoring; further ones change the ranking of channels little."""

SILENT = 1e-10
"""Scores below this share of the highest of all are rounding: they stand for no signal."""

EVENNESS = 1.0
"""Weight of even widths beside the Fisher information. It says what a network loses at once; what it can learn again
depends on layers that are not much narrower than their neighbours. At 10 % of the MACs inverted residuals lost 3.5
points against uniform widths without, and won 1.9 with it (docs/benchmarks_accuracy.md)."""

MEMORY = 0.5
"""Weight of earlier scorings where rows are few: the mean square of 16 rows is good to a third of itself, and a step
changes a network less than that. At 10 % of the MACs 1.5 points better in the mean of six cells than none; 0.8 is not
told apart from it (docs/benchmarks_accuracy.md)."""


@dataclass(frozen=True)
class Saliency:
    """Scores of every group that may shrink.

    Attributes:
        scores: group name -> float64 array of shape (size,), not negative.
        kind: "fisher", "taylor", "magnitude", or "custom".
        batches: batches that counted.
        skipped: batches left out because their loss or gradients were not finite.
        lost: numbers (from 0) of the batches of which something was left out for that, also by earlier steps.
        silent: groups without a signal. Their scores are weight magnitudes, with the mean that the others have: they
            rank the group's channels, and say nothing about how wide it should be.
        values: group name -> its order of removal and its value at every width, where that is no sum of scores.
        evenness: weight of the value that even widths have of themselves (`pruning.evenness`).
        memory: weight of what the scoring before a cut said of the channels that are left (`recalling`).
        rows: pieces of batches that a scoring of all data has, where scores are remembered; a step may do with a share
            of them (`batchwise.in_turn`).
        uniform: scores only say which channels stay; groups become equally narrow.
        dropping: branch -> what the network loses without it, measured, as a multiple of what all groups are worth
            (`pruning.dropping`).
    """

    scores: Mapping[str, np.ndarray]
    kind: str
    batches: int = 0
    skipped: int = 0
    silent: tuple[str, ...] = ()
    values: Mapping[str, WidthValues] = field(default_factory=dict)
    evenness: float = 0.0
    memory: float = 0.0
    rows: int = 0
    uniform: bool = False
    dropping: Mapping[str, float] = field(default_factory=dict)
    lost: tuple[int, ...] = ()

    @cached_property
    def known(self) -> dict[str, WidthValues]:
        """What every group is worth at every width: `values`, or the sum of its highest scores."""
        return {n: self.values[n] if n in self.values else WidthValues.of_scores(s) for n, s in self.scores.items()}

    @property
    def whole(self) -> float:
        """What all groups are worth, added up; without what branches add, and groups without a signal."""
        added = scored_name("")
        own = {n: s for n, s in self.scores.items() if n not in self.silent and not n.startswith(added)}
        return sum(float(self.values[n].value[-1] if n in self.values else s.sum()) for n, s in own.items())

    @property
    def without(self) -> dict[str, float]:
        """Branch -> what is lost without it, in the unit of the values."""
        whole = self.whole if self.dropping else 0.0
        return {name: share * whole for name, share in self.dropping.items()}

    def recalling(self, earlier: Saliency, step: Plan) -> Saliency:
        """The mean with what was said before a step, weighted by `memory`, of the channels that the step kept. Groups
        stay as they are that have no signal in either, or that are others now.

        Args:
            earlier: of the network before the step; itself such a mean.
            step: what it kept of that network; all of the groups that it does not name.
        """
        lost = tuple(sorted({*earlier.lost, *self.lost}))
        if not self.memory:
            return replace(self, lost=lost) if lost else self
        scores = dict(self.scores)
        for name, now in self.scores.items():
            before = earlier.scores.get(name)
            if before is None or name in (*self.silent, *earlier.silent):
                continue
            if name in step:
                before = before[list(step[name])] if len(before) > max(step[name]) else before[:0]
            if len(before) == len(now):
                scores[name] = (1 - self.memory) * now + self.memory * before
        return replace(self, scores=scores, rows=earlier.rows, lost=lost)


def score(
    model: nn.Module,
    coupling: Coupling,
    data: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    importance: Importance | None = None,
    *,
    loss: Loss | None = None,
    batches: int = MAX_BATCHES,
) -> Saliency:
    """Saliency per channel of every group that may shrink. The model, its gradients included, stays as it is.

    Args:
        model: the network that `coupling` describes; it is run in eval mode (a `loss` may set another).
        coupling: from `couple`.
        data: batches, which are moved to the model's device.
        loss_fn: (output, target) -> scalar loss, for batches of (input, target). The input may be a tensor, a tuple or
            list (positional arguments), or a dict (keyword arguments). "fisher" works without any loss: batches are
            then inputs, or pairs of which the first is the input.
        importance: "fisher", "batches" or "taylor" (these need data), "magnitude", None or "auto" for fisher with data
            and magnitude without, or a callable from a group, or from a group and the model as it stands, to `size`
            scores or to `WidthValues`. "batches" is the Fisher information at the grain of batches (`batchwise`); where
            there are no batch norms, or small or few batches, it is "fisher".
        loss: instead of `loss_fn`, for batches of any kind: (model, batch) -> scalar, or a dict of losses that are
            added up (detectors). It may call `model.train()`: modes and statistics are given back.
        batches: how many are used at most.

    Raises:
        SaliencyError: a loss without data, "taylor" without a loss, a batch that does not fit, no batch with finite
            gradients, wrong scores, no signal in any group, or a loss that writes to parameters (they are as before).
    """
    found = scored(model, coupling, data, loss_fn, importance, loss=loss, batches=batches)
    if found.lost:
        logger.warning("saliency: %s", left_out(found.lost))
    return found


def left_out(lost: Sequence[int]) -> str:
    """What to say of batches of which something was left out."""
    what = "what is not finite there (the loss, gradients, or what the network puts out)"
    return f"{batches_called(lost)}: {what} was left out"


def scored(
    model: nn.Module,
    coupling: Coupling,
    data: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    importance: Importance | None = None,
    *,
    loss: Loss | None = None,
    batches: int = MAX_BATCHES,
) -> Saliency:
    """As `score`, for those who say themselves what was left out."""
    check_model(model)
    check_coupling(coupling)
    check_data(data)
    check_loss(data, loss_fn, loss)
    check_importance(importance)
    batches = whole("batches", batches, SaliencyError)
    groups = coupling.prunable
    with torch.inference_mode(False), only_read(model, passed_as(loss_fn, loss)):
        if callable(importance):
            ask = asked(importance, model)
            answers = {g.name: answer_of(ask, g) for g in groups}
            scores = {g.name: scores_of(g, answers[g.name]) for g in groups}
            values = {name: answer for name, answer in answers.items() if isinstance(answer, WidthValues)}
            return heard(Saliency(scores, "custom", values=values), model, coupling)
        kind = importance if importance not in (None, "auto") else "magnitude" if data is None else "fisher"
        if kind == "magnitude":
            return heard(Saliency(magnitudes(Weights.of(model, coupling), groups), kind), model, coupling)
        if data is None:
            raise SaliencyError(
                f"importance={kind!r} needs data: pass batches, or importance='magnitude', which needs none"
            )
        if kind == "batches":
            rows, data = batch_rows(model, coupling, data, Sampled(loss_fn, loss), batches)
            if rows is not None:
                found = replace(_of_gates(rows, coupling), memory=MEMORY, rows=len(rows.rows))
                return heard(found, model, coupling)
        if kind in ("fisher", "batches"):
            return heard(_fisher(model, coupling, data, Sampled(loss_fn, loss), batches), model, coupling)
        if loss_fn is None and loss is None:
            raise SaliencyError("importance='taylor' needs loss_fn (or loss); 'fisher' needs none")
        return heard(_taylor(model, coupling, data, loss_of(loss_fn, loss), batches), model, coupling)


def heard(found: Saliency, model: nn.Module, coupling: Coupling) -> Saliency:
    """What was found, with the groups named that have no signal: scores of zero, or, if they are the same everywhere,
    all of them.

    Raises:
        SaliencyError: all scores are zero.
    """
    scores = found.scores
    if not scores:
        return found
    highest = max(float(s.max()) for s in scores.values())
    if highest <= 0:
        raise SaliencyError(_no_signal(found, coupling))
    # A branch that adds nothing is known to: it goes first. What is in it stands for itself.
    added = {g.name for g in coupling.prunable if g.name.startswith(scored_name(""))}
    rounding = SILENT**2 if found.kind == "fisher" else SILENT  # Its scores are squares.
    silent = tuple(name for name, s in scores.items() if name not in added and s.max() <= rounding * highest)
    if len(scores) > 1 and all((s == highest).all() for s in scores.values()):
        silent = tuple(name for name in scores if name not in added)
    if not silent:
        return found
    loud = [float(s.mean()) for name, s in scores.items() if name not in silent] or [highest]
    groups = [g for g in coupling.prunable if g.name in silent]
    ranked = magnitudes(Weights.of(model, coupling), groups)
    # Where the magnitudes are zero, too, a channel is as good as the next.
    neutral = {name: float(np.mean(loud)) * (s if s.max() > 0 else np.ones_like(s)) for name, s in ranked.items()}
    values = {name: v for name, v in found.values.items() if name not in silent}
    return replace(found, scores={**scores, **neutral}, silent=silent, values=values)


def _no_signal(found: Saliency, coupling: Coupling) -> str:
    what = f"no signal: every score is zero in all {len(found.scores)} groups ({few(list(found.scores), 6)})"
    if found.kind == "custom":
        return f"{what}. importance must tell at least some channels from zero"
    if found.kind == "magnitude":
        return f"{what}: the weights that produce them are zero. Load or train the model first"
    return (
        f"{what}: the loss does not depend on them. A zero-initialised classifier, a loss of a detached output, or a "
        "forward under no_grad does that: train the last layers first, or pass importance='magnitude'"
    )


def _taylor(model: nn.Module, coupling: Coupling, data: Iterable[Any], loss: Loss, batches: int) -> Saliency:
    gates = Gates.of(model, coupling, partial(batch_loss, loss=loss))
    total: torch.Tensor | None = None
    lost: list[int] = []
    used = 0
    with preserved(model), uncached_autocast():
        for batch in counted(data, "score", "batches", batches):
            number = used + len(lost)
            if number >= batches:
                break
            step = gates.by_weights(moved(batch, gates.device), number, "taylor")
            if not bool(torch.isfinite(step).all()):
                lost.append(number)
                continue
            total = step.double() if total is None else total + step
            used += 1
    if total is None:
        raise none_counted(len(lost))
    scores = split(total / used, coupling.prunable)
    for name, gone in masked(gates.weights, coupling.prunable).items():
        scores[name][gone] = 0
    return Saliency(scores, "taylor", used, len(lost), lost=tuple(lost))


def _fisher(model: nn.Module, coupling: Coupling, data: Iterable[Any], loss: Sampled, batches: int) -> Saliency:
    values, found = fisher_values(model, coupling, data, loss, batches)
    # What each channel is worth alone is for those who look at channels.
    return replace(_of_gates(found, coupling), values=values)


def _of_gates(found: Rows, coupling: Coupling) -> Saliency:
    """The Fisher information of each channel's gate alone."""
    scores = split(found.rows.double().square().mean(0) / 2, coupling.prunable)
    return Saliency(scores, "fisher", found.batches, found.skipped, evenness=EVENNESS, lost=found.lost)
