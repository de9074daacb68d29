"""sampled: data and a loss -> batches with a loss whose gradients are those of the Fisher information.

Labels of the data say what the network should do; how much its outputs change when channels go is a question about
what it does. So labels are drawn from the network where its outputs say how: of a classifier, also of pixels, from its
softmax. Otherwise the caller's loss of the caller's labels stands in for them (the empirical Fisher), and where there
is no loss at all, a random direction of the outputs. Where classes may be the last dimension as well (as many tokens as
classes), the loss tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import SaliencyError, few
from ..internals import tree_flatten, tree_leaves, tree_unflatten
from ..model.tensors import tensors_in
from .losses import NO_BATCHES, Loss, LossFn, batch_loss, called, inputs_of, pair_of, total

SHIFTED, MOSTLY = 1e-3, 0.9
"""Derivatives by the scores of a sample cancel but for this share of their sizes, or those by the scores of own classes
are negative in more than this share: then a loss takes dimension 1 for classes."""

HELD_OUT = 4
"""One batch, or sample, of so many is held out for what compares networks, at most."""


@dataclass(slots=True)
class Sampled:
    """The loss of a batch, summed over its samples.

    Attributes:
        loss_fn, loss: the caller's; neither for data without labels.
        generator: what labels are drawn with; on the CPU, so that every device draws the same.
        kind: what was differentiated, in words; known after the first batch.
        scores: whether `loss_fn` takes dimension 1 for classes; None where nobody had to ask.
    """

    loss_fn: LossFn | None = None
    loss: Loss | None = None
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    kind: str = ""
    scores: bool | None = None

    def __call__(
        self, model: nn.Module, tensors: Mapping[str, torch.Tensor], batch: Any, number: int, alone: bool = False
    ) -> torch.Tensor:
        """The loss with `tensors` in place of the model's, as `losses.batch_loss`; NaN where the caller's is.

        Args:
            alone: it is one sample of a batch, of which the caller's loss may have nothing to say (all pixels ignored).

        Raises:
            SaliencyError: as `batch_loss`.
        """
        return batch_loss(model, tensors, batch, number, self._loss(alone))

    def sound(self, model: nn.Module, tensors: Mapping[str, torch.Tensor], batch: Any, number: int) -> bool:
        """Whether the loss of a whole batch is finite. It draws nothing that counts."""
        drawn = self.generator.get_state()
        try:
            with torch.no_grad():
                return bool(torch.isfinite(self(model, tensors, batch, number)))
        finally:
            self.generator.set_state(drawn)

    def _loss(self, alone: bool) -> Loss:
        if self.loss is not None:
            self.kind = "the loss of the data's labels"
            return _summed(self.loss)
        if self.loss_fn is None:
            return lambda model, batch: self._drawn(called(model, inputs_of(batch)), None)
        given = self.loss_fn

        def drawn(model: nn.Module, batch: Any) -> torch.Tensor:
            inputs, target = pair_of(batch)
            output = called(model, inputs)
            if self.scores is None and _categories(output, target) and _last_may_be(output):
                self.scores = takes_scores(given, output, target)
            own = self._drawn(output, target) if self.scores is not False else None
            if own is not None:
                # It is not differentiated, but one that does not fit, or is NaN, should be heard of.
                if not alone and not bool(torch.isfinite(total(given(output, target)))):
                    return own * torch.nan
                return own
            self.kind = "the loss of the data's labels"
            return total(given(output, target)) * (samples_in(batch) or 1)

        return drawn

    def _drawn(self, output: Any, target: Any) -> torch.Tensor | None:
        """The loss of labels drawn from the outputs; None where the outputs and the targets do not say how."""
        if _categories(output, target) and (target is not None or output.ndim == 2):
            self.kind = "labels drawn from the network's softmax"
            if not bool(torch.isfinite(output).all()):
                lost: torch.Tensor = output.detach().sum() * torch.nan
                return lost
            logits = output.float().movedim(1, -1).reshape(-1, output.shape[1])
            chances = torch.softmax(logits.detach(), 1).cpu()
            labels = torch.multinomial(chances, 1, generator=self.generator)[:, 0].to(output.device)
            drawn: torch.Tensor = nn.functional.cross_entropy(logits, labels, reduction="sum")
            return drawn
        if target is not None:
            return None
        self.kind = "random directions of the network's outputs"
        parts = [t for t in tensors_in(output) if t.is_floating_point()]
        directions = [
            torch.randn(t.shape, generator=self.generator, dtype=torch.float32, device="cpu").to(t.device)
            for t in parts
        ]
        scaled = [
            (t.float() * d).sum() / t.detach().float().square().mean().sqrt().clamp_min(1e-12)
            for t, d in zip(parts, directions, strict=True)
        ]
        return torch.stack(scaled).sum() if scaled else torch.zeros((), dtype=torch.float32, device="cpu")


def _categories(output: Any, target: Any) -> bool:
    """Whether an output has the shape of class scores, and a target that of classes."""
    return (
        isinstance(output, torch.Tensor)
        and output.is_floating_point()
        and output.ndim >= 2
        and output.shape[1] > 1
        and (target is None or _fits(target, output))
    )


def _last_may_be(output: torch.Tensor) -> bool:
    """Whether classes may as well be the last dimension."""
    return output.ndim > 2 and output.shape[1] == output.shape[-1]


def takes_scores(loss_fn: LossFn, output: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether a loss takes an output for scores of classes (dimension 1): all of a sample's may rise alike without a
    change (softmax), or the score of its class should rise (sigmoids, log-probabilities). Where it does not say, it
    does."""
    scores = output.detach()
    scores = (scores if scores.dtype is torch.float64 else scores.float()).requires_grad_()
    try:
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(total(loss_fn(scores, target)), scores, allow_unused=True)
    except Exception:  # It is called again, and then said.
        return True
    if grad is None or not bool(torch.isfinite(grad).all()):
        return True
    size = grad.abs().sum(1)
    if bool((grad.sum(1).abs() <= SHIFTED * size).all()):
        return True
    classes = target.long().to(grad.device)
    known = (classes >= 0) & (classes < grad.shape[1]) & (size > 0)
    if not bool(known.any()):
        return True
    own = grad.gather(1, classes.clamp(0, grad.shape[1] - 1).unsqueeze(1)).squeeze(1)
    return float((own[known] <= 0).float().mean()) > MOSTLY


