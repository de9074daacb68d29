"""What `torch.compile(model, backend="halp_fx", options={...})` was asked for, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import BudgetError
from ..files import file_to_write
from ..scoring.losses import LossFn
from ..types import Plan
from .fx_pass import meant, plan_of


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """Options of the backend.

    Attributes:
        budget: as for `halp_fx.prune`.
        plan: instead of a budget: a `Plan`, the path of its JSON, or a mapping from groups to kept channels.
        data, loss_fn, branches, round_to: as for `halp_fx.prune`.
        inner: the backend that compiles what comes out, and that networks are timed with if it is "inductor".
        mode: of the inner backend, if that is "inductor".
        strict: refuse what the backend is not meant for; otherwise the graph is compiled as it is, with a warning.
        report: a path that the report's summary is written to.
    """

    budget: Any = None
    plan: Plan | None = None
    data: Iterable[Any] | None = None
    loss_fn: LossFn | None = None
    branches: bool | None = None
    round_to: int | None = None
    inner: str = "inductor"
    mode: str | None = None
    strict: bool = True
    report: str | Path | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> Options:
        """The options, checked.

        Raises:
            BudgetError: an option is not known, or there is neither a budget nor a plan, or both.
            PlanError: the plan is none. PathError: `report` cannot be written.
        """
        given = dict(options or {})
        names = [f.name for f in fields(cls)]
        for name in given:
            if name not in names:
                hint = meant(name, names) or f"there are {', '.join(names)}"
                raise BudgetError(f"backend 'halp_fx' has no option {name!r}: {hint}")
        if (given.get("budget") is None) == (given.get("plan") is None):
            raise BudgetError(
                "backend 'halp_fx' needs options={'budget': ...} or options={'plan': ...}, one of the two: "
                "torch.compile(model, backend='halp_fx', options={'plan': 'plan.json'})"
            )
        if given.get("report") is not None:
            file_to_write(given["report"])
        plan = plan_of(given.get("plan"))
        if plan is not None and not isinstance(plan, Plan):
            raise BudgetError(f"option plan={plan!r} is no plan: pass a Plan, or the path of its JSON (*.json)")
        return cls(**{**given, "plan": plan})

    def same(self, other: Options) -> bool:
        """Whether the other options lead to the same network; data and functions are compared by identity."""
        plain = ("budget", "plan", "branches", "round_to")
        return all(getattr(self, n) == getattr(other, n) for n in plain) and all(
            getattr(self, n) is getattr(other, n) for n in ("data", "loss_fn")
        )
