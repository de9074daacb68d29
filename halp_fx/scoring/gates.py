"""gates: a network, its groups and batches -> for every sample the derivative of the loss by the gate of each channel.

A gate multiplies what a normalisation that a channel passes puts out (where it passes none, what the layers that
produce it do), in every layer that the group couples. Its derivative is the sum over the weights of these layers of
weight times gradient, which is what Taylor saliency adds up, here with its sign and a row for every sample. A forward
and a backward pass of a whole batch give all rows, as sums of output times gradient over places; a sample that is run
alone says whether they are right, and where they are not every sample is run alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import SaliencyError
from ..internals import tree_leaves
from ..kernels import SegmentLayout, channel_scores
from ..model.preserving import set_mode, uncached_autocast
from ..progress import counted
from ..types import ChannelGroup, Coupling
from .losses import differentiating, moved
from .magnitude import masked
from .recalibrating import by_batch
from .sampled import Sampled, none_counted, samples_in, samples_of
from .scored import Key, Weights, WeightSlots, WeightWatch, as_real

logger = logging.getLogger("halp_fx")

Drawn = Sampled | Callable[..., torch.Tensor]
"""(model, tensors by name, batch, its number) -> the loss."""

AGREES = 1e-2
"""Rows of a batch and of a sample run alone differ by rounding, which sums over many places amplify: below this share
of the largest derivative of the row."""

TOGETHER = 1024
"""Samples that are scored at most: their rows are kept until the end (100 MB for ResNet-50)."""

ALONE = 256
"""Samples that are run one by one, where batches do not show them: more cost more than they tell."""


@dataclass(slots=True)
class Rows:
    """Derivatives by gates.

    Attributes:
        rows: (samples, channels of all groups) float32, on the model's device.
        batches, skipped: that counted; that had a non-finite loss or gradient.
        lost: numbers of the batches of which something was left out for that.
        way: "batches" (all samples of a batch at once), "samples" (each alone), or "whole batches" (a row is a batch).
    """

    rows: torch.Tensor
    batches: int
    skipped: int
    way: str
    lost: tuple[int, ...] = ()


@dataclass
class Gates:
    """Runs batches on aliases of the parameters: `.grad` and `requires_grad` stay.

    Attributes:
        statistics: whether batch norms take those of the batch, and gates are differentiated through them. Modes and
            momenta are given back by whoever `preserved` the model.
    """

    model: nn.Module
    groups: Sequence[ChannelGroup]
    weights: Weights
    loss: Drawn
    statistics: bool = False
    parameters: dict[str, torch.Tensor] = field(init=False)
    buffers: dict[str, torch.Tensor] = field(init=False)
    constants: list[torch.Tensor] = field(init=False)
    _layouts: dict[frozenset[str], tuple[list[Key], SegmentLayout]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        held = self.weights.statistics
        self.parameters = {n: p for n, p in self.model.named_parameters() if n not in held}
        # What autograd cannot save is copied: tensors that were made in inference mode.
        self.buffers = {n: b.clone() for n, b in self.model.named_buffers() if b.is_inference()}
        own = (v for m in self.model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor))
        self.constants = [*(b for n, b in self.model.named_buffers() if n not in self.buffers), *own]

    @classmethod
    def of(cls, model: nn.Module, coupling: Coupling, loss: Drawn) -> Gates:
        return cls(model, coupling.prunable, Weights.of(model, coupling), loss)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters.values()), torch.device("cpu"))

    @cached_property
    def starts(self) -> dict[str, int]:
        """The column of each group's first channel."""
        ends = accumulate((g.size for g in self.groups), initial=0)
        return dict(zip((g.name for g in self.groups), ends, strict=False))

    @property
    def channels(self) -> int:
        return sum(g.size for g in self.groups)

    def rows(self, data: Iterable[Any], most: int) -> Rows:
        """All samples of at most `most` batches. The model should be `preserved` around it.

        Raises:
            SaliencyError: no batch with finite gradients.
        """
        found: list[torch.Tensor] = []
        way, used, skipped = "", 0, 0
        lost: list[int] = []
        with uncached_autocast():
            for batch in counted(data, "score", "batches", most):
                if used + skipped >= most or sum(map(len, found)) >= (ALONE if way == "samples" else TOGETHER):
                    break
                batch = moved(batch, self.device)
                number = used + skipped
                rows = None
                if not way:
                    way, rows = self._way(batch, number)
                if rows is None:
                    rows = self._batch(batch, number, way)
                good = torch.isfinite(rows).all(1)
                if not bool(good.all()):
                    lost.append(number)
                if bool(good.any()):
                    found.append(rows[good])
                    used += 1
                else:
                    skipped += 1
        if not found:
            raise none_counted(skipped)
        return Rows(torch.cat(found), used, skipped, way, tuple(lost))

    def _batch(self, batch: Any, number: int, way: str) -> torch.Tensor:
        if way == "batches":
            rows = self._together(batch, number)
            if rows is not None:
                return rows
        count = samples_in(batch)
        if way == "whole batches" or count is None:
            return self.by_weights(batch, number)[None]
        assert isinstance(self.loss, Sampled)
        if not self.loss.sound(self.model, self.parameters | self.buffers, batch, number):
            return torch.full((1, self.channels), torch.nan, dtype=torch.float32, device=self.device)
        return torch.stack(
            [self.by_weights(samples_of(batch, i), number, alone=True) for i in range(min(count, ALONE))]
        )

    def _way(self, batch: Any, number: int) -> tuple[str, torch.Tensor | None]:
        """How to tell samples apart, decided on the first batch: with labels that are drawn alike. And the batch's
        rows, if they came of that."""
        count = samples_in(batch)
        if count is None:
            return "whole batches", None
        assert isinstance(self.loss, Sampled)
        drawn = self.loss.generator.get_state()
        rows = self._together(batch, number)
        after = self.loss.generator.get_state()
        self.loss.generator.set_state(drawn)
        try:
            first = self.by_weights(samples_of(batch, 0), number, alone=True)
        except SaliencyError:  # The model does not run on one sample.
            return "whole batches", None
        finally:
            self.loss.generator.set_state(drawn)
        if rows is not None and _agree(rows[0], first):
            self.loss.generator.set_state(after)
            return "batches", rows
        if self.loss.loss is not None and count > 1:
            # A loss may run the network as it is trained, where samples share statistics.
            alone = first + self.by_weights(samples_of(batch, 1), number)
            if not _agree(self.by_weights(samples_of(batch, 0, 2), number), alone):
                return "whole batches", None
        logger.info("what samples of a batch do is not told apart: they are run one by one")
        return "samples", None

    def by_weights(self, batch: Any, number: int, variant: str = "taylor_signed", alone: bool = False) -> torch.Tensor:
        """The row of a whole batch, from the gradients of weights; NaN where the loss is not finite. `variant` is one
        of `kernels.VARIANTS`; `alone` as for `Sampled`."""
        aliases, watch, loss = self._run(batch, number, WeightWatch, alone)
        if not bool(torch.isfinite(loss)):
            return torch.full((self.channels,), torch.nan, dtype=torch.float32, device=self.device)
        met = watch.matched(self.weights, self.parameters)
        keys, layout = self.layout(frozenset(met))
        tensors = [met[name] if kind == "computed" else aliases.get(name) for kind, name in keys]
        with differentiating(f"batch {number} of data"):
            grads = gradients(loss, [t if isinstance(t, list) else [t] for t in tensors])
        return channel_scores(layout, [self.weights.value(k) for k in keys], grads, variant).float()

    def _run(
        self, batch: Any, number: int, follow: Callable[..., Any], alone: bool = False
    ) -> tuple[dict[str, torch.Tensor], Any, Any]:
        """Aliases of the parameters, what followed the forward, and the loss."""
        set_mode(self.model)
        if self.statistics:
            by_batch(self.model)
        aliases = {n: alias_of(p) for n, p in self.parameters.items()}
        watch = follow({**aliases, **self.buffers}, self.constants)
        with torch.enable_grad(), watch:
            loss = self.loss(self.model, aliases | self.buffers, batch, number, *([True] if alone else ()))
        return aliases, watch, loss

    def _together(self, batch: Any, number: int) -> torch.Tensor | None:
        """A row for each sample of a batch, from the outputs of layers; None if a layer was run in a way that does not
        show them."""
        count = samples_in(batch)
        if count == 0:
            raise SaliencyError(f"batch {number} of data has no samples: leave empty batches out")
        if count is None or self.weights.computed:
            return None
        _, taps, loss = self._run(batch, number, lambda known, _: Taps(known, self.places))
        if taps.missed:
            logger.debug("run one by one: %s", ", ".join(sorted(taps.missed)))
            return None
        rows = torch.zeros(count, self.channels, dtype=torch.float32, device=self.device)
        if not bool(torch.isfinite(loss)):
            return rows.fill_(torch.nan)
        if not taps.found or not loss.requires_grad:
            return rows
        outputs = [t.output for t in taps.found]
        with differentiating(f"batch {number} of data"):
            grads: Sequence[torch.Tensor | None] = torch.autograd.grad(loss, outputs, allow_unused=True)
        for tap, grad in zip(taps.found, grads, strict=True):
            if grad is None:
                continue
            product = (tap.output.detach().float() * grad.float()).movedim(tap.axis, -1)
            if product.shape[0] % count:
                return None
            sums = product.reshape(count, -1, product.shape[-1]).sum(1)
            for row in tap.channels:
                own = row >= 0
                rows.index_add_(1, row[own].to(self.device), sums[:, own.to(self.device)])
        return rows

    @cached_property
    def places(self) -> dict[str, list[tuple[int, torch.Tensor]]]:
        """By parameter: the dimensions along which channels of groups lie, and the columns of these."""
        found: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for group in self.groups:
            start = self.starts[group.name]
            for place in places_of(group, self.weights, frozenset(), self.parameters):
                row = torch.from_numpy(place.channels)
                found.setdefault(place.key[1], []).append((place.dim, torch.where(row >= 0, row + start, -1)))
        return found

    def clear_masked(self, rows: torch.Tensor, groups: Sequence[ChannelGroup]) -> None:
        """Zeros, in place, in the columns of channels that a mask has removed already: they go first."""
        gone = masked(self.weights, groups)
        for group in groups:
            own = rows[:, self.starts[group.name] : self.starts[group.name] + group.size]
            own[:, torch.from_numpy(gone[group.name])] = 0

    def layout(self, nodes: frozenset[str]) -> tuple[list[Key], SegmentLayout]:
        """Where the channels lie in the tensors that are scored, given which computed weights were met."""
        if nodes not in self._layouts:
            self._layouts[nodes] = self.weights.layout(
                self.groups, lambda g: places_of(g, self.weights, nodes, self.parameters)
            )
        return self._layouts[nodes]


