"""A pruned network, as it stands -> a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..errors import CheckpointError
from ..model.checks import check_model
from ..model.tensors import every_tensor, first_names, signature
from ..reporting.report import Report
from ..rewriting.descent import origin_of
from ..types import Origin
from .checkpoint import Checkpoint, State, StoredOrigin, filled, write


def save(small: nn.Module, path: str | Path) -> None:
    """Write a pruned network to one safetensors file, from which `halp_fx.load` restores it bit by bit.

    The file is replaced whole: whoever reads it, or a crash, meets the old or the new one.

    Args:
        small: what `prune` or `rewrite` returned, trained since or not, in any dtype, on any device.
        path: by custom ending in ".safetensors".

    Raises:
        CheckpointError: it does not come from halp_fx, was changed since it was pruned, or holds what only pickle
            could save.
        ModelError: it is wrapped (`torch.compile`, data parallel).
        OSError: the file cannot be written.
    """
    write(_taken(small), Path(path))


def checked(small: nn.Module) -> Origin:
    """Where a network comes from that can be saved.

    Raises:
        CheckpointError, ModelError: it cannot be, as `save` says.
    """
    check_model(small)
    origin = origin_of(small)
    if origin is None:
        raise CheckpointError(
            f"this {type(small).__name__} does not come from halp_fx.prune or halp_fx.rewrite, so nothing says how to "
            "build it again: save its state_dict, as of any network"
        )
    changed = origin.made.differences(signature(small))
    if changed:
        more = "; …" if len(changed) > 3 else ""
        raise CheckpointError(
            f"the network was changed after it was pruned ({'; '.join(changed[:3])}{more}): it could "
            "not be built again. Change it first (a new head, a new layer), then prune it"
        )
    odd = [name for name, m in small.named_modules() if type(m).get_extra_state is not nn.Module.get_extra_state]
    if odd:
        raise CheckpointError(
            f"module {odd[0]!r} keeps extra state (get_extra_state) beside its tensors, which only pickle could save"
        )
    return origin


def _taken(small: nn.Module) -> Checkpoint:
    """The state of a network, as it stands."""
    origin = checked(small)
    tied = first_names(small)
    tensors, strides = {}, {}
    for name, tensor, _ in every_tensor(small):
        if name not in tied:
            tensors[name] = tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
            if _dense(tensor) and tuple(tensor.stride()) != tuple(tensors[name].stride()):
                strides[name] = tuple(tensor.stride())
    state = State(
        strides,
        tied,
        tuple(name for name, p in small.named_parameters() if not p.requires_grad),
        tuple(name for name, m in small.named_modules() if m.training),
    )
    kind = f"{type(small).__module__}.{type(small).__qualname__}"
    source = StoredOrigin(origin.dense, origin.plans, origin.inputs)
    report = getattr(small, "halp", None)
    return Checkpoint(kind, source, report if isinstance(report, Report) else None, state, tensors)


def _dense(tensor: torch.Tensor) -> bool:
    """Whether its elements fill a piece of memory, each once: another order of dimensions at most."""
    return filled(tuple(tensor.shape), tuple(tensor.stride()))
