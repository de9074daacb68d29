"""Exported files as networks: what is in them runs, and is named by what made it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ExportError
from ..extras import missing
from ..reporting.report import Report
from ..rewriting.descent import origin_of
from ..types.plain import to_plain
from ..version import __version__
from .examples import names_of, tensors

_PT2_ENTRY = "halp_fx.json"


class OnnxNetwork(nn.Module):
    """An ONNX file, run by onnxruntime on the CPU, with as many threads as PyTorch has.

    Takes what the network takes, and returns a tuple of tensors.
    """

    def __init__(self, path: Path, names: Sequence[str] = ()) -> None:
        """`names`: of the tensors among the positional arguments, where the file does not have all of them: an exporter
        leaves out what is not used."""
        super().__init__()
        onnxruntime = needed("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.used = tuple(i.name for i in self.session.get_inputs())
        self.names = tuple(names) or self.used

    @property
    def dynamic(self) -> bool:
        """Whether the batch size is left open."""
        return any(isinstance(size, str) for i in self.session.get_inputs() for size in i.shape[:1])

    def feed(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Arguments as onnxruntime takes them."""
        given = dict(zip(self.names, tensors(args), strict=False))
        given |= dict(zip(names_of(kwargs), tensors(kwargs), strict=True))
        return {name: given[name].detach().cpu().numpy() for name in self.used}

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(value) for value in self.session.run(None, self.feed(*args, **kwargs)))


class ExportedNetwork(nn.Module):
    """A `.pt2` file. What is in it knows no modes, and refuses to be put into one."""

    def __init__(self, path: Path, _names: Sequence[str] = ()) -> None:
        super().__init__()
        self.held = (torch.export.load(path).module(),)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.held[0](*args, **kwargs)


def needed(module: str) -> Any:
    """An optional package.

    Raises:
        ExportError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExportError(missing("export", module, error, "export")) from error


def provenance(model: nn.Module) -> dict[str, str]:
    """What a file says of the network in it: the plans that made it, and the report."""
    found = {"halp_fx.version": __version__}
    origin, report = origin_of(model), getattr(model, "halp", None)
    if origin is not None:
        found["halp_fx.plans"] = json.dumps(to_plain(origin.plans))
    if isinstance(report, Report):
        found["halp_fx.report"] = report.to_json()
    return found


def label_onnx(path: Path, entries: Mapping[str, str], data: str = "") -> None:
    """Put entries into the metadata of an ONNX file, and with a name for them its weights into a file beside it."""
    onnx = needed("onnx")
    written = external_files(path)
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {**onnx_entries(path), **entries})
    where = {"save_as_external_data": True, "location": data} if data else {}
    for file in written:
        file.unlink(missing_ok=True)
    onnx.save_model(model, str(path), **where)


def external_files(path: Path) -> set[Path]:
    """The files beside an ONNX file that hold its weights; none where it does so itself, or is none."""
    if not path.exists():
        return set()
    try:
        model = needed("onnx").load(str(path), load_external_data=False)
    except Exception:  # What stands in the way is no ONNX file.
        return set()
    entries = (e for tensor in model.graph.initializer for e in tensor.external_data if e.key == "location")
    names = {e.value for e in entries}
    return {path.parent / name for name in names if name == Path(name).name}


@contextmanager
def second_file(path: Path, name: str) -> Iterator[None]:
    """To be held while an ONNX file is replaced: of the files beside it that hold weights, the new one (`name`, if any)
    goes if that fails, and those of the old file if it does not."""
    before = external_files(path) if path.suffix == ".onnx" else set()
    try:
        yield
    except BaseException:
        if name:
            (path.parent / name).unlink(missing_ok=True)
        raise
    for file in before:
        file.unlink(missing_ok=True)


def opset_of(path: Path) -> int:
    """The version of ONNX's own operators that a file uses."""
    model = needed("onnx").load(str(path), load_external_data=False)
    return int(next(s.version for s in model.opset_import if s.domain in ("", "ai.onnx")))


def onnx_entries(path: str | Path) -> dict[str, str]:
    """The metadata of an ONNX file."""
    return {p.key: p.value for p in needed("onnx").load(str(path), load_external_data=False).metadata_props}


def write_pt2(program: Any, path: Path, entries: Mapping[str, str]) -> None:
    """Save an `ExportedProgram`, with entries in its archive under `halp_fx.json`."""
    torch.export.save(program, path, extra_files={_PT2_ENTRY: json.dumps(dict(entries))})
