"""Kinds of `CheckpointError`: what is wrong with a file, and whose move it is. The file was not touched."""

from __future__ import annotations

from ..errors import CheckpointError


class CorruptCheckpointError(CheckpointError):
    """The file cannot be read, is truncated, or holds something else than was written."""


class ForeignFileError(CheckpointError):
    """The file is none that `halp_fx.save` wrote."""


class CheckpointVersionError(CheckpointError):
    """The file was written in a format that this version does not read."""


class OtherNetworkError(CheckpointError):
    """The file holds another network than the one that it should be loaded into."""
