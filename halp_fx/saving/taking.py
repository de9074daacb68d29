"""A pruned network, as it stands -> a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ..errors import CheckpointError
from ..files import file_to_write
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
        PathError: the path is a folder, or nothing may be written there.
        OSError: the file cannot be written.
    """
    path = file_to_write(path)
    write(_taken(small), path)


def checked(small: nn.Module) -> Origin:
    """Where a network comes from that can be saved.

    Raises:
        CheckpointError, ModelError: it cannot be, as `save` says.
    """
    check_model(small)
    origin = origin_of(small)
    if origin is None:
        inside = next((name for name, part in small.named_modules() if origin_of(part) is not None), "")
        raise CheckpointError(
            f"this {type(small).__name__} does not come from halp_fx.prune or halp_fx.rewrite, so nothing says how to "
            + (f"build it again. Its part {inside!r} does: save that" if inside else
               "build it again: save its state_dict, as of any network")
        )  # fmt: skip
    changed = origin.made.differences(signature(small))
    if changed:
        more = "; …" if len(changed) > 3 else ""
        raise CheckpointError(
            f"the network was changed after it was pruned ({'; '.join(changed[:3])}{more}): it could "
            "not be built again. Change it first (a new head, a new layer), then prune it; fold and quantise it after "
            "halp_fx.load"
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
    tied, plain = first_names(small), dict(attributes(small))
    known = {id(tensor): name for name, tensor, _ in reversed([*every_tensor(small)])}
    tied |= {name: known[id(tensor)] for name, tensor in plain.items() if id(tensor) in known}
    tensors, strides = {}, {}
    for name, tensor in (*((name, tensor) for name, tensor, _ in every_tensor(small)), *plain.items()):
        if name not in tied:
            tensors[name] = tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
            if _dense(tensor) and tuple(tensor.stride()) != tuple(tensors[name].stride()):
                strides[name] = tuple(tensor.stride())
    state = State(
        strides,
        tied,
        tuple(name for name, p in small.named_parameters() if not p.requires_grad),
        tuple(name for name, m in small.named_modules() if m.training),
        tuple(plain),
    )
    kind = f"{type(small).__module__}.{type(small).__qualname__}"
    source = StoredOrigin(origin.dense, origin.plans, origin.inputs)
    report = getattr(small, "halp", None)
    return Checkpoint(kind, source, report if isinstance(report, Report) else None, state, tensors)


def attributes(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that are attributes of modules, and neither parameters nor buffers. Without those that were computed
    from weights, which a forward does again, and kinds that only pickle could save."""
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            plain = type(value) is torch.Tensor and value.layout is torch.strided and not value.is_quantized
            if plain and value.grad_fn is None:
                yield f"{prefix}.{name}" if prefix else name, value


def _dense(tensor: torch.Tensor) -> bool:
    """Whether its elements fill a piece of memory, each once: another order of dimensions at most."""
    return filled(tuple(tensor.shape), tuple(tensor.stride()))
