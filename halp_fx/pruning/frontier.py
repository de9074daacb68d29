"""frontier: one network, many budgets -> a session that stops at each of them, the largest first.

Without data the dense network is scored once, and every budget is a solution for it. With data the steps to the
smallest budget pass the others: each budget is closed in on where the way has come to, and the next goes on from there.
What was measured for one budget corrects the predictions for all that follow.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from ..errors import InfeasibleError
from ..model.preserving import Casting
from ..rewriting.applying import rewrite
from ..rewriting.compensating import Compensation
from ..rewriting.descent import ancestry, descend
from ..solver import CostTable
from ..types import Plan
from .budgets import Budget
from .networks import Network
from .request import Request
from .restoring import compensated
from .resuming import Notebook
from .session import Session

logger = logging.getLogger("halp_fx")


@dataclass(slots=True)
class Frontier:
    """A session and the budgets that it stops at.

    Attributes:
        session: aimed at one of the budgets at a time.
        tables: of the layers, which serve every budget.
        budgets: what the caller wrote -> what it means; the largest first.
        refused: budgets that cannot be reached, and why.
        notebook: where it is written down how far the way is.
        casting: under which it was started.
    """

    session: Session
    tables: Sequence[CostTable] | None
    budgets: Mapping[str, Budget]
    refused: dict[str, InfeasibleError]
    notebook: Notebook | None = None
    casting: Casting = field(default_factory=Casting.now)

    @classmethod
    def start(
        cls,
        model: nn.Module,
        request: Request,
        budgets: Mapping[str, Budget],
        notebook: Notebook | None = None,
    ) -> Frontier:
        """Everything that is done once. The session is aimed at the smallest budget: tables cover what it needs.

        Raises:
            As `Session.start` and `Notebook.begin`.
        """

        def falling(dense: float) -> list[tuple[str, Budget]]:
            return sorted(budgets.items(), key=lambda item: -item[1].limit(dense))

        aimless = replace(request, goals=replace(request.goals, budget=_NONE))
        session = Session.start(model, aimless) if notebook is None else notebook.begin(model, aimless, falling)
        # Nobody looks at networks of counted costs before one is chosen, unless they are scored in turn.
        session.planned = not request.goals.measured and request.data is None and request.score_fn is None
        # Compensating wide layers takes ten times what scoring does, and a single network is chosen in the end.
        session.passed_by = request.score_fn is None
        # Amounts and shares compare when the dense cost is known.
        return cls(session, session.yardstick.tables, dict(falling(session.yardstick.dense)), {}, notebook)

    def points(self, passed: Callable[[], object] = lambda: None) -> Iterator[tuple[str, Session]]:
        """Each budget that can be reached, and the session closed in on it. Look at it before going on.

        Args:
            passed: called when a budget is done with.
        """
        session = self.session
        for name, budget in self.budgets.items():
            if not self.refused:
                self._aim(budget)
                try:
                    self._close()
                except InfeasibleError as error:
                    self.refused[name] = error
                else:
                    yield name, session
                    self._go_on()
            else:  # What is smaller cannot be reached either.
                self.refused[name] = next(iter(self.refused.values()))
            passed()

    def network(self, plan: Plan) -> tuple[nn.Module, Compensation | None]:
        """The network that a plan leads to, compensated and re-estimated as was asked for; and how it was compensated.

        Raises:
            RewriteError: the forward does not run at these widths.
        """
        session, yardstick = self.session, self.session.yardstick
        with self.casting.again():
            whole = Network(yardstick.model, Plan(), yardstick.coupling)
            small = rewrite(whole.model, plan, session.request.examples, coupling=yardstick.coupling)
            found = None
            if session.request.compensate and plan:
                found = compensated(Network(small, plan), whole, session.request, yardstick)
            session.settle(Network(small, plan))
            descend(small, ancestry(whole.model, session.request.examples), plan)
            return small, found

    def _aim(self, budget: Budget) -> None:
        session = self.session
        goals = replace(session.request.goals, budget=budget)
        session.request = replace(session.request, goals=goals)
        session.yardstick.goals, session.yardstick.tables = goals, self.tables
        session.candidates = []

    def _close(self) -> None:
        session = self.session
        if session.yardstick.met_already:
            dense = Network(session.yardstick.model, Plan())
            session.candidates = [session.unsolved(dense, session.yardstick.dense, 1.0, 1.0)]
            return
        notebook = self.notebook
        ways = session.ways if notebook is None else notebook.take_up(session)
        for i, way in enumerate(ways):
            session.score()
            if notebook is not None:
                notebook.keep(session, ways[i:])
                notebook.turn()
            if i < len(ways) - 1:
                session.step(way)
            else:
                session.close()
        if ways and notebook is not None:
            notebook.keep(session, ())

    def _go_on(self) -> None:
        """With data, from the network that was found."""
        session = self.session
        if session.request.data is not None and session.best.network.plan:
            session.network = session.best.network


_NONE = Budget(amount=math.ulp(0.0))
"""Below every cost: nothing is met as it is, so that layers are timed."""
