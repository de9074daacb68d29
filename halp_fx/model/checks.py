"""What cannot be pruned, said before anything runs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..arguments import a_kind
from ..errors import ModelError
from ..types import Coupling
from .members import registered


def check_model(model: nn.Module) -> None:
    """Refuse what cannot be pruned as it is, and say what to pass instead.

    Raises:
        ModelError: see above.
    """
    check_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("the model is a ScriptModule: pass the nn.Module that was scripted, then script the result")
    # Who has one has imported this module, which takes seconds.
    compiled = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
    if isinstance(model, compiled):
        raise ModelError(
            "the model is wrapped by torch.compile: pass the original (model._orig_mod), then compile the result"
        )
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ModelError(
            f"the model is wrapped by {type(model).__name__}: pass model.module, then wrap the result again"
        )
    inside = next((n for n, m in model.named_modules() if isinstance(m, nn.parallel.DistributedDataParallel)), None)
    if inside is not None:  # It waits for the other processes in every forward, and one alone traces and times.
        raise ModelError(
            f"{inside} in the model is wrapped by DistributedDataParallel: put {inside}.module in its place, then wrap "
            "the whole result"
        )
    check_whole(model)
    for name, tensor in registered(model).items():
        _check_tensor(name, tensor)


def check_whole(model: nn.Module) -> None:
    """Raises ModelError if each process has a shard of the network: what is copied, or computed of weights, needs all
    of them."""
    spread = next((name for name, p in model.named_parameters() if type(p).__name__ == "DTensor"), None)
    if spread is not None or any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        what = f"; {spread} is a DTensor" if spread else ""
        raise ModelError(
            f"the model is sharded (fully_shard, FSDP{what}): prune before it is. Call prune, or let a Pruner in "
            "shrink mode finish, on the whole model; then shard what is left and build the optimizer"
        )


def check_module(model: object) -> None:
    """Refuse what is no network.

    Raises:
        ModelError: says what to pass instead.
    """
    if isinstance(model, nn.Module):
        if _trains_itself(type(model)):
            inside = ", ".join(f"model.{name}" for name, _ in model.named_children())
            raise ModelError(
                f"{type(model).__name__} is a wrapper whose train() starts a training, where that of an nn.Module sets "
                f"the mode: pass the network inside{f' ({inside})' if inside else ''}"
            )
        return
    remedy = ": call it, and pass what it makes" if callable(model) else ""
    if isinstance(model, str):
        remedy = ": only halp-fx on a command line takes names; pass the model"
    if isinstance(model, Mapping) and any(isinstance(value, torch.Tensor) for value in model.values()):
        remedy = ": these are weights; make the model, call its load_state_dict with them, and pass the model"
    raise ModelError(f"expected an nn.Module, got {type(model).__name__}{remedy}")


def _trains_itself(kind: type[nn.Module]) -> bool:
    """Whether `train` is something else than the switch of modes that every part of PyTorch takes it for, as in
    ultralytics' YOLO: called for the mode, it would fetch a data set and train."""
    try:
        _, *given = inspect.signature(kind.train).parameters.values()
    except (TypeError, ValueError):
        return False
    first = next(iter(given), None)
    if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
        return True
    return not (first.kind is first.VAR_POSITIONAL or first.default is first.empty or isinstance(first.default, bool))


def check_coupling(coupling: object, name: str = "coupling") -> None:
    """Refuse what is no coupling.

    Raises:
        ModelError: says what to pass instead.
    """
    if not isinstance(coupling, Coupling):
        raise ModelError(
            f"{name} is {a_kind(coupling)}: pass what halp_fx.channel_groups(model, example_inputs) or halp_fx.couple "
            "returns"
        )


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
    if is_lazy(tensor):
        raise ModelError(f"{name} is not initialised yet (a lazy module): run the model once first")
    shape = tuple(tensor.shape)
    if tensor.is_meta:
        raise ModelError(
            f"{name} (shape {shape}) is on the meta device and has no values: "
            "load the weights first (model.to_empty(device=...) and load_state_dict)"
        )
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "quantised" if tensor.is_quantized else f"sparse ({tensor.layout})"
        raise ModelError(f"{name} (shape {shape}) is {kind}: only dense tensors can be pruned")
    if not is_plain(tensor):
        raise ModelError(f"{name} (shape {shape}) is a {type(tensor).__name__}, a kind of tensor not known here")


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether operators do on it what they do on any: one of quantised blocks, say, answers them itself."""
    return type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__


def check_finite(model: nn.Module) -> None:
    """Refuse NaN and infinite weights: every score and comparison would be meaningless. A buffer may be infinite (a
    mask, a range that nothing was seen of yet).

    Raises:
        ModelError: names the tensor.
    """
    for name, found in registered(model).items():
        tensor = found.detach()
        wrong = torch.isnan(tensor) if not isinstance(found, nn.Parameter) else ~torch.isfinite(tensor)
        if tensor.is_floating_point() and bool(wrong.any()):
            count = int(wrong.sum())
            raise ModelError(
                f"{name} (shape {tuple(tensor.shape)}) has {count} NaN or infinite values: load or train it again"
            )


def check_prunable(coupling: Coupling) -> None:
    """Raises ModelError, with the reasons, if no group may shrink."""
    if coupling.prunable:
        return
    reasons = "; ".join(f"{name}: {reason}" for name, reason in list(coupling.frozen.items())[:5])
    raise ModelError(f"nothing in this model can be pruned. {reasons or 'No layer with channels was found.'}")
