"""A network as the file that would be deployed: what an AOTInductor package, or onnxruntime, makes of it.

The file lives as long as the network does; the network is exported once, for the shapes that it is timed with.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..errors import LatencyError
from ..extras import missing
from ..internals import tree_leaves
from .clocks import Thunk

_MADE: WeakKeyDictionary[nn.Module, dict[str, Thunk]] = WeakKeyDictionary()


def deployed_call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], runtime: str) -> Thunk:
    """A function without arguments that runs a network's file with these inputs.

    Raises:
        LatencyError: a package is missing, or the network cannot be exported.
    """
    known = _MADE.setdefault(model, {})
    if runtime not in known:
        make = {"aoti": _packaged, "onnxruntime": _in_onnxruntime}[runtime]
        try:
            known[runtime] = make(model, args, dict(kwargs))
        except LatencyError:
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise LatencyError(
                f"this {type(model).__name__} cannot be timed in runtime {runtime!r}: {type(error).__name__}: {first}. "
                "A network that this runtime cannot run whole (a detector) can be timed in its parts"
            ) from error
    return known[runtime]


def _packaged(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Thunk:
    from .compiling import packaged

    with tempfile.TemporaryDirectory() as folder:
        run = packaged(torch.export.export(model, args, kwargs), Path(folder) / "network.pt2")
    return partial(run, *args, **kwargs)


def _in_onnxruntime(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Thunk:
    onnxruntime = _needed("onnxruntime")
    _needed("onnxscript")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if any(t.device.type != "cpu" for t in tensors):
        raise LatencyError("runtime 'onnxruntime' is timed on the CPU only: move the model and the inputs there")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        torch.onnx.export(model, args, str(path), kwargs=kwargs, dynamo=True, external_data=False, verbose=False)
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    # An exporter keeps the order of the inputs; those that nothing reads are not asked for here.
    feed = {given.name: t.numpy() for given, t in zip(session.get_inputs(), tensors, strict=True)}
    return partial(session.run, None, feed)


def _needed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise LatencyError(missing("runtime 'onnxruntime'", package, error, "export")) from error
