"""What long work says while it goes on: how much of it is done, and about how long the rest takes.

Work says so with `work` or `counted`, wherever in the package it is done; who started it decides with `shown` whether
anybody sees it. On a terminal and in a notebook these are bars, one for each level; in a log file a line now and then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
Advance = Callable[[], None]

LINES_EVERY_S = 10.0
"""Between two lines in a log file."""

_on: ContextVar[_Lines | _Bars | None] = ContextVar("progress", default=None)


@contextmanager
def shown(wanted: bool) -> Iterator[None]:
    """Show, or do not show, the progress of what is done inside."""
    token = _on.set(_board() if wanted else None)
    try:
        yield
    finally:
        _on.reset(token)


@contextmanager
def work(name: str, total: int | None, unit: str) -> Iterator[Advance]:
    """A piece of work of `total` units (None: nobody knows); what it yields is called after each."""
    board = _on.get()
    if board is None:
        yield _nothing
    else:
        with board.stage(name, total, unit) as advance:
            yield advance


def counted(items: Iterable[T], name: str, unit: str, most: int | None = None) -> Iterator[T]:
    """The items, each counted when the next one is asked for; at most `most` will be."""
    total = length_of(items)
    if total is not None and most is not None:
        total = min(total, most)
    with work(name, total, unit) as done:
        for item in items:
            yield item
            done()


def length_of(items: object) -> int | None:
    """How many there are; None where nobody knows: a loader of a stream has a length, and raises when asked for it."""
    try:
        return len(items)  # type: ignore[arg-type]
    except TypeError:
        return None


def _nothing() -> None:
    pass


def _board() -> _Lines | _Bars:
    notebook = "ipykernel" in sys.modules
    return _Bars() if notebook or sys.stderr.isatty() else _Lines()


class _Bars:
    """A bar for each level of work, which goes when its work is done."""

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Advance]:
        with tqdm(total=total, desc=f"halp_fx: {name}", unit=f" {unit}", leave=False, dynamic_ncols=True) as bar:

            def advance() -> None:
                bar.update()

            yield advance


@dataclass(slots=True)
class _Level:
    """A piece of work under way."""

    name: str
    total: int | None
    unit: str
    start: float
    done: int = 0

    def __str__(self) -> str:
        return f"{self.name}: {self.done}{'' if self.total is None else f' of {self.total}'} {self.unit}"


@dataclass(slots=True)
class _Lines:
    """Lines with all levels of work, from the outermost in; none for what is done before one is due."""

    clock: Callable[[], float] = time.monotonic
    say: Callable[[str], Any] = field(default=lambda line: print(line, file=sys.stderr, flush=True))
    levels: list[_Level] = field(default_factory=list)
    last: float | None = None

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Advance]:
        level = _Level(name, total, unit, self.clock())
        if self.last is None:
            self.last = level.start
        self.levels.append(level)

        def advance() -> None:
            level.done += 1
            self._perhaps(level)

        try:
            yield advance
        finally:
            self.levels.remove(level)

    def _perhaps(self, level: _Level) -> None:
        now = self.clock()
        if self.last is not None and now - self.last < LINES_EVERY_S:
            return
        self.last = now
        took = now - level.start
        left = ""
        if level.total is not None and level.done:
            left = f", about {took / level.done * max(level.total - level.done, 0):.0f} s left"
        self.say(f"halp_fx: {' > '.join(map(str, self.levels))} ({took:.0f} s{left})")
