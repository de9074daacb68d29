"""export: a network and a path -> a file that was compared with the network."""

from __future__ import annotations

import math
import re
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..arguments import is_positive, shown, whole
from ..errors import ExportError
from ..files import file_to_write, path_of, replacing
from ..latency.interleaving import interleaved
from ..model.checks import check_model
from ..model.inputs import normalize_inputs
from ..model.preserving import preserved, set_mode
from ..model.tensors import PROTOBUF, weight_bytes
from ..types import Inputs
from .examples import Batches, deviation, named, names_of, tensors
from .files import provenance, second_file
from .record import Export
from .ways import KINDS, Job, Way, quiet, ways

Wanted = list[tuple[Inputs, list[torch.Tensor]]]


def export(
    model: nn.Module,
    path: str | Path,
    example_inputs: Any = None,
    *,
    dense: nn.Module | None = None,
    tolerance: float = 1e-3,
    opset: int | None = None,
) -> Export:
    """Write a network to a file that other runtimes execute, and make sure that it computes the same.

    For ".onnx" the exporter of PyTorch that starts from `torch.export` comes first, then the older one that starts from
    TorchScript; for ".pt2" there is `torch.export` alone. Each is first asked for a file that takes any batch size, and
    then for one that takes that of the example inputs. The first file is kept that gives the network's outputs when it
    is run from the disk (".onnx" by onnxruntime, on the CPU): for the example inputs, for others, and for a larger
    batch. The plans and the report of a pruned network are in its metadata ("halp_fx.plans", "halp_fx.report"). Files
    are replaced whole. An ONNX file holds 2 GiB: the weights of a larger network are in a second file beside it.

    Args:
        model: in any mode: it is exported in eval mode, and not changed. Of a network that no exporter takes, such as
            most detectors, a part (`small.backbone`).
        path: ending in ".onnx" or ".pt2".
        example_inputs: as for `prune`. The first dimension of every tensor that has as many rows as the first tensor is
            the batch.
        dense: the network as it was: exported the same way, and timed in turn with the file.
        tolerance: the largest difference of an output, relative to its largest value. Half precision needs about 0.02.
        opset: the version of ONNX's operators that the file should use; None: the exporter's own choice.

    Raises:
        ExportError: no exporter makes a file that computes the same; says what each of them failed with. Also if a
            package is missing, the ending is not known, or the network does not run on the example inputs.
        ModelError: the network is wrapped.
    """
    path = path_of(path)
    if path.suffix not in KINDS:
        raise ExportError(f"{path.name!r}: a file's name must end in {' or '.join(KINDS)}, which says what it becomes")
    if opset is not None and path.suffix != ".onnx":
        raise ExportError(f"opset={opset} is of .onnx files, and {path.name!r} becomes none")
    file_to_write(path)
    check_model(model)
    if dense is not None:
        check_model(dense)
    if not is_positive(tolerance):
        raise ExportError(f"tolerance={shown(tolerance)} must be a positive number, such as 1e-3")
    if opset is not None:
        opset = whole("opset", opset, ExportError)
    known = ways(path.suffix)
    batches = Batches.of(normalize_inputs(model, example_inputs))
    notes: list[str] = []
    with preserved(model), torch.no_grad():
        set_mode(model)
        wanted = [_checked(model, batches.inputs), _run(model, batches.again())]
        larger = _larger(model, batches, notes)
        names = tuple(_names(model(*batches.inputs[0], **batches.inputs[1])))
        job = Job(model, batches, names, provenance(model), opset, _data_name(model, path))
        for way in known:
            if way.dynamic and not larger:
                continue
            try:
                made = _made(way, job, path, [*wanted, *larger] if way.dynamic else wanted, tolerance)
            except ExportError as error:
                notes.append(f"{way.exporter}, {'any' if way.dynamic else 'one'} batch size: {error}")
                continue
            made = replace(made, notes=tuple(notes))
            if dense is None:
                return made
            return _timed(made, way, replace(job, model=dense, entries={}, data=_data_name(dense, path)))
    tried = "\n".join(f"  {note}" for note in notes)
    raise ExportError(
        f"no exporter made a file of this {type(model).__name__} that computes the same:\n{tried}\nExport a part of it "
        "whose forward takes and returns tensors (a detector's backbone)"
    )


def _checked(model: nn.Module, inputs: Inputs) -> tuple[Inputs, list[torch.Tensor]]:
    """What the network returns for the example inputs.

    Raises:
        ExportError: its forward does not take them.
    """
    try:
        return _run(model, inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors(inputs)) or "no tensors"
        raise ExportError(
            f"the forward of this {type(model).__name__} fails on the example inputs ({shapes}): {_short(error)}. Pass "
            "example_inputs with which model(*example_inputs) runs"
        ) from error


def _run(model: nn.Module, inputs: Inputs) -> tuple[Inputs, list[torch.Tensor]]:
    return inputs, tensors(model(*inputs[0], **inputs[1]))


def _larger(model: nn.Module, batches: Batches, notes: list[str]) -> Wanted:
    """What the network returns for a larger batch; nothing where it takes none."""
    if not batches.size:
        return []
    try:
        return [_run(model, batches.at(batches.size + 1))]
    except Exception as error:
        notes.append(f"the network itself takes no other batch size: {_short(error)}")
        return []


def _names(result: Any) -> list[str]:
    """Of the tensors in a result: keys of a dictionary, or "output"."""
    plain = isinstance(result, dict) and all(isinstance(key, str) for key in result)
    return names_of(result if plain else {"output": result})


def _data_name(model: nn.Module, path: Path) -> str:
    """Of a second file, where an ONNX file cannot hold the weights: a new one, so that an old file keeps its own."""
    large = path.suffix == ".onnx" and weight_bytes(model) > PROTOBUF
    return f"{path.name}.{uuid.uuid4().hex[:8]}.data" if large else ""


def _made(way: Way, job: Job, path: Path, wanted: Wanted, tolerance: float) -> Export:
    """The file, if it is as it should be.

    Raises:
        ExportError: it is not.
    """
    with second_file(path, job.data), replacing(path) as temporary:
        try:
            with quiet():
                found = deviation(way.run(job, temporary), wanted)
        except Exception as error:
            raise ExportError(_short(error)) from error
        if found == math.inf:
            raise ExportError("its outputs have other shapes, or other whole numbers, than the network's")
        if not found <= tolerance:
            raise ExportError(f"its outputs are {found:.1e} apart from the network's (tolerance {tolerance:g})")
        size = temporary.stat().st_size + ((path.parent / job.data).stat().st_size if job.data else 0)
    rows = job.batches.size
    sizes = (rows, rows + 1) if way.dynamic else (rows,) if rows else ()
    return Export(path, way.exporter, way.dynamic, sizes, found, size)


def _timed(made: Export, way: Way, job: Job) -> Export:
    """With the times of the file and of the dense network's, which is made for that."""
    names = names_of(named(job.model, job.batches.inputs))
    with tempfile.TemporaryDirectory() as folder, preserved(job.model), quiet():
        set_mode(job.model)
        try:
            files = [way.run(job, Path(folder) / made.path.name), way.open(made.path, names)]
            first, second = interleaved(files, job.batches.inputs)
        except Exception as error:
            return replace(made, notes=(*made.notes, f"the dense network could not be timed: {_short(error)}"))
    return replace(made, file_ms=second.median_ms, reference_ms=first.median_ms, share=second.share)


def _short(error: BaseException) -> str:
    """The first line of what may be pages, of the error that led to the others."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
