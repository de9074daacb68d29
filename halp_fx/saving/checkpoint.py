"""A pruned network as one safetensors file: weights as tensors, everything else as JSON in its metadata.

    format     "halp_fx.checkpoint/1"
    network    the class, for the reader
    origin     the dense network's tensors (names, shapes, dtypes, ties), the plans, the example inputs' shapes, and
               few whole numbers among them
    report     `Report.to_json`, if there is one
    state      strides of tensors that are not laid out row by row, ties, parameters that are not trained, modes
    checksum   SHA-256 of all that and of every tensor
    halp_fx, torch    versions, for the reader

Files are data: nothing in them is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, HalpError
from ..files import tensors_in, write_tensors
from ..model.tensors import dtype_name
from ..reporting.report import Report
from ..types import Plan, Signature
from ..types.plain import from_plain, to_plain
from ..version import __version__
from .errors import CheckpointVersionError, CorruptCheckpointError, ForeignFileError

FORMAT = "halp_fx.checkpoint/1"
_FAMILY = "halp_fx.checkpoint/"


@dataclass(frozen=True, slots=True)
class State:
    """What a network's state is beside the values of its tensors.

    Attributes:
        strides: of tensors that are not laid out row by row, in elements.
        tied: second names of a tensor -> the one under which it is stored.
        fixed: parameters that do not require a gradient.
        training: names of the modules in train mode.
        attributes: tensors that are neither parameters nor buffers, but attributes of modules.
    """

    strides: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredOrigin:
    """How the network was made: see `types.Origin`."""

    dense: Signature
    plans: tuple[Plan, ...]
    inputs: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What a file holds. Tensors are contiguous here, on the CPU, each under its first name."""

    network: str
    source: StoredOrigin
    report: Report | None
    state: State
    tensors: Mapping[str, torch.Tensor]


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Replace a file whole.

    Raises:
        OSError: it cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "network": checkpoint.network,
        "origin": _json(to_plain(checkpoint.source)),
        "state": _json(to_plain(checkpoint.state)),
        "torch": str(torch.__version__),
        "halp_fx": __version__,
    }
    if checkpoint.report is not None:
        metadata["report"] = checkpoint.report.to_json()
    metadata["checksum"] = _checksum(metadata, checkpoint.tensors)
    write_tensors(path, checkpoint.tensors, metadata)


def read(path: Path) -> Checkpoint:
    """Inverse of `write`.

    Raises:
        CheckpointError: there is no such file.
        CorruptCheckpointError, ForeignFileError, CheckpointVersionError: see there.
    """
    metadata, tensors = _contents(path)
    if metadata["format"] != FORMAT:
        raise CheckpointVersionError(
            f"{path} has format {metadata['format']!r:.60}; this halp_fx reads {FORMAT!r}. It was written by halp_fx "
            f"{metadata.get('halp_fx', '(unknown)'):.40}: install that version or a newer one"
        )
    if metadata.get("checksum") != _checksum(metadata, tensors):
        raise CorruptCheckpointError(f"{path} is damaged: its checksum does not fit what it holds. {_ADVICE}")
    try:
        report = metadata.get("report")
        found = Checkpoint(
            metadata["network"],
            from_plain(StoredOrigin, json.loads(metadata["origin"])),
            None if report is None else Report.from_json(report),
            from_plain(State, json.loads(metadata["state"])),
            tensors,
        )
        _check(found)
    except (HalpError, ValueError, KeyError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path} holds what halp_fx.save does not write: {error}. {_ADVICE}") from error
    return found


_ADVICE = "Save the network again, or fetch the file again"


def _check(found: Checkpoint) -> None:
    """Raises ValueError where parts of a file do not fit each other."""
    dense, state = found.source.dense, found.state
    odd = [name for name in dense.dtypes.values() if not isinstance(getattr(torch, name, None), torch.dtype)]
    if odd:
        raise ValueError(f"{odd[0]!r} is no dtype")
    for names, first in ((dense.tied, dense.shapes), (state.tied, found.tensors)):
        lost = [one for one in names.values() if one not in first]
        lost += [name for name in dense.tied if name not in dense.shapes]
        if lost:
            raise ValueError(f"there is no {lost[0]}, to which another tensor is tied")
    for name in state.attributes:
        if state.tied.get(name, name) not in found.tensors:
            raise ValueError(f"there is no {name}, which should be an attribute")
    for name, stride in state.strides.items():
        shape = tuple(found.tensors[name].shape)
        if len(stride) != len(shape) or not filled(shape, stride):
            raise ValueError(f"{name} of shape {shape} cannot have strides {stride}")


def _contents(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a safetensors file of some version of this format."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise CheckpointError(f"there is no file {path}")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: name the file in it that halp_fx.save wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if not metadata.get("format", "").startswith(_FAMILY):
                raise ForeignFileError(
                    f"{path} was not written by halp_fx.save: it has no format {_FAMILY!r}… in its metadata. For plain "
                    "weights, build the network and use load_state_dict"
                )
            return metadata, tensors_in(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptCheckpointError(f"{path} cannot be read as a safetensors file: {error}. {_ADVICE}") from error


def filled(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether a tensor of such strides has every element once, without gaps. Strides of dimensions of length 1 do not
    matter for that; they do for what PyTorch takes for channels last, and are kept."""
    step, whole = 1, math.prod(shape)
    for own, size in sorted((s, n) for s, n in zip(stride, shape, strict=True) if n != 1):
        if own != step:
            return False
        step *= size
    return all(0 <= own <= max(whole, 1) for own in stride)


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    """Of all metadata but itself, and of names, dtypes, shapes and bytes of the tensors."""
    found = hashlib.sha256()
    found.update(_json(sorted((k, v) for k, v in metadata.items() if k != "checksum")).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(_json([name, dtype_name(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
