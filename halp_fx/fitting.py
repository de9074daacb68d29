"""Text that fits where it is read: tables and sentences no wider than the terminal.

On a terminal nothing is wider than it, but for a single word (a path, a name) that alone is: it can be copied as it is.
In files and pipes a table has at most `FILE` columns, and a sentence is one line, so that it can be searched for.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import TextWrapper
from typing import TextIO

from tabulate import tabulate

from .arguments import whole
from .errors import HalpError

FILE = 120
"""Columns of a table where no terminal says how many there are."""

_BETWEEN = "  "
"""Two columns, as tabulate has them."""


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Columns of the terminal that a stream goes to (None: standard output), or what COLUMNS says; None where it is a
    file or a pipe."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    try:
        return os.get_terminal_size((stream or sys.stdout).fileno()).columns or None
    except (AttributeError, ValueError, OSError):  # A file, a pipe, a notebook; closed, or none.
        return None


def folded(text: str, width: int | None = None) -> str:
    """Its lines, broken between words where they are wider; what follows is indented by two more blanks than the line.
    Lines of tables stay as they are.

    Args:
        width: in columns; None: as `terminal_width`, and not broken where there is no terminal.
    """
    width = _columns(width) or terminal_width()
    if width is None:
        return text
    return "\n".join(line for whole in text.split("\n") for line in _folded_line(whole, width))


def _columns(width: int | None) -> int | None:
    """Columns that a caller asked for."""
    return None if width is None else whole("width", width, HalpError)


def _folded_line(line: str, width: int) -> list[str]:
    if len(line) <= width or _BETWEEN in line.strip():
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    wrapper = TextWrapper(
        width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False, break_on_hyphens=False
    )
    return wrapper.wrap(line.strip())


def command(parts: Sequence[str], indent: int = 0) -> str:
    """A command line that can be copied: where the terminal is narrower, it goes on after a backslash.

    Args:
        parts: its words. indent: columns before its first line, and before those that follow.
    """
    width = terminal_width() or sys.maxsize
    words = " ".join(map(shlex.quote, parts)).replace(" --", "\n--").split("\n")  # An option stays with its value.
    lines = [""]
    for word in words:
        if lines[-1] and indent + len(lines[-1]) + len(word) + len("  \\") > width:
            lines.append(" " * 2)
        lines[-1] += f"{' ' * bool(lines[-1].strip())}{word}"
    return f" \\\n{' ' * indent}".join(lines)


def call(function: str, arguments: Sequence[str], indent: int = 0) -> str:
    """A line of Python that can be copied: where the terminal is narrower, each argument has a line of its own.

    Args:
        function: what is called, and what stands before it. arguments: in Python.
        indent: columns before its first line, and before those that follow.
    """
    line = f"{function}({', '.join(arguments)})"
    if indent + len(line) <= (terminal_width() or sys.maxsize):
        return line
    under = " " * indent
    return "\n".join([f"{function}(", *(f"{under}  {argument}," for argument in arguments), f"{under})"])


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        head: its heading, in lines that are not broken further.
        right: whether it is aligned to the right, as numbers are.
        gives: its turn when a table is too wide: 1 gives way first; None: never, as numbers that are what a table says.
        least: columns that it needs at least: its cells are broken into lines of that many, or more. None: it is left
            out whole.
    """

    head: str
    right: bool = False
    gives: int | None = None
    least: int | None = None

    @classmethod
    def number(cls, head: str, gives: int | None = None) -> Column:
        """Of figures, which are never broken."""
        return cls(head, right=True, gives=gives)

    @classmethod
    def name(cls, head: str, gives: int = 9) -> Column:
        """Of names, which are broken after a dot or a slash where nothing else helps."""
        return cls(head, gives=gives, least=20)

    @classmethod
    def words(cls, head: str, gives: int = 1) -> Column:
        """Of sentences, which are broken into lines first."""
        return cls(head, gives=gives, least=24)


def tabled(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int | None = None) -> str:
    """A table as text. Headings that are all empty are not shown.

    Args:
        width: in columns; None: as `terminal_width`, `FILE` where there is no terminal.
    """
    room = _columns(width) or terminal_width() or FILE
    cells = [list(row) for row in rows]
    heads = [_wide([c.head]) for c in columns]
    natural = [max([head, *(len(row[i]) for row in cells)]) for i, head in enumerate(heads)]
    taken = dict(enumerate(natural))
    for _, i in sorted((c.gives, i) for i, c in enumerate(columns) if c.gives is not None):
        over = sum(taken.values()) + len(_BETWEEN) * (len(taken) - 1) - room
        least = columns[i].least
        if over > 0 and least is None:
            del taken[i]
        elif over > 0 and least is not None:
            taken[i] = max(min(least, natural[i]), heads[i], natural[i] - over)
    body = [[_broken(row[i], taken[i]) for i in taken] for row in cells]
    if any(heads):  # As rows: tabulate makes columns two wider than their headings.
        body = [[columns[i].head for i in taken], *body]
        body.insert(1, ["-" * _wide(column) for column in zip(*body, strict=True)])
    text = tabulate(
        body,
        tablefmt="plain",
        colalign=["right" if columns[i].right else "left" for i in taken] if body else None,
        disable_numparse=True,
    )
    gone = [c.head.replace("\n", " ") for i, c in enumerate(columns) if i not in taken]
    lines = [line.rstrip() for line in text.split("\n")]
    return "\n".join([*lines, *([folded(f"no room for: {', '.join(gone)}", room)] if gone else [])])


def _wide(cells: Iterable[str]) -> int:
    """Columns that the widest line takes."""
    return max(len(line) for cell in cells for line in cell.split("\n"))


class _Names(TextWrapper):
    """Breaks after a dot, a slash, a comma or an underscore."""

    wordsep_simple_re = re.compile(r"((?<=[./,_]))")


def _broken(text: str, width: int) -> str:
    """Lines of at most so many columns, broken between words where that is enough."""
    lines: list[str] = []
    names = _Names(max(width, 1), break_on_hyphens=False)
    for word in text.split():
        first, *others = names.wrap(word) if len(word) > width else [word]
        if lines and len(lines[-1]) + 1 + len(first) <= width:
            lines[-1] += f" {first}"
        else:
            lines.append(first)
        lines += others
    return "\n".join(lines)
