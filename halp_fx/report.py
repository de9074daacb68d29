"""What `prune` did, in plain values: the `halp` attribute of the network that it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tabulate import tabulate
from torch import nn

from .errors import HalpError
from .types import CONSTANT, Coupling, Plan


@dataclass(frozen=True, slots=True)
class GroupReport:
    """One channel group: its name, its channels before and after, and the axes it reaches."""

    name: str
    size: int
    kept: int
    axes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """One candidate of the closing loop, in the unit of the cost."""

    predicted: float
    measured: float
    saliency_kept: float
    gap: float


@dataclass(frozen=True, slots=True)
class RewriteKind:
    """Which way the network was rewritten. Its class is kept in any case: no GraphModule is made.

    Attributes:
        mended: attributes that repeat a width and were changed, e.g. "blocks.0.attn.num_heads".
        frozen: groups that keep their width because of a constant in the forward, and where it is.
    """

    mended: tuple[str, ...] = ()
    frozen: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, coupling: Coupling) -> RewriteKind:
        constants = {name: why for name, why in coupling.frozen.items() if why.startswith(CONSTANT)}
        return cls(tuple(str(edit) for edit in coupling.mended), constants)

    def __str__(self) -> str:
        parts = ["class kept"]
        if self.mended:
            more = ", …" if len(self.mended) > 3 else ""
            parts.append(f"{len(self.mended)} attributes mended ({', '.join(self.mended[:3])}{more})")
        if self.frozen:
            parts.append(f"{len(self.frozen)} groups frozen by constants ({', '.join(list(self.frozen)[:3])})")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Report:
    """Dense, budget, predicted and measured cost, and everything that was decided.

    Attributes:
        unit: "ms", or the unit of a deterministic cost ("MACs", "parameters", …).
        dense, budget, predicted, measured: end-to-end cost in `unit`. For a deterministic cost, measured is the
            cost of the network that came out.
        plan: kept channels of the *original* network per group.
        groups: every group that could shrink.
        frozen: group name -> why it could not.
        saliency: "taylor", "magnitude" or "custom".
        tolerance: relative deviation from the budget that was asked for.
        rounds: candidates of the last step, in order.
        notes: what a reader should know (no data given, operators without a rule, budget missed …).
        seconds: wall-clock time per stage.
        parameters: number before and after.
        extra: measured totals and budgets of further resources.
        rewrite_kind: which constants in the forward were mended, and which groups they froze.
    """

    unit: str
    dense: float
    budget: float
    predicted: float
    measured: float
    plan: Plan
    groups: tuple[GroupReport, ...]
    frozen: Mapping[str, str]
    saliency: str
    tolerance: float
    parameters: tuple[int, int]
    rounds: tuple[Round, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    rewrite_kind: RewriteKind = field(default_factory=RewriteKind)

    @property
    def dense_ms(self) -> float:
        """Cost of the dense network, in `unit` (milliseconds unless a deterministic cost was asked for)."""
        return self.dense

    @property
    def budget_ms(self) -> float:
        """The budget, in `unit`."""
        return self.budget

    @property
    def predicted_ms(self) -> float:
        """Calibrated prediction for the network that came out, in `unit`."""
        return self.predicted

    @property
    def measured_ms(self) -> float:
        """End-to-end measurement of the network that came out, in `unit`."""
        return self.measured

    @property
    def met(self) -> bool:
        """Whether the measured cost is within the tolerance of the budget, or below it."""
        return self.measured <= self.budget * (1 + self.tolerance)

    def summary(self, groups: bool = True) -> str:
        """The report as text: a table of costs, a table of groups, what is frozen, notes."""
        before, after = self.parameters
        head = [
            ["dense", self.dense, 1.0],
            ["budget", self.budget, self.budget / self.dense],
            ["predicted", self.predicted, self.predicted / self.dense],
            ["measured", self.measured, self.measured / self.dense],
        ]
        parts = [tabulate(head, headers=["", self.unit, "of dense"], floatfmt=(".0f", ".4g", ".1%"))]
        parts.append(f"parameters {before:,} -> {after:,} ({after / before:.1%}); saliency: {self.saliency}")
        parts.append(f"rewrite: {self.rewrite_kind}")
        if self.seconds:
            parts.append("seconds: " + ", ".join(f"{stage} {took:.1f}" for stage, took in self.seconds.items()))
        for name, (dense, budget, measured) in self.extra.items():
            parts.append(f"{name}: dense {dense:.4g}, budget {budget:.4g}, reached {measured:.4g}")
        if groups:
            rows = [[g.name, g.size, g.kept, g.kept / g.size, len(g.axes)] for g in self.groups]
            headers = ["group", "channels", "kept", "share", "axes"]
            parts.append(tabulate(rows, headers=headers, floatfmt=".0%"))
            if self.frozen:
                parts.append(tabulate(list(self.frozen.items()), headers=["frozen group", "reason"]))
        parts += [f"note: {note}" for note in self.notes]
        return "\n\n".join(parts)

    def __str__(self) -> str:
        return self.summary(groups=False)


def report_of(model: nn.Module) -> Report:
    """The report of a network that `prune` returned: `model.halp`, typed.

    Raises:
        HalpError: the model does not come from `prune`.
    """
    report = getattr(model, "halp", None)
    if not isinstance(report, Report):
        raise HalpError(f"this {type(model).__name__} has no report: it does not come from halp_fx.prune")
    return report
