"""How a pruned network differs from what its plan asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first difference that `rewriting.verification` finds; `rewrite` raises it as a `RewriteError`.

    Attributes:
        message: what differs, and what the reader can do.
        groups: names of the groups that the operator handles where it shows.
        place: (operator, source line) there.
        node: the operator in the trace of the original network, "" if there is none.
        by_value: whether it runs with another number than before, one that follows a width.
        sources: of the numbers that the operator was given, in a trial (see `tracing.tags`).
        compared: they are those of the numbers that the program compared before it ended itself; that was after the
            operators that ran, and before this one.
        view: which of the network's forwards it is (`Coupling.views`).
        cause: the error with which the pruned network's forward failed, None if it ran.
    """

    message: str
    groups: tuple[str, ...] = ()
    place: tuple[str, str] = ("", "")
    node: str = ""
    by_value: bool = False
    sources: frozenset[Any] = frozenset()
    compared: bool = False
    view: int = 0
    cause: Exception | None = field(default=None, compare=False)

    @property
    def short(self) -> str:
        """One line of it, for a reason or a note."""
        return self.message.splitlines()[0][:200]
