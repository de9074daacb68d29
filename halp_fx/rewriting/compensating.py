"""compensate: a rewritten network, the dense one and batches -> layers that make up for the inputs that they lost.

A layer whose inputs were cut is fitted to put out what it did in the dense network, by least squares on what it gets in
the narrow one (the layer-wise reconstruction of He et al., arXiv 1707.06168). In the order of the forward: what earlier
layers could not make up for, later ones see. What is fitted are all taps of a convolution at once, so padding needs no
rule, and whatever lies between the layers that lost channels (norms, activations, depthwise convolutions, residual
sums, concatenations) is as the narrow network has it. Batch norms are re-estimated in the same forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import HalpError, PlanError, SaliencyError, few, words_of
from ..internals import NormBase, tree_leaves
from ..model.inputs import own
from ..model.naming import by_group
from ..model.preserving import only_read, preserved, random_kept, set_mode
from ..model.tensors import tensors_in
from ..scoring.joining import joined
from ..scoring.losses import NO_BATCHES, Loss, called, check_data, described, moved, passed_as
from ..scoring.recalibrating import finite, kept_statistics, measuring, norms_of, put_back
from ..scoring.regression import Fit, fitted
from ..scoring.sampled import samples_in
from ..tracing.graph import of, op
from ..types import Axis, Coupling, Plan
from .attention import projections
from .layers import LayerCall, layer_call
from .slicing import removed_slots

logger = logging.getLogger("halp_fx")

ROWS, ROWS_PER_INPUT = 8192, 4
"""Outputs of a layer that are fitted, at least: more of them change little (16,384: 0.1 points), and cost time."""

LARGEST = 2**28
"""Elements of the largest activation: all samples go through the network together (1 GiB in float32)."""

SAMPLES = 1024
"""Samples that layers are fitted to at most, unless asked for more."""

FURTHER = "with all of them fitted, the network's outputs were further from the dense one's than without"
"""Layers are fitted one by one, and what each makes up for need not add up."""

FEW = 128
"""Samples below which it is said that more would do better (docs/compensation.md)."""


@dataclass(frozen=True, slots=True)
class Refit:
    """One layer.

    Attributes:
        weight: its name. Queries, keys and values that an attention projects with one weight are a layer each.
        inputs: input channels (of one convolution group) that were, and that are left.
        ridge: chosen by the samples that were left out; infinite where none helped and the weight stayed.
        before, after: mean square of what misses of the dense outputs, on those samples.
    """

    weight: str
    inputs: tuple[int, int]
    ridge: float
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Compensation:
    """What `compensate` did.

    Attributes:
        layers: in the order of the forward.
        left: weight -> why it stayed as it was.
        samples: that the layers were fitted to.
        failed: why none was fitted; "" unless it went wrong.
        asked: whether the caller wanted it, and so wants to know what could not be done.
        drawn: there was no data, and the samples are images that were drawn.
    """

    layers: tuple[Refit, ...]
    left: Mapping[str, str]
    samples: int
    failed: str = ""
    asked: bool = True
    drawn: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of a report should know."""
        found = [self.failed] if self.failed else []
        if self.drawn and self.layers:
            found.append("no data was given: layers were compensated with images that were drawn; data does it better")
        if not self.asked:
            return tuple(found)
        if self.layers and self.samples < FEW and not self.drawn:
            found.append(
                f"layers were compensated with {self.samples} samples: strong regularisation held them near what they "
                f"were; {FEW} or more do better"
            )
        still = [layer.weight for layer in self.layers if layer.ridge == float("inf")]
        if still:
            found.append(f"{len(still)} layers were not compensated, samples left out were not helped: {few(still, 5)}")
        if self.left:
            named = [f"{name} ({why})" for name, why in self.left.items()]
            found.append(f"{len(named)} layers could not be compensated: {few(named, 5)}")
        return tuple(found)


def compensate(
    small: nn.Module,
    model: nn.Module,
    plan: Plan | Mapping[str, Any],
    data: Iterable[Any],
    *,
    coupling: Coupling,
    loss: Loss | None = None,
    samples: int = SAMPLES,
    recalibrate: bool = True,
) -> Compensation:
    """As `halp_fx.compensate`, for a coupling at hand."""
    plan = by_group(plan, coupling)
    cut = _cut(small, model, plan, coupling)
    if not cut:
        return Compensation((), {}, 0)
    check_data(data)
    if data is None:
        raise SaliencyError("layers cannot be compensated without data: pass batches of inputs, such as a DataLoader")
    _check(small, model, plan, coupling)
    run, count = _runner(data, loss, most_together(coupling, samples), next(model.parameters()).device)
    norms = norms_of(small) if recalibrate else []
    dense = _Dense({id(model.get_parameter(name)): name for name in cut}, cut)
    with torch.no_grad(), random_kept():
        with preserved(model), random_kept(seed=0):
            set_mode(model)
            with only_read(model, passed_as(None, loss)), dense:
                wanted = run(model)
        narrow = _Narrow(dense, small, _normalised(coupling) if recalibrate else set(), count > 1)
        weights = [(p, p.detach().clone()) for p in small.parameters()]
        statistics = kept_statistics(norms)

        def undo(to: Any) -> None:
            put_back(norms, to)
            for parameter, value in weights:
                parameter.copy_(value)

        try:
            with measuring(small, norms), random_kept(seed=0):
                before = _distance(run(small), wanted)
            _check_finite(norms)
            without = kept_statistics(norms)
            with measuring(small, norms), random_kept(seed=0), narrow:
                after = _distance(run(small), wanted)
        except BaseException:
            undo(statistics)
            raise
        if after > before:
            undo(without)
            narrow.left |= dict.fromkeys((layer.weight for layer in narrow.layers), FURTHER)
            narrow.layers.clear()
    left = {**dense.left, **narrow.left}
    done = {layer.weight for layer in narrow.layers}
    left |= {n: "the forward computes its weight, or did not run it" for n in cut if n not in left and n not in done}
    return Compensation(tuple(narrow.layers), left, count)


