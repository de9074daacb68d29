"""Paths that a caller names, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import PathError

if TYPE_CHECKING:
    import torch


def path_of(path: str | os.PathLike[str]) -> Path:
    """The path that a caller means; "~" is their home.

    Raises:
        PathError: it is empty, or no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise PathError(f"{path!r:.60} is no path: pass a string or a pathlib.Path")
    if not os.fspath(path):
        raise PathError("the path is empty: name a file or a folder")
    if "\0" in os.fsdecode(path):
        raise PathError(f"{path!r:.60} is no path: no name of a file holds a null character")
    return Path(path).expanduser()


def why_unreadable(path: Path, error: OSError | UnicodeDecodeError) -> str:
    """What to say of a file that cannot be read: its path first, then what to do."""
    if path.is_dir():
        return f"{path} is a folder: name a file in it"
    if isinstance(error, FileNotFoundError):
        return f"there is no file {path}"
    if isinstance(error, UnicodeDecodeError):
        return f"{path} is not text"
    return f"{path} cannot be read: {error.strerror or error}"


def file_to_write(path: str | os.PathLike[str]) -> Path:
    """As `path_of`, of a file that can be made or replaced, as far as that can be told before.

    Raises:
        PathError: it cannot be.
    """
    place = path_of(path)
    if place.is_dir():
        raise PathError(f"{place} is a folder: name the file that is to be written in it")
    above = next((p for p in place.parents if p.exists()), Path())
    if not above.is_dir():
        raise PathError(f"{place} cannot be written: {above} is a file, and no folder")
    if not os.access(place if place.exists() else above, os.W_OK):
        raise PathError(
            f"{place} cannot be written: {'it' if place.exists() else above} is read-only. Name another place"
        )
    return place


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what is there at the end takes the place of `path`.

    A reader, or a crash, meets the old file or the new one, never half of one. The name ends as `path` does: some who
    write decide by that. The file may be read and written as the old one, or as a new one of this process, whatever the
    writer thinks (safetensors makes it private). Folders that are not there are made.

    Raises:
        PathError: see `file_to_write`.
        OSError: disk full …; it names `path`, and the old file is then as before.
    """
    file_to_write(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        temporary.touch()
        mode = (path if path.exists() else temporary).stat().st_mode
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # A full disk names no file, and nobody knows the temporary one. Without a number, an error is its words alone.
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary), temporary):
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> Path:
    """Replace a file of text whole; returns the path.

    Raises:
        OSError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Replace a file of safetensors whole. The tensors are contiguous.

    Raises:
        OSError: as `replacing`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata)
        except SafetensorError as error:  # What a full disk is to it.
            raise OSError(errno.EIO, str(error)) from error


def tensors_in(file: Any) -> dict[str, torch.Tensor]:
    """Copies of the tensors of an open file of safetensors: what is mapped from it would change with it. Whatever
    device the caller makes tensors on: safetensors before 0.6 reads to that one."""
    import torch

    with torch.device("cpu"):
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
