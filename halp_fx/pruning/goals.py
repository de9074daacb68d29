"""What has to be met: one cost to steer by, further ones that also hold, and how each is measured end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import BudgetError
from ..files import path_of
from ..latency import Cost, MacsCost, MeasuredLatency, MemoryCost, ParamsCost
from ..latency.allocator import untouched
from ..latency.elsewhere import of_other_device
from ..latency.fingerprint import RUNTIMES
from ..latency.interleaving import NetworkTiming
from ..latency.prediction import LayerError
from ..solver import CostTable
from ..types import Coupling, Inputs
from .budgets import Budget, BudgetLike, parse_budget

_DETERMINISTIC = {"macs": MacsCost, "params": ParamsCost, "memory": MemoryCost}

_FLOPS = "flops"

_NAMES = ", ".join(f'"{name}"' for name in (*_DETERMINISTIC, _FLOPS))


EXACT = 1e-9
"""Slack of a counted budget: sums of the same numbers in another order differ by rounding."""


@dataclass(frozen=True, slots=True)
class Goals:
    """The budget to steer by, and further ones.

    Attributes:
        cost, budget: the resource whose end-to-end figure is closed in on.
        further: other resources whose budgets hold, too; these are deterministic.
    """

    cost: Cost
    budget: Budget
    further: tuple[tuple[Cost, Budget], ...] = ()

    @property
    def measured(self) -> bool:
        """Whether the steering cost is a time that must be measured."""
        return self.cost.timed

    def tables(self, coupling: Coupling, options: Mapping[str, Sequence[int]]) -> list[CostTable]:
        """Cost tables of all resources."""
        costs = (self.cost, *(cost for cost, _ in self.further))
        return [table for cost in costs for table in cost.tables(coupling, options)]

    def limits(self, coupling: Coupling, steering: float, way: float = 1.0) -> dict[str, float]:
        """Budgets for the solver: `steering` for the steering cost; the others' budgets, relaxed while a step
        stops at `way` (0: dense, 1: the end) of the way."""
        limits = self.cost.limits(coupling, steering)
        for cost, budget in self.further:
            dense = cost.total(coupling)
            limits |= cost.limits(coupling, dense * min(budget.limit(dense) / dense, 1.0) ** way)
        return limits

    def steering(self, coupling: Coupling) -> frozenset[str]:
        """Resources of the solver's problem that stand for the steering cost."""
        return frozenset(self.cost.limits(coupling, 1.0))

    def met_by(self, cost: float, coupling: Coupling) -> bool:
        """Whether a network with this end-to-end steering cost, at its dense widths, meets every budget."""
        totals = ((further.total(coupling), budget) for further, budget in self.further)
        return cost <= self.budget.limit(cost) and all(total <= budget.limit(total) for total, budget in totals)

    def slack(self, tolerance: float) -> float:
        """Relative deviation from the budget at which it counts as met."""
        return tolerance if self.measured else EXACT

    def as_found(self, model: nn.Module, inputs: Inputs) -> NetworkTiming | None:
        """A short look at a network while the process handles memory as it is set (`latency.allocator`); None unless
        times are measured on a CPU and no memory has been kept in this process yet."""
        on_cpu = all(p.device.type == "cpu" for p in model.parameters())
        if not (isinstance(self.cost, MeasuredLatency) and on_cpu and untouched()):
            return None
        return self.cost.as_found(model, inputs)

    def staircases(self, coupling: Coupling, options: Mapping[str, Sequence[int]]) -> Sequence[CostTable]:
        """The steering cost at every width that groups may take, where it is measured; else as `tables` have it."""
        if isinstance(self.cost, MeasuredLatency):
            return self.cost.staircases(coupling, options)
        return self.cost.tables(coupling, options)

    def layer_errors(self, coupling: Coupling, widths: Mapping[str, int]) -> tuple[LayerError, ...]:
        """How the tables err for each layer at these widths; empty unless times are measured."""
        return self.cost.errors(coupling, widths) if isinstance(self.cost, MeasuredLatency) else ()


