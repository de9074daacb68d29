"""SparsityPenalty: a plan -> a loss that drives to zero what the plan will remove, before it does.

The penalty grows with training (growing regularisation, Wang et al., arXiv 2012.09243): weak at first, so that what
the channels carry can move elsewhere, strong at the end, so that nothing is left to lose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import TrainingError
from ..model.naming import by_group
from ..model.preserving import named_tensors
from ..rewriting.slicing import index_of
from ..trials.trials import channel_groups
from ..types import SCORED, Coupling, Plan


class SparsityPenalty:
    """Half the sum of squares of what makes the channels that a plan removes, times a strength that grows.

        penalty = halp_fx.SparsityPenalty(model, plan, images[:1], steps=len(loader))
        loss = loss_fn(model(images), labels) + penalty()

    Attributes:
        strength: of the next call.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan | Mapping[str, Any],
        example_inputs: Any = None,
        *,
        coupling: Coupling | None = None,
        steps: int,
        most: float = 1.0,
    ) -> None:
        """Args:
            plan: of this network: what `prune` would remove (`prune(model, budget, …).halp.plan`).
            example_inputs, coupling: as for `rewrite`.
            steps: calls over which the strength grows evenly from 0 to `most`, and stays there.
            most: times the learning rate, the share by which a weight shrinks in a step at the end.

        Raises:
            PlanError: the plan does not fit the model.
            TrainingError: it removes no channels, or steps or most are out of range.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1 or not most > 0:
            raise TrainingError(f"steps={steps!r} must be a whole number of at least 1, and most={most!r} positive")
        coupling = coupling or channel_groups(model, example_inputs)
        plan = by_group(plan, coupling)
        tensors = dict(named_tensors(model))
        self._places: list[tuple[nn.Parameter, int, torch.Tensor]] = []
        for group in coupling.prunable:
            gone = np.setdiff1d(np.arange(group.size), plan.get(group.name, range(group.size)))
            for member in group.members if len(gone) else ():
                tensor = tensors[member.axis.tensor]
                if member.role in SCORED and isinstance(tensor, nn.Parameter):
                    slots = np.sort(member.slots[gone].reshape(-1))
                    self._places.append((tensor, member.axis.dim, index_of(slots, tensor)))
        if not self._places:
            raise TrainingError("the plan removes no channels: there is nothing to penalise")
        self._steps, self._most, self._calls = steps, most, 0

    @property
    def strength(self) -> float:
        return self._most * min(self._calls / self._steps, 1.0)

    def __call__(self) -> torch.Tensor:
        """The penalty of a training step, to be added to its loss."""
        strength = self.strength
        self._calls += 1
        squares = [p.index_select(dim, slots).square().sum() for p, dim, slots in self._places]
        return 0.5 * strength * torch.stack(squares).sum()
