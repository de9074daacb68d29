"""SparsityPenalty: a plan or a budget -> a loss that drives to zero what will be removed, before it is.

The penalty grows with training (growing regularisation, Wang et al., arXiv 2012.09243): weak at first, so that what
the channels carry can move elsewhere, strong at the end, so that nothing is left to lose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arguments import is_positive, shown, whole
from ..errors import TrainingError
from ..model.checks import check_finite, check_model
from ..model.copying import copied
from ..model.members import named_tensors
from ..model.naming import Ignored, by_group
from ..model.preserving import preserved
from ..model.randomness import Stream
from ..pruning.budgets import BudgetLike
from ..pruning.distributed import Team
from ..pruning.goals import make_goals
from ..pruning.request import Request
from ..pruning.session import Session
from ..pruning.walking import walk
from ..rewriting.slicing import index_of, removed_slots
from ..scoring.losses import Loss, LossFn
from ..trials.trials import coupling_of
from ..types import SCORED, Coupling, Plan
from .leading import Lead


class SparsityPenalty:
    """Half the sum of squares of what makes the channels that will be removed, times a strength that grows.

        penalty = halp_fx.SparsityPenalty(model, 0.5, images[:1], data=loader, steps=len(loader))
        loss = loss_fn(model(images), labels) + penalty()
        ...
        small = halp_fx.rewrite(model, penalty.plan, images[:1], optimizer=optimizer)

    Attributes:
        plan: what is penalised, and to be removed at the end.
        strength: of the next call.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan | Mapping[str, Any] | BudgetLike,
        example_inputs: Any = None,
        *,
        coupling: Coupling | None = None,
        steps: int,
        most: float = 1.0,
        data: Iterable[Any] | None = None,
        loss_fn: LossFn | None = None,
        loss: Loss | None = None,
        latency: Any = None,
        ignore: Ignored | Iterable[Ignored] = (),
        round_to: int | None = None,
        min_keep: float | int = 0.1,
    ) -> None:
        """Args:
            plan: of this network; or a budget as for `prune`, which is asked what it would remove now.
            example_inputs, coupling: as for `rewrite`.
            steps: calls over which the strength grows evenly from 0 to `most`, and stays there.
            most: times the learning rate, the share by which a weight shrinks in a step at the end.
            data, loss_fn, loss, latency, ignore, round_to, min_keep: as for `prune`; for a budget alone. Branches stay.

        Raises:
            PlanError: the plan does not fit the model.
            BudgetError, ModelError, SaliencyError: for a budget, as `prune`.
            TrainingError: nothing is removed, or steps or most are out of range.
        """
        steps = whole("steps", steps, TrainingError)
        if not is_positive(most):
            raise TrainingError(f"most={shown(most)} must be a positive number")
        known: Any = plan
        if not _is_plan(plan):
            check_model(model)
            check_finite(model)
            request = Request.of(
                model, make_goals(known, latency), example_inputs, Stream(),
                data=data, loss_fn=loss_fn, loss=loss, ignore=ignore, round_to=round_to, min_keep=min_keep,
                limits=None, branches=False, recalibrate=True, progress=False,
            )  # fmt: skip
            known = _removed(model, request, repr(plan))
        coupling = coupling_of(model, example_inputs, coupling)
        self.plan = by_group(known, coupling)
        removed_slots(coupling, self.plan)  # Says what of a plan does not fit.
        tensors = dict(named_tensors(model))
        self._places: list[tuple[nn.Parameter, int, torch.Tensor]] = []
        for group in coupling.prunable:
            gone = np.setdiff1d(np.arange(group.size), self.plan.get(group.name, range(group.size)))
            for member in group.members if len(gone) else ():
                tensor = tensors[member.axis.tensor]
                if member.role in SCORED and isinstance(tensor, nn.Parameter):
                    slots = np.sort(member.slots[gone].reshape(-1))
                    self._places.append((tensor, member.axis.dim, index_of(slots, tensor)))
        if not self._places:
            raise TrainingError("no channels are to be removed: there is nothing to penalise")
        self._shapes = [parameter.shape for parameter, _, _ in self._places]
        self._steps, self._most, self._calls = steps, float(most), 0

    @property
    def strength(self) -> float:
        return self._most * min(self._calls / self._steps, 1.0)

    def __call__(self) -> torch.Tensor:
        """The penalty of a training step, to be added to its loss.

        Raises:
            TrainingError: the network was cut meanwhile (by a `Pruner`), so that other channels have these places.
        """
        for (parameter, _, _), shape in zip(self._places, self._shapes, strict=True):
            if parameter.shape != shape:
                raise TrainingError(
                    f"a parameter that is penalised has shape {tuple(parameter.shape)} now, and had {tuple(shape)}: "
                    "the network was cut, and its channels have other places. A penalty is for the time before the "
                    "cut; beside a Pruner pass mode='mask'"
                )
        strength = self.strength
        self._calls += 1
        squares = [p.index_select(dim, slots).square().sum() for p, dim, slots in self._places]
        return 0.5 * strength * torch.stack(squares).sum()


def _is_plan(what: Any) -> bool:
    """Whether it names channels, and not amounts."""
    if isinstance(what, Mapping) and not isinstance(what, Plan):
        return not what or any(not isinstance(value, str | Real) for value in what.values())
    return isinstance(what, Plan)


def _removed(model: nn.Module, request: Request, asked: str) -> Plan:
    """What `prune` would remove; the model stays as it is. In a job of several processes, what the first says."""
    team = Team.here()
    team.check(model, f"SparsityPenalty to {asked}")
    with Stream().aside(), preserved(model):
        lead = Lead.start(team, lambda: Session.start(copied(model), request))
        return lead.ask(_plan_of)


def _plan_of(session: Session) -> Plan:
    walk(session, session.ways, Team.here())
    return session.best.network.plan
