"""quantize: an ONNX file and data -> a file that computes in 8 bits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ExportError, few
from ..files import path_of, replacing, why_unreadable
from ..internals import tree_leaves
from ..latency.interleaving import interleaved
from ..model.tensors import dtype_name
from ..scoring.losses import NO_BATCHES, check_data, described
from ..types import Inputs
from .examples import deviation, names_of, tensors
from .files import OnnxNetwork, label_onnx, needed, onnx_entries
from .record import Export
from .ways import quiet

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
    "tensor(float16)": "float16",
}
"""What onnxruntime calls the types of tensors."""


def quantize(source: str | Path, path: str | Path, data: Iterable[Any]) -> Export:
    """Write an ONNX file again with weights and activations in 8 bits (onnxruntime's static quantisation, QDQ).

    The ranges of activations are those that the batches show; weights have a range for each output channel. Norms are
    folded into convolutions before. Metadata is kept, and files are replaced whole.

    Args:
        source: what `export` wrote.
        path: ending in ".onnx".
        data: batches of (input, target), of which the input is used, or of tensors: some hundred images such as the
            network will see. Gone through once.

    Returns:
        The file; `deviation` is from the outputs of `source` on the first batch, `share` the time of `source`, in turn,
        on that batch.

    Raises:
        ExportError: there is no such file, onnxruntime refuses it, or a batch is not finite, or not what it takes.
        SaliencyError: data is no batches.
    """
    source, path = path_of(source), path_of(path)
    if path.suffix != ".onnx":
        raise ExportError(f"{path.name!r}: the name of a quantised file must end in .onnx")
    needed("onnx")
    needed("onnxruntime")
    check_data(data)
    batches = [_inputs(batch) for batch in data]
    if not batches:
        raise ExportError(f"the ranges of activations cannot be read off the data: {NO_BATCHES}")
    if not source.is_file():
        raise ExportError(f"{source} could not be quantised: {why_unreadable(source, FileNotFoundError())}")
    broken = [i for i, (args, kwargs) in enumerate(batches) if not _finite(*args, *kwargs.values())]
    if broken:
        named = few([str(i) for i in broken], 8)
        raise ExportError(
            f"batch{'es' if len(broken) > 1 else ''} {named} of data (counted from 0) hold NaN or infinite "
            "numbers, which no range in 8 bits covers: leave them out"
        )
    whole = _opened(source)
    for number, inputs in enumerate(batches):
        _check(source, whole, inputs, f"batch {number} of data (counted from 0)")
    with quiet(), replacing(path) as temporary, torch.no_grad():
        try:
            _write(source, temporary, [whole.feed(*inputs) for inputs in batches])
            label_onnx(temporary, onnx_entries(source))
            small = OnnxNetwork(temporary)
            args, kwargs = batches[0]
            found = deviation(small, [(batches[0], tensors(whole(*args, **kwargs)))])
            first, second = interleaved([whole, small], batches[0])
        except Exception as error:
            raise ExportError(
                f"{source} could not be quantised: {type(error).__name__}: {error}\nonnxruntime says so of an operator "
                "in the file: export the network again, with another opset (17 is understood widely), or only the part "
                "of it that is to compute in 8 bits"
            ) from error
    return Export(
        path, "onnxruntime, static int8", whole.dynamic, (len(tensors(batches[0])[0]),), found, path.stat().st_size,
        file_ms=second.median_ms, reference_ms=first.median_ms, share=second.share,
    )  # fmt: skip


def _opened(source: Path) -> OnnxNetwork:
    try:
        network = OnnxNetwork(source)
        operators = {node.op_type for node in needed("onnx").load(str(source), load_external_data=False).graph.node}
    except Exception as error:
        raise ExportError(
            f"{source} could not be quantised: onnxruntime cannot load it ({type(error).__name__}); pass a file that "
            "halp_fx.export wrote with a name ending in .onnx, or another ONNX model"
        ) from error
    if operators & {"QuantizeLinear", "DequantizeLinear"}:
        raise ExportError(f"{source} computes in 8 bits already: pass the file that it was made of")
    return network


def _check(source: Path, network: OnnxNetwork, inputs: Inputs, batch: str) -> None:
    """Refuse a batch that the file does not take.

    Raises:
        ExportError: says what it takes, and what to pass.
    """
    args, kwargs = inputs
    positional, named = tensors(args), dict(zip(names_of(kwargs), tensors(kwargs), strict=True))
    takes = {i.name: (i.shape, _DTYPES.get(i.type, i.type)) for i in network.session.get_inputs()}
    names = ", ".join(map(repr, takes))
    if len(positional) > len(takes) or set(takes) - {*list(takes)[: len(positional)], *named}:
        given = ", ".join(map(repr, named)) or f"{len(positional)} tensor{'s' if len(positional) != 1 else ''}"
        raise ExportError(
            f"{batch} holds {given}, and {source} takes {names}: pass batches of (inputs, target) with a tuple of as "
            "many tensors, or with a dict of these names"
        )
    for name, tensor in (*zip(takes, positional, strict=False), *named.items()):
        if name not in takes:
            continue
        shape, dtype = takes[name]
        remedy = _remedy(tensor, shape, dtype)
        if remedy:
            wanted = ", ".join(str(size) if isinstance(size, int) else "any" for size in shape)
            raise ExportError(
                f"{batch} is {dtype_name(tensor.dtype)} of shape {tuple(tensor.shape)} for {name!r}, and the file "
                f"takes {dtype} of shape ({wanted}): {remedy}"
            )


def _remedy(tensor: torch.Tensor, shape: Sequence[int | str], dtype: str) -> str:
    """What to do where a tensor is not what a file takes; "" where it is."""
    if tensor.ndim == len(shape) - 1:
        return "one sample of a data set? Pass batches, such as a torch.utils.data.DataLoader"
    if not tensor.numel():
        return "leave empty batches out"
    if tensor.ndim != len(shape):
        return "pass batches such as those that it was exported with"
    fixed = [(i, size) for i, size in enumerate(shape) if isinstance(size, int)]
    off = [i for i, size in fixed if tensor.shape[i] != size]
    if off == [0]:
        return f"pass batches of {shape[0]} (drop_last=True of a DataLoader), or a file that takes any batch size"
    if off:
        return "resize the batches, or export the network with example inputs of their shape"
    known = dtype in _DTYPES.values()
    return "" if not known or dtype_name(tensor.dtype) == dtype else f"convert the batches, by tensor.to(torch.{dtype})"


def _inputs(batch: Any) -> Inputs:
    """The arguments of a forward in a batch.

    Raises:
        ExportError: it is no batch.
    """
    given = batch
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        given = batch[0]
    named = given if isinstance(given, Mapping) else {}
    args = () if named else tuple(given) if isinstance(given, tuple | list) else (given,)
    leaves = tree_leaves((args, dict(named)))
    if any(isinstance(leaf, np.ndarray) for leaf in leaves):
        raise ExportError(f"data yields {described(batch)}: torch.from_numpy makes tensors of arrays of numpy")
    if (given is batch and isinstance(batch, tuple | list)) or not tensors(leaves):
        raise ExportError(
            f"data yields {described(batch)}: pass batches of (inputs, target), or of tensors. Several inputs are a "
            "tuple, or a dict by their names"
        )
    return args, dict(named)


def _finite(*inputs: Any) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in inputs if isinstance(t, torch.Tensor) and t.is_floating_point())


def _write(source: Path, path: Path, feeds: list[dict[str, Any]]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[dict[str, Any]] = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(str(prepared), str(path), Reader(), per_channel=True)
