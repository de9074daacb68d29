"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what is there at the end takes the place of `path`.

    A reader, or a crash, meets the old file or the new one, never half of one. The name ends as `path` does: some who
    write decide by that. The file may be read and written as the old one, or as a new one of this process, whatever the
    writer thinks (safetensors makes it private). Folders that are not there are made.

    Raises:
        OSError: disk full, directory not writable …; it names `path`, and the old file is then as before.
    """
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
