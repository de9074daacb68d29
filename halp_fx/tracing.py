"""trace: model + example inputs -> a graph of ATen operators with shapes (`Traced`).

The real forward runs once, in eval mode and without gradients, under a `TorchDispatchMode` that writes down every
operator. Python control flow simply runs, and modules, functional calls, parametrisations and custom autograd
functions all come down to the same few hundred operators: one rule each is enough (see `docs/tracing.md` for why
this level, and not module or Python-function level, was chosen).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from .errors import ModelError
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


def check_model(model: nn.Module) -> None:
    """Refuse what cannot be pruned as it is, and say what to pass instead.

    Raises:
        ModelError: see above.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("the model is a ScriptModule: pass the nn.Module that was scripted, then script the result")
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
        raise ModelError(
            "the model is wrapped by torch.compile: pass the original (model._orig_mod), then compile the result"
        )
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ModelError(
            f"the model is wrapped by {type(model).__name__}: pass model.module, then wrap the result again"
        )
    for name, tensor in named_tensors(model):
        if tensor.is_meta:
            raise ModelError(
                f"{name} (shape {tuple(tensor.shape)}) is on the meta device and has no values: "
                "load the weights first (model.to_empty(device=...) and load_state_dict)"
            )


def _at_least_two(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[0] == 1:
        return value.expand(2, *value.shape[1:]).contiguous()
    return value