def _fits(target: Any, output: torch.Tensor) -> bool:
    """Whether a target names one category for each place of an output (samples, categories, …)."""
    integers = isinstance(target, torch.Tensor) and not (target.is_floating_point() or target.is_complex())
    return integers and tuple(target.shape) == (output.shape[0], *output.shape[2:])


def _summed(loss: Loss) -> Loss:
    """A caller's loss is a mean over the samples of a batch."""

    def of(model: nn.Module, batch: Any) -> Any:
        value, count = loss(model, batch), samples_in(batch) or 1
        total(value)  # It says what is no loss, before it is multiplied.
        if isinstance(value, Mapping):
            return {name: part * count for name, part in value.items()}
        if isinstance(value, tuple | list):
            return [part * count for part in value]
        return value * count

    return of


def batches_called(numbers: Sequence[int]) -> str:
    """Batches of the caller's data, by their numbers, in words."""
    return f"batch{'es' if len(numbers) > 1 else ''} {few([str(n) for n in numbers], 8)} of data (counted from 0)"


def none_counted(skipped: int) -> SaliencyError:
    """The error where no batch had finite gradients."""
    if not skipped:
        return SaliencyError(NO_BATCHES)
    return SaliencyError(
        f"all {skipped} batches had a loss or gradients that are not finite: check the inputs, the loss, and whether "
        "the training diverged"
    )


def samples_in(batch: Any) -> int | None:
    """How many samples a batch has: the common length of all its tensors' first dimension and of the lists that hold
    no such tensors. None if they differ."""
    lengths = {leaf.shape[0] for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.ndim}
    return lengths.pop() if len(lengths) == 1 else None


def samples_of(batch: Any, first: int, count: int = 1) -> Any:
    """Some samples of a batch, as a batch."""
    leaves, spec = tree_flatten(batch)
    cut = [t[first : first + count] if isinstance(t, torch.Tensor) and t.ndim else t for t in leaves]
    return tree_unflatten(cut, spec)


def divided(batches: Sequence[Any], at: Callable[[int], int], why: str) -> tuple[list[Any], list[Any]]:
    """The samples of each batch before a place, and those after it.

    Args:
        at: number of its samples -> the place.
        why: they are divided, in words.

    Raises:
        SaliencyError: there are no batches, or too few samples in one to hold a part of them out.
    """
    counts = [samples_in(batch) or 0 for batch in batches]
    if min(counts, default=0) < HELD_OUT:
        raise SaliencyError(
            f"{why}, and there are {len(batches)} batches of {counts} samples: pass {HELD_OUT} batches or more"
        )
    pairs = [(batch, at(count), count) for batch, count in zip(batches, counts, strict=True)]
    return [samples_of(b, 0, i) for b, i, _ in pairs], [samples_of(b, i, n - i) for b, i, n in pairs]