def _agree(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether rows are the same but for rounding; those that are not finite say nothing against it."""
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return True
    return bool((a - b).abs().max() <= AGREES * b.abs().max())


def places_of(
    group: ChannelGroup, weights: Weights, nodes: frozenset[str], parameters: Mapping[str, torch.Tensor]
) -> list[WeightSlots]:
    """The affine parameters of the normalisations that the group passes, else the weights that produce it. Affine
    parameters that are all zero (a zero-initialised residual branch) say nothing about what else is in the group."""
    found = [p for p in weights.places(group, nodes) if p.key[0] == "computed" or p.key[1] in parameters]
    norms = [p for p in found if p.role == "norm"]
    if any(bool(weights.value(p.key).any()) for p in norms):
        return norms
    return [p for p in found if p.role in ("producer", "bias")]


@dataclass(frozen=True, slots=True, eq=False)
class Tap:
    """An operator's output, the axis that its channels lie along, and rows that say which of them is which channel."""

    output: torch.Tensor
    axis: int
    channels: tuple[torch.Tensor, ...]


# By function: the place of the weight's channels in the weight, that of the output's channels in the output, and the
# dimensions of an output with a batch (None: any).
_CONVOLUTIONS = {f"conv{n}d": (0, 1, n + 2) for n in (1, 2, 3)} | {
    f"conv_transpose{n}d": (1, 1, n + 2) for n in (1, 2, 3)
}
_LAYERS: dict[str, tuple[int, int, int | None]] = {
    **_CONVOLUTIONS,
    "linear": (0, -1, None),
    "batch_norm": (0, 1, None),
    "group_norm": (0, 1, None),
    "instance_norm": (0, 1, None),
    "layer_norm": (0, -1, None),
    "rms_norm": (0, -1, None),
}


class Taps(TorchFunctionMode):
    """Keeps the outputs of the operators that get the weights of interest.

    Attributes:
        found: the outputs.
        missed: weights that something else got.
    """

    def __init__(
        self, known: Mapping[str, torch.Tensor], places: Mapping[str, Sequence[tuple[int, torch.Tensor]]]
    ) -> None:
        super().__init__()
        self.found: list[Tap] = []
        self.missed: set[str] = set()
        self._known = known
        self._places = places
        self._names = {id(known[name]): name for name in places}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        names = {
            self._names[id(v)]
            for v in tree_leaves((args, kwargs))
            if isinstance(v, torch.Tensor) and id(v) in self._names
        }
        if not names or not isinstance(result, torch.Tensor) or id(result) in self._names:
            return result
        layer = _LAYERS.get(getattr(func, "__name__", ""))
        channels = self._channels(names, layer, result)
        if layer is None or channels is None or result.is_complex():
            self.missed |= names
            return result
        if not result.requires_grad:
            result = result.detach().requires_grad_()
        self.found.append(Tap(result, layer[1], channels))
        # What comes next may work in place.
        return result.clone()

    def _channels(
        self, names: set[str], layer: tuple[int, int, int | None] | None, result: torch.Tensor
    ) -> tuple[torch.Tensor, ...] | None:
        """Which channel each of the output's channels is; None where a weight says it in another way."""
        if layer is None or result.ndim < 2 or layer[2] not in (None, result.ndim):
            return None
        rows: dict[tuple[int, ...], torch.Tensor] = {}
        for name in names:
            for dim, row in self._places[name]:
                if self._known[name].ndim == 1:
                    dim = layer[0]
                if dim != layer[0] or len(row) != result.shape[layer[1]]:
                    return None
                rows[tuple(row.tolist())] = row
        # A weight and its bias say the same; two groups that share a layer say two things.
        return tuple(rows.values())


def alias_of(parameter: torch.Tensor) -> torch.Tensor:
    """The same numbers, as a leaf that can be differentiated by."""
    alias = parameter.detach()
    if alias.is_inference():
        alias = alias.clone()
    return alias.requires_grad_(alias.is_floating_point() or alias.is_complex())


def gradients(loss: torch.Tensor, tensors: Sequence[Sequence[torch.Tensor | None]]) -> list[torch.Tensor | None]:
    """The sum of the gradients by each row of tensors, None where the loss does not depend on any; those by complex
    tensors as pairs of numbers."""
    flat = list({id(t): t for row in tensors for t in row if t is not None}.values())
    if not loss.requires_grad or not flat:
        return [None] * len(tensors)
    found = torch.autograd.grad(loss, flat, allow_unused=True)
    grads = {id(t): as_real(g) for t, g in zip(flat, found, strict=True) if g is not None}
    rows = [[grads[id(t)] for t in row if t is not None and id(t) in grads] for row in tensors]
    return [torch.stack(row).sum(0) if len(row) > 1 else row[0] if row else None for row in rows]
