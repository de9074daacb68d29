"""Numbers and folders on a recipe's command line, checked before anything is drawn or trained."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from halp_fx.files import file_to_write


def whole(least: int) -> Callable[[str], int]:
    """A whole number of at least so many, for argparse."""

    def read(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            found = least - 1
        if found < least:
            raise ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return found

    return read


def real(least: float = 0.0, most: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """A finite number in a range, for argparse.

    Args:
        above: the least is not in it.
    """
    words = f"{'above' if above else 'from'} {least:g}" + (f" to {most:g}" if most < math.inf else "")

    def read(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not (least <= found <= most and found < math.inf) or (above and found == least):
            raise ArgumentTypeError(f"{text!r} is not a number {words}")
        return found

    return read


def made(folder: Path, *files: str) -> Path:
    """The folder of a run, which is there from now on.

    Raises:
        PathError: it cannot be made, or one of these files not be written in it.
    """
    for name in files:
        file_to_write(folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
