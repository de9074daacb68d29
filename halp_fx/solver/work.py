"""Work that was done, against a limit.

Where a clock ends a search, a busy machine ends it earlier, and the answer is another one: two processes of a job part,
and a search that is taken up again does not end where it would have. So what is counted is what is done, which depends
on the problem alone.
"""

from __future__ import annotations

from dataclasses import dataclass

STEP, ENTRY = 2e-5, 4e-9
"""Of one step of an elimination, and of each entry of the tables that it adds."""

LOOK_UP = 1.5e-8
"""Of one factor of one state, when its value and costs are looked up."""

PAIR = 4e-8
"""Of one pair of moves that is weighed."""

NODE, COLUMN, SQUARE = 2e-3, 5e-7, 5e-10
"""Of one node of a MILP's search tree, of each column there, and of each pair of columns."""


@dataclass(slots=True)
class Work:
    """What a search has done. The unit is about a CPU second of the machine of `docs/benchmarks_solver.md`.

    Attributes:
        limit: after which searches return what they have. A step that has begun is done.
        done: so far.
    """

    limit: float
    done: float = 0.0

    @property
    def left(self) -> float:
        return max(self.limit - self.done, 0.0)

    @property
    def spent(self) -> bool:
        """Whether the limit is reached."""
        return self.done >= self.limit
