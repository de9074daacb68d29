"""leading: decisions that the first process of a job makes, and all others hear."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from ..errors import TrainingError
from ..pruning.distributed import Team
from ..pruning.session import Session
from ..types import Plan

Made = TypeVar("Made")


@dataclass(slots=True)
class Lead:
    """The session of the first process; other processes have none.

    Attributes:
        team: all processes.
        session: times, solves and measures; None but in the first process.
    """

    team: Team
    session: Session | None

    @classmethod
    def start(cls, team: Team, make: Callable[[], Session]) -> Lead:
        if not team.leads:
            with team.together():
                team.hear()
            return cls(team, None)
        with team.leading():
            session = make()
        with team.together():
            team.tell("started")
        return cls(team, session)

    def ask(self, make: Callable[[Session], Made]) -> Made:
        """What the first process makes of its session, in all processes.

        Raises:
            HalpError: it failed there.
        """
        if self.session is None:
            with self.team.together():
                made: Made = self.team.hear()[1]
            return made
        with self.team.leading():
            made = make(self.session)
        with self.team.together():
            self.team.tell("made", made)
        return made

    def gather(self, value: Any) -> list[Any]:
        """What every process has, in all of them."""
        self.team.meet("a step of pruning (Pruner.step, or finish)")
        with self.team.together():
            return self.team.gather(value)

    def agree(self, model: nn.Module, plan: Plan) -> None:
        """Raises TrainingError if processes have come to different networks."""
        shapes = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
        marks = self.gather(hashlib.sha256(repr((plan.to_json(), shapes)).encode()).hexdigest())
        off = [rank for rank, mark in enumerate(marks) if mark != marks[0]]
        if off:
            raise TrainingError(f"process {off[0]} has another network than process 0 after a step of pruning")
