"""Where a latency table lives: in memory, or in a JSON file that several processes may extend at once.

A save reads the file again under a lock, adds what is new, and replaces it whole, so concurrent builders lose nothing
and a killed one resumes where it last saved. Where saving fails (read-only cache, full disk, file spoilt meanwhile),
the table stays in memory and a warning says so.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from ..files import path_of
from .errors import CorruptTableError, TableFileError
from .files import read_table, require_same, write_table
from .fingerprint import Fingerprint
from .table import LatencyTable, Point
from .timing import Timing

logger = logging.getLogger("halp_fx")

SAVE_EVERY_S = 5.0
_LOCK_TIMEOUT_S = 20.0


def cache_directory() -> Path:
    """Where tables are kept by default: $HALP_FX_CACHE_DIR, else the user's cache directory of this system."""
    return Path(os.environ.get("HALP_FX_CACHE_DIR") or user_cache_dir("halp_fx", appauthor=False)) / "latency"


@dataclass(slots=True, eq=False)
class TableStore:
    """A table and the file that it is saved to.

    Attributes:
        table: all that is known.
        path: None: in memory only.
        unchecked: whether the table is as another process left it, and may hold times of a busy machine.
    """

    table: LatencyTable
    path: Path | None = None
    unchecked: bool = False
    _unsaved: LatencyTable = field(init=False, repr=False)
    _saved_at: float = field(default=0.0, init=False, repr=False)
    _depth: int = field(default=0, init=False, repr=False)
    _forgotten: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        self._unsaved = LatencyTable(self.table.fingerprint)
        self._saved_at = time.monotonic()

    def put(self, key: str, point: Point, timing: Timing) -> None:
        """Add or replace a point; from time to time, save."""
        self.table.put(key, point, timing)
        self._unsaved.put(key, point, timing)
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()

    def note(self, key: str, words: str) -> None:
        """Say what went wrong with a signature; saved with the points."""
        self.table.notes[key] = self._unsaved.notes[key] = words

    def forget(self, keys: Iterable[str]) -> None:
        """Take all times of these signatures for unknown, also in the file once new ones are saved."""
        for key in keys:
            self.table.drop(key)
            self._unsaved.drop(key)
            self._forgotten.add(key)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Save at the end of the outermost of these blocks, also after an error or an interrupt."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.save()

    def save(self) -> None:
        """Add what is new to the file, and take in what other processes added."""
        self._saved_at = time.monotonic()
        if self.path is None or not (self._unsaved.entries or self._unsaved.notes):
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock", timeout=_LOCK_TIMEOUT_S):
                there = self._read_again()
                for key in self._forgotten:
                    there.drop(key)
                # Replaced on purpose, so no question of who has more samples.
                for key, point, timing in self._unsaved:
                    there.put(key, point, timing)
                there.notes.update(self.table.notes)
                write_table(there, self.path)
        except Timeout:
            logger.warning("%s is locked by another process: the latency table is saved later", self.path)
            return
        except (OSError, TableFileError) as error:
            logger.warning("the latency table stays in memory, because %s cannot be saved: %s", self.path, error)
            self.path = None
            return
        self._unsaved = LatencyTable(self.table.fingerprint)
        self._forgotten.clear()
        self.table.merge(there)

    def _read_again(self) -> LatencyTable:
        assert self.path is not None
        if not self.path.exists():
            return LatencyTable(self.table.fingerprint)
        there = read_table(self.path)
        require_same(there, self.table.fingerprint, str(self.path))
        return there


def open_store(
    table: str | PathLike[str] | LatencyTable | None, here: Fingerprint, allow_foreign: bool = False
) -> TableStore:
    """The store for the table that a caller named.

    Args:
        table: a `LatencyTable` (kept in memory), a file, a directory (one file per fingerprint in it), or None for
            the user's cache. A corrupt file in the cache is set aside, once, and measured again; another that is
            unusable there costs a warning and is left alone. One that the caller named is an error.
        here: device and setting of the measurements to come.
        allow_foreign: accept a file from another device or setting. It is then not written to.

    Raises:
        TableFileError: the named file cannot be used.
    """
    if isinstance(table, LatencyTable):
        return TableStore(table)
    path = cache_directory() if table is None else path_of(table)
    if table is None or path.is_dir():
        path = path / here.file_name
    if not path.exists():
        return TableStore(LatencyTable(here), path)
    try:
        found = read_table(path)
        if allow_foreign and found.fingerprint != here:
            logger.warning("using %s, which was measured elsewhere: %s", path, found.fingerprint.differences(here))
            return TableStore(found)
        require_same(found, here, str(path))
    except TableFileError as error:
        if table is not None:
            raise
        if isinstance(error, CorruptTableError) and (aside := _set_aside(path)) is not None:
            logger.warning("measuring afresh; the old table was moved to %s: %s", aside, error)
            return TableStore(LatencyTable(here), path)
        logger.warning("measuring afresh, in memory: %s", error)
        return TableStore(LatencyTable(here))
    return TableStore(found, path, unchecked=True)


def _set_aside(path: Path) -> Path | None:
    """Where a corrupt table was moved to, so that it is neither read again nor lost; None if that is not possible."""
    aside = path.with_name(f"{path.name}.corrupt")
    try:
        with FileLock(f"{path}.lock", timeout=_LOCK_TIMEOUT_S):
            try:
                # Another process may have done it, and written a new one, meanwhile.
                read_table(path)
            except CorruptTableError:
                os.replace(path, aside)  # Under the lock, or a new one would be moved.
    except (OSError, Timeout, TableFileError):
        return None
    return aside
