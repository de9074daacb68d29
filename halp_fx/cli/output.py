"""Where a command's results go: words or JSON on standard output, files in a folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ..errors import HalpError
from ..files import file_to_write, write_text
from ..fitting import folded
from .guarding import made, results, saved


@dataclass(frozen=True, slots=True)
class Output:
    """What a command says. With `as_json` standard output has one JSON object and nothing else."""

    as_json: bool = False

    def say(self, words: object) -> None:
        typer.echo(folded(str(words)))

    def result(self, values: Mapping[str, Any]) -> None:
        """The object for `--json`; without it nothing."""
        if self.as_json:
            typer.echo(json.dumps(values, indent=2), file=results())

    def write(self, path: Path, text: str) -> Path:
        return self.wrote(write_text(path, text))

    def wrote(self, path: Path) -> Path:
        saved(path)
        return path


def writable(folder: Path, option: str = "--out") -> Path:
    """The folder that an option names, made if it is not there: asked before anything long begins.

    Raises:
        HalpError: it is a file, or nothing can be written to it.
    """
    new = [f for f in (*reversed(folder.parents), folder) if not f.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in new:
            made(one)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise HalpError(
            f"nothing can be written to {folder} ({error.strerror}): name another folder with {option}"
        ) from error
    return folder


def writable_file(path: Path, option: str = "--out") -> Path:
    """As `writable`, of a file that an option names; the folders that it lies in are made.

    Raises:
        HalpError: it is a folder, or cannot be written.
    """
    if path.is_dir():
        raise HalpError(f"{path} is a folder: name the file that is to be written in it with {option}")
    writable(path.parent, option)
    return file_to_write(path)


def writable_table(path: Path, option: str = "--table") -> Path:
    """As `writable`, of a table: a file, or a folder that is there, in which it is named by its device."""
    return writable(path, option) if path.is_dir() else writable_file(path, option)


def told_apart(names: Sequence[str]) -> list[str]:
    """The names, each once: what is there again has its number behind it, "resnet18 (2)"."""
    return [name if not (n := names[:i].count(name)) else f"{name} ({n + 1})" for i, name in enumerate(names)]
