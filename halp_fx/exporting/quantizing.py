"""quantize: an ONNX file and data -> a file that computes in 8 bits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import ExportError, few
from ..files import path_of, replacing, why_unreadable
from ..latency.interleaving import interleaved
from ..scoring.losses import check_data, pair_of
from ..types import Inputs
from .examples import deviation, tensors
from .files import OnnxNetwork, label_onnx, needed, onnx_entries
from .record import Export
from .ways import quiet


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
        ExportError: there is no such file, onnxruntime refuses it or the data, or a batch is not finite.
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
        raise ExportError("data has no batches: the ranges of activations are read off them")
    if not source.is_file():
        raise ExportError(f"{source} could not be quantised: {why_unreadable(source, FileNotFoundError())}")
    broken = [i for i, (args, kwargs) in enumerate(batches) if not _finite(*args, *kwargs.values())]
    if broken:
        named = few([str(i) for i in broken], 8)
        raise ExportError(
            f"batch{'es' if len(broken) > 1 else ''} {named} of data (counted from 0) hold NaN or infinite "
            "numbers, which no range in 8 bits covers: leave them out"
        )
    with quiet(), replacing(path) as temporary, torch.no_grad():
        try:
            whole = OnnxNetwork(source)
            _write(source, temporary, [whole.feed(*inputs) for inputs in batches])
            label_onnx(temporary, onnx_entries(source))
            small = OnnxNetwork(temporary)
            args, kwargs = batches[0]
            found = deviation(small, [(batches[0], tensors(whole(*args, **kwargs)))])
            first, second = interleaved([whole, small], batches[0])
        except Exception as error:
            raise ExportError(f"{source} could not be quantised: {type(error).__name__}: {error}") from error
    return Export(
        path, "onnxruntime, static int8", whole.dynamic, (len(tensors(batches[0])[0]),), found, path.stat().st_size,
        file_ms=second.median_ms, reference_ms=first.median_ms, share=second.share,
    )  # fmt: skip


def _inputs(batch: Any) -> Inputs:
    """The arguments of a forward in a batch."""
    given = batch if isinstance(batch, torch.Tensor | Mapping) else pair_of(batch)[0]
    if isinstance(given, Mapping):
        return (), dict(given)
    return tuple(given) if isinstance(given, tuple | list) else (given,), {}


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
