"""trace: model + example inputs -> a graph of ATen operators with shapes (`Traced`).

The real forward runs once, in eval mode and without gradients, under a `TorchDispatchMode` that writes down every
operator. Python control flow simply runs, and modules, functional calls, parametrisations and custom autograd
functions all come down to the same few hundred operators: one rule each is enough (see `docs/tracing.md` for why
this level, and not module or Python-function level, was chosen).
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from .errors import ModelError, TraceError
from .inputs import normalize_inputs
from .preserving import named_tensors
from .recording import record
from .types import Traced


def trace(model: nn.Module, example_inputs: Any = None) -> Traced:
    """Run `model` once on `example_inputs` and record what happened.

    The model's modes, buffers, gradients and the random state are as before, also after an error. Parameters that
    the eval-mode forward does not reach (auxiliary heads) are looked for in a train-mode forward with `train_trace`.

    Args:
        model: an eager `nn.Module` with real (not meta) parameters.
        example_inputs: a tensor, tuple or dict as for `torch.onnx.export`; None infers an image batch.

    Raises:
        ModelError: the model is wrapped, scripted, or on the meta device.
        TraceError: the forward does not run on the inputs.
    """
    check_model(model)
    args, kwargs = normalize_inputs(model, example_inputs)
    return record(model, args, kwargs)


def train_trace(model: nn.Module, example_inputs: Any = None) -> Traced:
    """As `trace`, in train mode and on a batch of at least two (BatchNorm refuses one value per channel).

    Used for what only exists in training, such as GoogLeNet's auxiliary heads.
    """
    check_model(model)
    args, kwargs = normalize_inputs(model, example_inputs)
    args, kwargs = tree_map(_at_least_two, (args, kwargs))
    return record(model, args, kwargs, training=True)


def further_traces(model: nn.Module, example_inputs: Any, traced: Traced) -> tuple[tuple[Traced, ...], str]:
    """Traces that reach parameters which the first one left unused, and why parameters stay unseen ("": they do not,
    or nothing that was tried reads them).

    Auxiliary heads exist in train mode. If that forward fails (they need larger images), what it did until then still
    counts. A branch that is not taken every time is found by several calls.
    """
    if not traced.unused:
        return (), ""
    found: list[Traced] = []
    try:
        found.append(train_trace(model, example_inputs))
    except TraceError as error:
        begun = _begun(error, traced)
        if begun is None:
            names = ", ".join(traced.unused[:3]) + (", …" if len(traced.unused) > 3 else "")
            reason = str(error).splitlines()[0][:200]
            return (), f"what reads {names} is not known: not the forward in eval mode, and in train mode {reason}"
        found.append(begun)
    if set(traced.unused).intersection(*(t.unused for t in found)):
        with contextlib.suppress(TraceError):
            several = record(model, *normalize_inputs(model, example_inputs), calls=_CALLS)
            if not _repeats(several, traced):
                found.append(several)
    return tuple(found), ""


def _repeats(several: Traced, traced: Traced) -> bool:
    """Whether all calls did the same as the one in `traced`: then they say nothing new, and would be gone through in
    every coupling."""
    done, once = ([_step(n) for n in t.graph.nodes if n.op == "call_function"] for t in (several, traced))
    return done == _CALLS * once


def _step(node: fx.Node) -> tuple[object, ...]:
    """An operator, and the parameters and buffers that it reads."""
    read = [n for n in node.all_input_nodes if n.op == "get_attr" and not n.meta.get("constant")]
    return (node.target, *(n.target for n in read))


# A branch that a coin decides is missed with a probability of 1/256.
_CALLS = 8


def _begun(error: TraceError, traced: Traced) -> Traced | None:
    """The part of a forward before it failed, if it reached parameters that `traced` did not."""
    if error.recorded is None:
        return None
    reached = {str(n.target) for n in error.recorded.nodes if n.op == "get_attr" and not n.meta.get("constant")}
    unused = tuple(name for name in traced.unused if name not in reached)
    return Traced(error.recorded, traced.tensors, unused) if len(unused) < len(traced.unused) else None


def check_model(model: nn.Module) -> None:
    """Refuse what cannot be pruned as it is, and say what to pass instead.

    Raises:
        ModelError: see above.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected an nn.Module, got {type(model).__name__}")
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
    for name, tensor in named_tensors(model):
        _check_tensor(name, tensor)


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
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise ModelError(f"{name} (shape {shape}) is a {type(tensor).__name__}, a kind of tensor not known here")


def _at_least_two(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[0] == 1:
        return value.expand(2, *value.shape[1:]).contiguous()
    return value
