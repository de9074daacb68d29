"""Kinds of `LatencyError`: what went wrong with a measurement or a table file, and whose move it is."""

from __future__ import annotations

from ..errors import LatencyError


class TimingError(LatencyError):
    """A timer gave NaN, zero or a negative time, or the operator could not be run."""


class TableFileError(LatencyError):
    """A latency table file cannot be used. The file was not touched."""


class CorruptTableError(TableFileError):
    """The file is truncated, not JSON, or holds values that no measurement gives."""


class TableVersionError(TableFileError):
    """The file was written in a format that this version does not read."""


class ForeignTableError(TableFileError):
    """The table was measured on another device or setting.

    Attributes:
        fields: name of each differing field -> (in the file, here).
    """

    def __init__(self, message: str, fields: dict[str, tuple[object, object]]) -> None:
        super().__init__(message)
        self.fields = fields
