"""A network as the file that would be deployed: what an AOTInductor package, or onnxruntime, makes of it.

A file is made for the sizes that it is timed with, and for the network as it then is: other inputs, a network that was
cut in place, another number of threads get their own. The newest one is kept, as long as the network lives.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..errors import LatencyError
from ..extras import missing
from ..internals import tree_leaves
from ..model.tensors import PROTOBUF, every_tensor, weight_bytes
from .clocks import Thunk

Bind = Callable[[tuple[Any, ...], Mapping[str, Any]], Thunk]
"""What runs a file: the arguments of the network's forward -> a function without any."""

_MADE: WeakKeyDictionary[nn.Module, dict[str, tuple[Any, Bind]]] = WeakKeyDictionary()
"""By network and runtime: what the file was made for, and what runs it."""


def deployed_call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: str) -> Thunk:
    """A function without arguments that runs a network's file with these inputs.

    Raises:
        LatencyError: a package is missing, or the network cannot be exported.
    """
    known, due = _MADE.setdefault(model, {}), _made_for(model, args, kwargs)
    if runtime not in known or known[runtime][0] != due:
        make = {"aoti": _packaged, "onnxruntime": _in_onnxruntime}[runtime]
        try:
            known[runtime] = due, make(model, args, dict(kwargs))
        except LatencyError:
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise LatencyError(
                f"this {type(model).__name__} cannot be timed in runtime {runtime!r}: {type(error).__name__}: {first}. "
                "A network that this runtime cannot run whole (a detector) can be timed in its parts"
            ) from error
    return known[runtime][1](args, kwargs)


def _made_for(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a file depends on beside the values of weights and inputs, which no time depends on."""
    inputs = [_looks(leaf) if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in tree_leaves((args, kwargs))]
    return [_looks(tensor) for _, tensor, _ in every_tensor(model)], inputs, torch.get_num_threads()


def _looks(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _packaged(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bind:
    from .compiling import packaged

    with tempfile.TemporaryDirectory() as folder:
        run = packaged(torch.export.export(model, args, kwargs), Path(folder) / "network.pt2")
    return lambda args, kwargs: partial(run, *args, **kwargs)


def _in_onnxruntime(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bind:
    onnxruntime = _needed("onnxruntime")
    _needed("onnxscript")
    if any(t.device.type != "cpu" for t in _tensors(args, kwargs)):
        raise LatencyError("runtime 'onnxruntime' is timed on the CPU only: move the model and the inputs there")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        large = weight_bytes(model) > PROTOBUF
        torch.onnx.export(model, args, str(path), kwargs=kwargs, dynamo=True, external_data=large, verbose=False)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def bind(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Thunk:
        # The exporter keeps the order of the inputs, and those that nothing reads.
        feed = dict(zip(names, (t.numpy() for t in _tensors(args, kwargs)), strict=True))
        return partial(session.run, None, feed)

    return bind


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, torch.Tensor)]


def _needed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise LatencyError(missing("runtime 'onnxruntime'", package, error, "export")) from error