def _check_finite(norms: list[NormBase]) -> None:
    """Raises SaliencyError where statistics are NaN or infinite."""
    if norms and not finite(norms):
        raise SaliencyError("layers cannot be compensated: the samples make NaN or infinite statistics of batch norms")


def _check(small: nn.Module, model: nn.Module, plan: Plan, coupling: Coupling) -> None:
    """Raises PlanError unless the weights of the network are as narrow as the plan has them."""
    known, there = dict(model.named_parameters()), dict(small.named_parameters())
    for axis, slots in removed_slots(coupling, plan).items():
        if axis.tensor in known and axis.tensor in there:
            want, got = known[axis.tensor].shape[axis.dim] - len(slots), there[axis.tensor].shape[axis.dim]
            if want != got:
                raise PlanError(
                    f"the network was made by another plan: {axis} has {got} slots, the plan leaves {want}. Pass the "
                    "plan that it was rewritten with"
                )


def _cut(small: nn.Module, model: nn.Module, plan: Plan, coupling: Coupling) -> dict[str, np.ndarray]:
    """Weights that lost inputs, in the order of the forward, and the output channels that they keep."""
    gone = removed_slots(coupling, plan)
    there, known = dict(small.named_parameters()), dict(model.named_parameters())
    found: dict[str, np.ndarray] = {}
    for member in (m for group in coupling.groups for m in group.members):
        name = member.axis.tensor
        if member.role == "consumer" and member.axis in gone and name in there and name in known:
            # Transposed convolutions have their inputs first.
            out = 1 if member.axis.dim == 0 and known[name].ndim > 1 else 0
            stays = np.ones(known[name].shape[out], bool)
            stays[gone.get(Axis(name, out), np.empty(0, np.int64))] = False
            found[name] = np.flatnonzero(stays)
    return found


