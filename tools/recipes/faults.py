"""What recipes say of files and packages that they cannot use."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class DataError(ValueError):
    """A file of a data set is not what it should be. No `SystemExit`, which would end a worker of a loader unheard."""

    def __init__(self, words: str) -> None:
        # A loader makes it anew, of the traceback in its worker.
        super().__init__(words.rpartition(f"{type(self).__name__}: ")[2].strip())


_UNUSABLE = (OSError, SyntaxError, ValueError, KeyError, TypeError, ImportError, AttributeError, AssertionError)
"""What PIL (for which some packages need others), the parsers of XML and JSON, and a missing entry raise; and an entry
that is no table, or another kind of file than pycocotools asserts."""


@contextmanager
def reading(what: Any) -> Iterator[None]:
    """Names the file that something fails on."""
    try:
        yield
    except DataError:
        raise
    except _UNUSABLE as error:
        raise DataError(f"{what} cannot be used: {type(error).__name__}: {error}") from error


def need(*packages: str) -> None:
    """Before hours of training.

    Raises:
        SystemExit: one is not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"this needs {', '.join(missing)}: python -m pip install {' '.join(missing)}")
