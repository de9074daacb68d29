"""A latency table: the times that were measured on one device and setting, by layer signature and widths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .fingerprint import Fingerprint
from .timing import Timing

Point = tuple[int, int]
"""(n_in, n_out) of a layer."""


@dataclass(slots=True)
class LatencyTable:
    """Measured times, in memory.

    Attributes:
        fingerprint: device and setting that they hold for.
        entries: layer signature -> (n_in, n_out) -> time.
        notes: what went wrong while measuring, by signature.
    """

    fingerprint: Fingerprint
    entries: dict[str, dict[Point, Timing]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def get(self, key: str, point: Point) -> Timing | None:
        return self.entries.get(key, {}).get(point)

    def put(self, key: str, point: Point, timing: Timing) -> None:
        self.entries.setdefault(key, {})[point] = timing

    def drop(self, key: str) -> None:
        self.entries.pop(key, None)
        self.notes.pop(key, None)

    def merge(self, other: LatencyTable) -> int:
        """Take in what `other` has; of a point that both have, the time from more measurements stays. Returns how many
        points were taken. Whether the fingerprints agree is the caller's business."""
        taken = 0
        for key, point, timing in other:
            mine = self.get(key, point)
            if mine is None or (timing.runs, timing.count) > (mine.runs, mine.count):
                self.put(key, point, timing)
                taken += 1
        for key, note in other.notes.items():
            self.notes.setdefault(key, note)
        return taken

    def __iter__(self) -> Iterator[tuple[str, Point, Timing]]:
        for key, points in self.entries.items():
            for point, timing in points.items():
                yield key, point, timing

    def __len__(self) -> int:
        return sum(map(len, self.entries.values()))