def most_together(coupling: Coupling, samples: int) -> int:
    """Samples that may go through the network together."""
    graph = coupling.traced.graph
    batch = next((of(n).one.shape[0] for n in graph.nodes if n.op == "placeholder" and of(n).one.shape), 1)
    sizes = [prod(of(n).one.shape) for n in graph.nodes if n.op == "call_function" and of(n).spec is not None]
    return max(1, min(samples, LARGEST * batch // max(sizes, default=1)))


def _distance(outputs: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """How far outputs are from others, each relative to its size; zero where they do not compare."""
    if [o.shape for o in outputs] != [w.shape for w in wanted]:
        return 0.0
    parts = [
        float((o.double() - w.double()).square().sum() / w.double().square().sum().clamp_min(1e-300))
        for o, w in zip(outputs, wanted, strict=True)
    ]
    return sum(part for part in parts if isfinite(part))


def _runner(
    data: Iterable[Any], loss: Loss | None, most: int, device: torch.device
) -> tuple[Callable[[nn.Module], list[torch.Tensor]], int]:
    """What runs a network on the samples and returns what it puts out, and how many samples they are. With a loss of
    the caller's, that is one batch."""
    try:
        if loss is None:
            inputs, count = joined(data, most, device)
        else:
            inputs, count = moved(next(iter(data)), device), 1
    except StopIteration as error:
        raise SaliencyError(f"layers cannot be compensated: {NO_BATCHES}") from error

    def run(network: nn.Module) -> list[torch.Tensor]:
        outputs: list[Any] = []
        handle = network.register_forward_hook(lambda _module, _args, output: outputs.append(output))
        try:
            called(network, inputs) if loss is None else loss(network, own(inputs))
        except (HalpError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise SaliencyError(
                f"layers cannot be compensated: the forward of {described(inputs)} failed with "
                f"{type(error).__name__}: {words_of(error)}"
            ) from error
        finally:
            handle.remove()
        return [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]

    return run, count if loss is None else samples_in(inputs) or 1


def _normalised(coupling: Coupling) -> set[str]:
    """Weights of layers behind which a batch norm takes any constant away."""
    found = set()
    for node in coupling.traced.graph.nodes:
        behind = [op(user) for user in node.users]
        if op(node) == "convolution" and behind and all("batch_norm" in name for name in behind):
            found.add(str(node.args[1].target))
    return found


_Key = tuple[str, int]
"""A layer: its weight, and which of the layers it is whose weights are one tensor, one below the other (the projections
of queries, keys and values in an attention)."""


class _Layers(TorchFunctionMode):
    """Follows the layers that get certain weights.

    Attributes:
        left: weights that stay as they are, and why.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.left: dict[str, str] = {}
        self._names = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        done = set()
        for weight, part, projection in projections(func, args, kwargs):
            inside = self._names.get(id(weight))
            if inside is not None:
                done.add(inside)
                self.before((inside, part), projection)
                self.after((inside, part), projection, projection.result())
        names = {self._names[id(v)] for v in tree_leaves((args, kwargs)) if id(v) in self._names}
        # Properties of a weight (its shape, its device) are read through functions, too.
        names = set() if getattr(func, "__name__", "").startswith("__") else names - done
        calls = {n: layer_call(func, args, kwargs) for n in names}
        for name, call in calls.items():
            if call is not None:
                self.before((name, 0), call)
        result = func(*args, **kwargs)
        for name, call in calls.items():
            if call is not None:
                self.after((name, 0), call, result)
            elif any(isinstance(v, torch.Tensor) for v in tree_leaves(result)):
                self.left.setdefault(name, f"{getattr(func, '__name__', func)} takes its weight")
        return result

    def before(self, layer: _Key, call: LayerCall) -> None:
        """A layer is about to run."""

    def after(self, layer: _Key, call: LayerCall, result: torch.Tensor) -> None:
        """A layer has run."""


def _enough(call: LayerCall) -> int:
    """Rows that a layer is fitted to."""
    return max(ROWS, ROWS_PER_INPUT * call.weight[0].numel())


class _Dense(_Layers):
    """Keeps what layers put out in the dense network, at some places.

    Attributes:
        outputs: (rows, kept outputs) by layer.
        rows: which rows these are, and of how many.
        widths: input channels by layer.
    """

    def __init__(self, names: Mapping[int, str], kept: Mapping[str, np.ndarray]) -> None:
        super().__init__(names)
        self.outputs: dict[_Key, torch.Tensor] = {}
        self.rows: dict[_Key, tuple[torch.Tensor, int]] = {}
        self.widths: dict[_Key, int] = {}
        self._kept = kept
        self._draw = torch.Generator().manual_seed(0)

    def after(self, layer: _Key, call: LayerCall, result: torch.Tensor) -> None:
        if layer in self.rows or result.is_complex():
            self.left[layer[0]] = "it runs several times" if layer in self.rows else "it computes with complex numbers"
            return
        total, most = call.rows(), _enough(call)
        rows = torch.arange(total, device="cpu")
        if total > most:
            rows = torch.randperm(total, generator=self._draw, device="cpu")[:most].sort().values
        rows = rows.to(result.device)
        self.rows[layer] = rows, total
        self.widths[layer] = call.weight.shape[1]
        (name, part), outputs = layer, call.weight.shape[0]
        kept = self._kept[name] - part * outputs
        kept = kept[(kept >= 0) & (kept < outputs)]
        self.outputs[layer] = call.outputs(result, rows)[:, torch.as_tensor(kept, device=result.device)]


class _Narrow(_Layers):
    """Fits layers of the narrow network before they run.

    Attributes:
        layers: what was done.
    """

    def __init__(self, dense: _Dense, small: nn.Module, normalised: set[str], judged: bool) -> None:
        wanted = {name for name, _ in dense.outputs if name not in dense.left}
        super().__init__({id(small.get_parameter(name)): name for name in wanted})
        self.layers: list[Refit] = []
        self._dense = dense
        self._normalised = normalised
        self._judged = judged

    def before(self, layer: _Key, call: LayerCall) -> None:
        name, _ = layer
        rows, total = self._dense.rows[layer]
        wanted = self._dense.outputs.pop(layer)
        if call.rows() != total:
            self.left[name] = "it puts out another number of places than in the dense network"
            return
        most = _enough(call)
        if len(rows) > most:  # As many as the dense layer, which has more inputs, would need.
            places = torch.linspace(0, len(rows) - 1, most, dtype=torch.float32, device=rows.device).long()
            rows, wanted = rows[places], wanted[places]
        inputs = call.inputs(rows).double()
        missing = wanted.double() - call.applied(inputs)
        if not bool(torch.isfinite(missing).all() and torch.isfinite(inputs).all()):
            self.left[name] = "what it gets or puts out is not finite"
            return
        centred = call.bias is not None or name in self._normalised
        groups = zip(inputs.chunk(call.groups, 1), missing.chunk(call.groups, 1), strict=True)
        fits = [fitted(x, y, centred, self._judged) for x, y in groups]
        call.change(torch.cat([f.change for f in fits], 1), torch.cat([f.shift for f in fits]))
        self.layers.append(_refit(name, (self._dense.widths[layer], call.weight.shape[1]), fits))


def _refit(name: str, inputs: tuple[int, int], fits: Sequence[Fit]) -> Refit:
    count = len(fits)
    ridge = min(f.ridge for f in fits)
    return Refit(name, inputs, ridge, sum(f.before for f in fits) / count, sum(f.after for f in fits) / count)
