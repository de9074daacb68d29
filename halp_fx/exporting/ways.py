"""The exporters of PyTorch, in the order in which they are tried."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ExportError
from ..internals import no_graph_printed, tree_map
from ..types import Inputs
from .examples import Batches, named, names_of, tensors
from .files import ExportedNetwork, OnnxNetwork, label_onnx, needed, opset_of, write_pt2


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be written.

    Attributes:
        model: in eval mode.
        batches: what it takes.
        outputs: a name for each tensor that it returns.
        entries: for the file's metadata.
        opset: of an ONNX file; None leaves it to the exporter.
        data: name of a second file for the weights, beside an ONNX file that cannot hold them; "" where it can.
    """

    model: nn.Module
    batches: Batches
    outputs: tuple[str, ...]
    entries: Mapping[str, str]
    opset: int | None = None
    data: str = ""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to export a network.

    Attributes:
        exporter: its name in `Export`.
        dynamic: with any batch size, or that of the example inputs.
        write: (job, dynamic, path) -> nothing.
        open: (file, names of the input tensors) -> a network that runs it.
    """

    exporter: str
    dynamic: bool
    write: Callable[[Job, bool, Path], None]
    open: Callable[[Path, Sequence[str]], nn.Module]

    def run(self, job: Job, path: Path) -> nn.Module:
        """Write the file, and open it."""
        self.write(job, self.dynamic, path)
        return self.open(path, names_of(named(job.model, job.batches.inputs)))


KINDS = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": ()}
"""What a file's name ends in, and the packages that make and run such a file."""


def ways(suffix: str) -> tuple[Way, ...]:
    """The ways to make a file of this kind, the best first.

    Raises:
        ExportError: a package is missing.
    """
    for package in KINDS[suffix]:
        needed(package)
    kinds = {
        ".onnx": (("torch.onnx, dynamo", _dynamo, OnnxNetwork), ("torch.onnx, TorchScript", _torchscript, OnnxNetwork)),
        ".pt2": (("torch.export", _exported, ExportedNetwork),),
    }
    return tuple(Way(name, dynamic, write, run) for dynamic in (True, False) for name, write, run in kinds[suffix])


def _dynamo(job: Job, dynamic: bool, path: Path) -> None:
    (args, kwargs), shapes = _traced(job, dynamic)
    torch.onnx.export(
        job.model, args, str(path), kwargs=kwargs, dynamo=True, external_data=bool(job.data), dynamic_shapes=shapes,
        input_names=names_of(named(job.model, (args, kwargs))), output_names=list(job.outputs), verbose=False,
        opset_version=job.opset,
    )  # fmt: skip
    label_onnx(path, job.entries, job.data)
    _check_opset(path, job)


def _torchscript(job: Job, dynamic: bool, path: Path) -> None:
    (args, kwargs), shapes = _traced(job, dynamic)
    given = named(job.model, (args, kwargs))
    names = names_of(given)
    rows = Batches.of((args, kwargs))
    varying = [name for name, tensor in zip(names, tensors(given), strict=True) if shapes and rows.holds(tensor)]
    torch.onnx.export(
        job.model, args, str(path), kwargs=kwargs, dynamo=False, input_names=names, output_names=list(job.outputs),
        dynamic_axes={name: {0: "batch"} for name in varying}, verbose=False, opset_version=job.opset,
    )  # fmt: skip
    label_onnx(path, job.entries, job.data)
    _check_opset(path, job)


def _check_opset(path: Path, job: Job) -> None:
    """Raises ExportError if the file has another opset than was asked for: the exporter only logs that."""
    found = opset_of(path)
    if job.opset not in (None, found):
        raise ExportError(f"it has opset {found}, as the exporter cannot write {job.opset}")


def _exported(job: Job, dynamic: bool, path: Path) -> None:
    (args, kwargs), shapes = _traced(job, dynamic)
    write_pt2(torch.export.export(job.model, args, kwargs, dynamic_shapes=shapes), path, job.entries)


def _traced(job: Job, dynamic: bool) -> tuple[Inputs, Any]:
    """Inputs to trace with, and which of their dimensions vary: a batch of one would be taken for a constant."""
    if not dynamic:
        return job.batches.inputs, None
    inputs = job.batches.at(max(job.batches.size, 2))
    rows, batch = Batches.of(inputs), torch.export.Dim("batch")
    given = named(job.model, inputs)
    return inputs, {
        name: tree_map(lambda leaf: {0: batch} if rows.holds(leaf) else None, v) for name, v in given.items()
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporters print, warn and log: what matters of it is in the error, or in the `Export`."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    aside = io.StringIO()
    with (
        no_graph_printed(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(aside),
        contextlib.redirect_stderr(aside),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
