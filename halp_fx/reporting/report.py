"""What `prune` did, in plain values: the `halp` attribute of the network that it returns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from torch import nn

from ..errors import HalpError, PlanError, few, instead_of_path
from ..files import path_of, write_text
from ..latency.prediction import LayerError
from ..types import CONSTANT, Coupling, Plan
from ..types.plain import from_plain, to_plain
from .details import Conditions, Contender, GroupReport, LayerChange, ModuleChange, StepReport
from .wording import summarized, verdict

_FORMAT = "halp_fx.report/1"


@dataclass(frozen=True, slots=True)
class Round:
    """One candidate of the closing loop, in the unit of the cost.

    Attributes:
        uncalibrated: the sum of its layers.
        saliency_kept: the scores of the channels that stay, as a share of those of all channels of the network before
            this step; 1 where nothing was scored. By magnitudes it says little: widths do not follow them.
        gap: certified: how much more any choice of widths within the budget can be worth, relative.
        smallest: whether it is the smallest network because by the prediction none meets the budget.
    """

    predicted: float
    measured: float
    uncalibrated: float
    saliency_kept: float
    gap: float
    smallest: bool = False


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
        parts = []
        if self.mended:
            s = "s" * (len(self.mended) != 1)
            parts.append(f"{len(self.mended)} attribute{s} changed with the widths ({few(self.mended)})")
        if self.frozen:
            parts.append(f"{len(self.frozen)} groups frozen by constants ({', '.join(list(self.frozen)[:3])})")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Compilation:
    """How `halp_fx.compile` compiled the network that came out.

    Attributes:
        runtime: "inductor" or "inductor-frozen", and the mode: as for `MeasuredLatency`.
        seconds: until it was warm.
        graphs: that were compiled. More than one means that the forward breaks into several, or that code was made for
            several shapes.
    """

    runtime: str
    seconds: float
    graphs: int

    def __str__(self) -> str:
        return f"compiled by {self.runtime}: {self.graphs} graph{'s' * (self.graphs != 1)} in {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Report:
    """Dense, budget, predicted and measured cost, and everything that was decided.

    Attributes:
        unit: "ms", or the unit of a deterministic cost ("MACs", "parameters", …).
        dense, budget, predicted, measured: end-to-end cost in `unit`. For a deterministic cost, measured is the
            cost of the network that came out.
        uncalibrated: the sum of its layers, which is what the prediction was before any calibration.
        plan: kept channels of the original network per group.
        groups: every group that could shrink.
        frozen: group name -> why it could not.
        saliency: "taylor", "magnitude", "custom", or "not scored" where the dense network meets the budget as it is.
        tolerance: relative deviation from the budget that was asked for; for a counted cost, rounding.
        rounds: candidates of the last step, in order.
        notes: what a reader should know (no data given, operators without a rule, budget missed …).
        seconds: wall-clock time per stage.
        parameters: number before and after.
        extra: measured totals and budgets of further resources.
        branches: residual branch -> "dropped", "kept", or why it may not be dropped; empty unless asked for.
        layers: every layer of the network that came out, predicted and timed; empty for a deterministic cost.
        rewrite_kind: which constants in the forward were mended, and which groups they froze.
        scatter: quartile distance of the dense network's times relative to their median; 0 for a counted cost.
        busy: what disturbed the measurement in all its tries; "" if nothing did.
        compilation: how the network is compiled; None unless it comes from `halp_fx.compile`.
        scores: predicted cost and the caller's `score_fn` of the dense network and after each step; the last cost is
            measured.
        macs, memory: multiply-accumulates, and the most bytes of activations that a forward holds, before and after.
        modules: every module with parameters, before and after.
        costs: every layer's cost before and after, by the tables.
        flows: pairs of groups of which a layer computes the second from the first.
        steps: the network after each step but the last.
        conditions: what was pruned, where, and how costs were taken.
        contenders: with effort="thorough" all networks that were judged, the one that was taken first.
        judged_by: what their distance is, and on how many samples.
    """

    unit: str
    dense: float
    budget: float
    predicted: float
    measured: float
    uncalibrated: float
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
    branches: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[LayerError, ...] = ()
    rewrite_kind: RewriteKind = field(default_factory=RewriteKind)
    scatter: float = 0.0
    busy: str = ""
    scores: tuple[tuple[float, float], ...] = ()
    macs: tuple[float, float] = (0.0, 0.0)
    memory: tuple[float, float] = (0.0, 0.0)
    modules: tuple[ModuleChange, ...] = ()
    costs: tuple[LayerChange, ...] = ()
    flows: tuple[tuple[str, str], ...] = ()
    steps: tuple[StepReport, ...] = ()
    conditions: Conditions = field(default_factory=Conditions)
    compilation: Compilation | None = None
    contenders: tuple[Contender, ...] = ()
    judged_by: str = ""

    @property
    def dense_ms(self) -> float:
        """Time of the dense network. Raises HalpError if the cost is not a time; `dense` is there for every cost."""
        return self._ms("dense")

    @property
    def budget_ms(self) -> float:
        """The budget as a time. Raises HalpError if the cost is not a time."""
        return self._ms("budget")

    @property
    def predicted_ms(self) -> float:
        """Calibrated prediction for the network that came out. Raises HalpError if the cost is not a time."""
        return self._ms("predicted")

    @property
    def measured_ms(self) -> float:
        """End-to-end time of the network that came out. Raises HalpError if the cost is not a time."""
        return self._ms("measured")

    def _ms(self, name: str) -> float:
        if self.unit != "ms":
            raise HalpError(f"{name}_ms: this network was pruned by its {self.unit}, not by time; read report.{name}")
        value: float = getattr(self, name)
        return value

    @property
    def layer_error(self) -> float:
        """Mean error of the layers' predictions, weighted by time: sum |predicted - timed| / sum timed. NaN without
        `layers`."""
        timed = sum(x.timed_ms for x in self.layers)
        return sum(abs(x.predicted_ms - x.timed_ms) for x in self.layers) / timed if timed else math.nan

    @property
    def worst_layer(self) -> LayerError | None:
        """The layer predicted worst, of those that take at least 1 % of the layers' time; None without `layers`."""
        timed = sum(x.timed_ms for x in self.layers)
        return max((x for x in self.layers if x.timed_ms > 0.01 * timed), key=lambda x: abs(x.error), default=None)

    @property
    def met(self) -> bool:
        """Whether the measured cost is within the tolerance of the budget, or below it. What costs more than the dense
        network meets no budget."""
        return self.measured <= self.budget * (1 + self.tolerance) and self.measured <= self.dense

    @property
    def timed(self) -> bool:
        """Whether networks were timed to know their cost: it is no count, and no sum of a table of another device."""
        return self.unit == "ms" and not self.conditions.by

    @property
    def trusted(self) -> bool:
        """Whether the machine was quiet enough for the measured figures to be trusted; `busy` says what was not."""
        return not self.busy

    @property
    def smallest(self) -> bool:
        """Whether this is the smallest network that min_keep and round_to allow, above the budget by no more than the
        tolerance."""
        return self.measured > self.budget and any(r.smallest and r.measured == self.measured for r in self.rounds)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Names of the residual branches that were dropped."""
        return self.plan.dropped

    def to_json(self) -> str:
        """The report as a JSON object, in which "format" says how it is written."""
        return json.dumps({"format": _FORMAT, **to_plain(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Inverse of `to_json`. Fields that this version does not know are left out.

        Raises:
            HalpError: the text is not a report.
        """
        try:
            data = json.loads(text)
            form = data.get("format") if isinstance(data, dict) else None
            if not str(form).startswith(_FORMAT.partition("/")[0]):
                raise HalpError("this is not a report in JSON: nothing in it says that it is one")
            found = from_plain(cls, data)
        except (ValueError, KeyError, TypeError, PlanError, RecursionError) as error:
            raise HalpError(f"this is not a report in JSON: {error}{instead_of_path(text)}") from error
        if form != _FORMAT:
            raise HalpError(f"report format {form!r:.60} is not known here (expected {_FORMAT!r})")
        return found

    @property
    def verdict(self) -> str:
        """Whether the budget is met, what was gained, and what it cost, in one line."""
        return verdict(self)

    def summary(self, groups: bool = True, width: int | None = None) -> str:
        """The report as text: verdict, costs, sizes, notes; with `groups` also every group and what is frozen.

        Args:
            width: columns of text; None: those of the terminal. Where there is none, sentences are one line each.
        """
        return summarized(self, groups, width)

    def to_html(self, path: str | PathLike[str]) -> Path:
        """Write the report as one page that needs nothing else: no network, no other file.

        Returns:
            The path. A folder that is not there is made.

        Raises:
            OSError: it cannot be written.
        """
        from .page import page  # Jinja is imported when a page is made.

        return write_text(path_of(path), page(self))

    def _repr_html_(self) -> str:
        """For notebooks: the verdict and the costs."""
        from .page import fragment

        return fragment(self)

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
