"""walking: a session -> the session closed: step by step, and written down where there is a notebook."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..progress import work
from .distributed import Team
from .reached import nothing_lost
from .request import Request
from .resuming import Notebook
from .session import Session


def walked(model: nn.Module, request: Request, team: Team, notebook: Notebook | None = None) -> Session:
    """A session from its start, or from where a notebook has it, to its end.

    Raises:
        As `Session.start` and `walk`.
    """
    if notebook is None:
        session = Session.start(model, request)
        walk(session, session.ways, team)
    else:
        session, ways = notebook.start(model, request)
        walk(session, ways, team, notebook)
    return session


def walk(session: Session, ways: Sequence[float], team: Team, notebook: Notebook | None = None) -> None:
    """Take all steps, and close in on the budget.

    Args:
        ways: that are left to go (`Session.ways`); none where the session is closed already.

    Raises:
        InfeasibleError: the smallest network is above the budget. Whatever ends the work carries what was reached
            (`reached`).
    """

    def keep(left: Sequence[float]) -> None:
        if notebook is not None:
            notebook.keep(session, left)

    if not ways:
        return
    with nothing_lost(lambda: session), work("prune", len(ways), "steps") as done:
        for i, way in enumerate(ways):
            keep(ways[i:])
            if session.judgement is None:  # A network that was found sound is kept as it was then.
                session.score()
                keep(ways[i:])
            if i == len(ways) - 1 or session.network.spent:
                break
            session.step(way)
            session.train(team)
            done()
            if not session.judge():
                break
            if notebook is not None:
                notebook.turn()
        session.close()
        if notebook is not None:
            notebook.turn()
            keep(())