def make_goals(budget: BudgetLike, latency: Any = None) -> Goals:
    """Understand `prune`'s `budget` and `latency`.

    Args:
        budget: for one resource, or a mapping from "latency", "macs", "flops" (2 a MAC), "params", "memory" to budgets.
        latency: None to measure here; a `Cost` to steer by, its class, or its name ("macs", "flops", "params",
            "memory"); or a path to a saved table, of this device or of another.

    Raises:
        BudgetError: malformed, out of range, or for an unknown resource.
    """
    cost = cost_called(latency)
    if not isinstance(budget, Mapping):
        return Goals(cost, parse_budget(budget, _FLOPS if str(latency).lower() == _FLOPS else cost.resource))
    if not budget:
        raise BudgetError('the budget is empty: write e.g. {"latency": "4ms", "params": "50%"}')
    if {"macs", _FLOPS} <= budget.keys():
        raise BudgetError('"macs" and "flops" are one resource (a MAC is 2 FLOPs): give a budget for one of them')
    unknown = [name for name in budget if name not in (*_DETERMINISTIC, _FLOPS, cost.resource)]
    if unknown:
        known = ", ".join(dict.fromkeys((cost.resource, *_DETERMINISTIC, _FLOPS)))
        why = f", as the cost (latency=) is {cost.resource}" if unknown[0] == "latency" else ""
        raise BudgetError(f"budget for {unknown[0]!r}: known resources are {known}{why}")
    rest = {"macs" if name == _FLOPS else name: parse_budget(value, name) for name, value in budget.items()}
    steer = cost.resource if cost.resource in rest else next(iter(rest))
    if steer != cost.resource:
        cost = _DETERMINISTIC[steer]()
    first = rest.pop(steer)
    return Goals(cost, first, tuple((_DETERMINISTIC[name](), b) for name, b in rest.items()))


def make_budgets(budgets: Sequence[float | str], latency: Any = None) -> tuple[Goals, dict[str, Budget]]:
    """Goals of many budgets for one resource, with the first; and what was written -> what it means.

    Raises:
        BudgetError: none, no sequence, twice the same, or one of them is malformed.
    """
    if isinstance(budgets, str | Mapping) or not isinstance(budgets, Sequence) or not budgets:
        raise BudgetError(f'budgets={budgets!r} must be a list of budgets for one resource, such as [0.8, 0.5, "30%"]')
    if any(isinstance(budget, Mapping) for budget in budgets):
        raise BudgetError("budgets for several resources at once are for prune: a curve follows one resource")
    goals = make_goals(budgets[0], latency)
    resource = _FLOPS if str(latency).lower() == _FLOPS else goals.cost.resource
    known = {str(budget): parse_budget(budget, resource) for budget in budgets}
    if len(known) < len(budgets):
        twice = next(budget for budget in known if list(map(str, budgets)).count(budget) > 1)
        raise BudgetError(f"budgets: {twice} is there twice")
    return goals, known


def cost_called(latency: Any) -> Cost:
    """The cost that `latency` means."""
    if latency is None:
        return MeasuredLatency()
    if isinstance(latency, type):
        try:
            latency = latency()
        except TypeError as error:
            raise BudgetError(f"latency={latency.__name__} is a class: pass an instance of it ({error})") from error
    if isinstance(latency, Cost):
        return latency
    if not isinstance(latency, str | Path):
        raise BudgetError(
            f"latency={latency!r} is neither a path to a table nor a cost such as halp_fx.MacsCost() or {_NAMES}"
        )
    name = str(latency).lower()
    if name == _FLOPS:
        return MacsCost()
    if name in _DETERMINISTIC:
        return _DETERMINISTIC[name]()
    path = path_of(latency)
    if path.exists():
        return of_other_device(path) or MeasuredLatency(table=latency)
    if path.suffix == ".json":  # Times of this machine would pass for those of another one.
        raise BudgetError(
            f"latency={str(latency)!r}: there is no such latency table. To time layers here and keep their times in "
            f"that file, pass halp_fx.latency.MeasuredLatency(table={str(latency)!r})"
        )
    hint = f", or halp_fx.latency.MeasuredLatency(runtime={name!r})" if name in RUNTIMES else ""
    raise BudgetError(
        f"latency={str(latency)!r} is neither a cost ({_NAMES}{hint}) nor a latency table: a table is a .json file, or "
        "a folder that exists"
    )
