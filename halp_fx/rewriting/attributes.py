"""Module attributes that repeat a width (`in_channels`, `num_features`, `groups`): kept in step with the tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

from torch import nn

from ..internals import ConvNd, ConvTransposeNd, NormBase
from ..model.holding import has, held, put, with_row
from ..model.preserving import INTERNAL, modes_kept
from ..tracing.graph import of, op
from ..types import Coupling, Plan

Sync = Callable[[Any], None]


def _shape(m: Any) -> tuple[int, ...]:
    """The shape of a layer's weight. One that a hook makes before every forward is not there yet, or that of the last
    one: then what it is made of counts (`weight_orig`, `weight_v`)."""
    if "weight" not in m._parameters and "parametrizations" not in m._modules:
        made_of = [p for name, p in m._parameters.items() if name.startswith("weight") and p is not None]
        if made_of:
            return tuple(max(made_of, key=lambda p: p.ndim).shape)
    return tuple(m.weight.shape)


def _conv(m: Any) -> None:
    m.out_channels, m.in_channels = _shape(m)[0], _shape(m)[1] * m.groups


def _conv_transposed(m: Any) -> None:
    m.in_channels, m.out_channels = _shape(m)[0], _shape(m)[1] * m.groups


def _linear(m: Any) -> None:
    m.out_features, m.in_features = _shape(m)


def _bilinear(m: Any) -> None:
    m.out_features, m.in1_features, m.in2_features = _shape(m)


def _embedding(m: Any) -> None:
    m.embedding_dim = _shape(m)[1]


def _prelu(m: Any) -> None:
    m.num_parameters = _shape(m)[0]


def _recurrent(m: Any) -> None:
    gates = {"LSTM": 4, "GRU": 3}.get(m.mode, 1)
    m.hidden_size, m.input_size = m.weight_ih_l0.shape[0] // gates, m.weight_ih_l0.shape[1]
    if m.proj_size:
        m.proj_size = m.weight_hr_l0.shape[0]
    m.flatten_parameters()


def _recurrent_cell(m: Any) -> None:
    m.hidden_size, m.input_size = m.weight_hh.shape[1], m.weight_ih.shape[1]


# isinstance in this order: transposed convolutions are no subclass of the plain ones.
_SYNC: tuple[tuple[type | tuple[type, ...], Sync], ...] = (
    (ConvTransposeNd, _conv_transposed),
    (ConvNd, _conv),
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (nn.PReLU, _prelu),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent_cell),
)


# Norms have a width also without parameters and statistics: it follows what their operator was given.
_NORMS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (NormBase, "num_features"),
    ((nn.LayerNorm, nn.RMSNorm), "normalized_shape"),
    (nn.GroupNorm, "num_channels"),
)
_NORM_OPERATORS = frozenset(
    (
        *("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit"),
        *("_native_batch_norm_legit_no_training", "_batch_norm_with_update", "_batch_norm_no_update"),
        *("native_layer_norm", "_fused_rms_norm", "native_group_norm"),
    )
)


def sync_attributes(small: nn.Module, model: nn.Module, coupling: Coupling, plan: Mapping[str, Any]) -> None:
    """Bring the attributes of every module of `small` whose tensors differ in shape from `model`'s in step."""
    widths = coupling.widths(plan if isinstance(plan, Plan) else Plan(plan))
    modules, originals = dict(small.named_modules()), dict(model.named_modules())
    for edit in (*coupling.edits, *coupling.mended):
        module = modules[edit.module]
        if has(module, edit.attribute):
            size = edit.extent.at(widths) // edit.divisor
            row = held(module, edit.attribute)
            if edit.index is not None:
                size = with_row(row, [*row[: edit.index], size, *row[edit.index + 1 :]])
            elif isinstance(row, Integral):
                # A module may run its operator on the channels of a whole batch at once. It may run several times, too,
                # with an edit for each: so the original's number counts, and not what the last one left.
                row = held(originals[edit.module], edit.attribute)
                size = _in_proportion(row, edit.extent.at(coupling.widths()) // edit.divisor, size)
            put(modules.values(), module, edit.attribute, size)
    if coupling.edits or coupling.mended:
        for module in modules.values():
            _derive(module)
    _sync_norms(modules, coupling, widths)
    for new, old in zip(small.modules(), model.modules(), strict=True):
        sync = next((sync for kinds, sync in _SYNC if isinstance(new, kinds)), None)
        if sync is not None and _shapes(new) != _shapes(old):
            with modes_kept(new):
                new.eval()  # To read a weight with a spectral norm in train mode moves its buffers.
                sync(new)


def _derive(module: nn.Module) -> None:
    """Make the attributes anew that a class makes of others when it is copied: einops' layers keep the lengths of axes
    twice, are copied with one and run with the other. Trials run on copies, so it is the one that follows a width."""
    kind = type(module)
    own = any(getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in _STATE)
    if own and not kind.__module__.startswith("torch."):
        made = vars(copy.copy(module))
        vars(module).update({name: value for name, value in made.items() if name not in INTERNAL})


_STATE = ("__getstate__", "__setstate__")


def _in_proportion(value: Any, then: int, now: int) -> Any:
    """What becomes of an attribute that is a whole fraction of a size; one that is none has another meaning."""
    fits = value > 0 and then % value == 0 and (value * now) % then == 0
    return value * now // then if fits else value


def _sync_norms(modules: Mapping[str, nn.Module], coupling: Coupling, widths: Mapping[str, int]) -> None:
    """The widths that norms repeat, from what their operators took in: in proportion, for an instance norm is one of
    N * C channels. What is no such width (a subclass with a forward of its own) stays."""
    done = set()
    for node in coupling.traced.graph.nodes:
        name = of(node).module
        if node.op != "call_function" or name in done or name not in modules:
            continue
        module: Any = modules[name]
        # PyTorch takes an RMS norm to pieces on most devices: the first of them is given its input.
        if op(node) not in _NORM_OPERATORS and not isinstance(module, nn.RMSNorm):
            continue
        attribute = next((a for kinds, a in _NORMS if isinstance(module, kinds)), None)
        if attribute is None or not hasattr(module, attribute):
            continue
        extents, shape = coupling.shapes[node.args[0].name], of(node.args[0]).one.shape
        now = [e.at(widths) for e in extents]
        value = getattr(module, attribute)
        done.add(name)
        if isinstance(value, Integral):
            setattr(module, attribute, _in_proportion(value, shape[1], now[1]))
        elif tuple(value) == shape[len(shape) - len(value) :]:
            setattr(module, attribute, type(value)(now[len(now) - len(value) :]))


def follows_tensors(module: nn.Module) -> bool:
    """Whether the module's attributes are brought in step with its tensors, or with what it is given."""
    return any(isinstance(module, kinds) for kinds, _ in (*_SYNC, *_NORMS))


def implied(module: nn.Module) -> frozenset[str]:
    """Names of the attributes of PyTorch's own class that are brought in step so. What a subclass adds (where it cuts
    its weight) repeats a width as any other attribute may."""
    own = [vars(kind) for kind in type(module).__mro__ if kind.__module__.startswith("torch.")]
    names = (name for kind in own for key in ("__constants__", "__annotations__") for name in kind.get(key, ()))
    return frozenset(names) if follows_tensors(module) else frozenset()


def _shapes(module: nn.Module) -> list[tuple[int, ...]]:
    own: list[Any] = [*module._parameters.values(), *module._buffers.values()]
    parametrizations = dict(module._modules.items()).get("parametrizations")
    if isinstance(parametrizations, nn.ModuleDict):
        own += parametrizations.parameters()
    return [tuple(t.shape) for t in own if t is not None]
