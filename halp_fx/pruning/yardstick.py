"""End-to-end cost as a share of the dense network's, and the calibration that predicts it from layer costs.

Everything is kept relative to the dense network timed in the same run: a machine that changes speed changes both. The
dense network's own cost is the lowest that was seen, the machine undisturbed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from torch import nn

from ..coupling.branches import Branch, without
from ..errors import LatencyError, RewriteError
from ..latency import MeasuredLatency
from ..latency.calibration import Calibration
from ..latency.disturbance import SCATTER
from ..latency.interleaving import NetworkTiming
from ..latency.pricing import PriceList
from ..solver import CostTable, Shared
from ..types import Coupling, Inputs, Plan
from .blocks import in_blocks
from .goals import Goals
from .widths import in_branch, price_list

logger = logging.getLogger("halp_fx")

DISTURBED = 1.05
"""A run in which the dense network took this much longer than at best is repeated."""

MAX_TRIES = 3

_FAULTY = 1.1
"""A network that takes this much longer as the process was found, because of page faults, is worth a note."""

_FAULT_MS = 0.001
"""What a page fault takes at least; on the machine of `docs/benchmarks.md` 2 to 5 us."""


_IDLE = 0.25
"""Share of idle time from which on it is said. ResNet-50 at batch 256 in float16 has none on an H200: its layers add up
to 103 % of it."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What a yardstick has found out by measuring; everything else about it follows from the network and the cost.

    Attributes:
        points: of the calibration. The others are as in `Yardstick`.
    """

    dense: float
    scale: float
    points: tuple[tuple[float, float], ...]
    held: tuple[str, ...]
    notes: tuple[str, ...]
    scatter: float
    busy: str
    waited: float
    idle: float
    several: tuple[str, ...] = ()


@dataclass(slots=True)
class Yardstick:
    """Measures networks against the dense one, and learns from what it measured.

    Attributes:
        goals, coupling, model, inputs: what is to be met, and the dense network.
        dense: its lowest end-to-end cost so far, in the unit of the steering cost.
        scale: its end-to-end cost when the calibration began: sums of layers enter that as shares of it.
        calibration: sum of layer costs -> share of the dense network's end-to-end cost.
        tables: what each layer costs over all widths that its groups may take; they serve every step. None if the
            dense network meets every budget as it is.
        branches: that may be dropped.
        options: widths that groups may take, in the tables.
        blocks: channels that go together in each group (`blocks`).
        held: groups that keep their width, as a rewrite failed (`notes` say how).
        several: groups that keep two channels or more, as it failed with one.
        notes: what a reader of the report should know about the times.
        scatter: of the dense network's times in the last measurement (`Measured`).
        busy: what disturbed the last measurement, in words; "" if nothing did.
        waited: the largest share of the time in which other programs ran.
        idle: share of the dense network's time in which a GPU waits for the CPU that launches its operators.
        shared: what the solver made for one budget and needs for the next.
    """

    goals: Goals
    coupling: Coupling
    model: nn.Module
    inputs: Inputs
    dense: float = math.inf
    scale: float = 1.0
    calibration: Calibration = field(default_factory=Calibration)
    tables: Sequence[CostTable] | None = None
    branches: Sequence[Branch] = ()
    options: Mapping[str, Sequence[int]] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    several: set[str] = field(default_factory=set)
    notes: tuple[str, ...] = ()
    scatter: float = 0.0
    busy: str = ""
    waited: float = 0.0
    idle: float = 0.0
    shared: Shared = field(default_factory=Shared, repr=False)
    _prices: dict[tuple[str, ...], PriceList | None] = field(default_factory=dict, repr=False)

    @classmethod
    def start(
        cls,
        goals: Goals,
        coupling: Coupling,
        options: Mapping[str, Sequence[int]],
        model: nn.Module,
        inputs: Inputs,
        branches: Sequence[Branch] = (),
        sizes: Callable[[], Mapping[str, int]] = dict,
        known: Learned | None = None,
    ) -> Yardstick:
        """Measure the dense network as the first point, and unless it meets the budget as it is, the layers over the
        widths that the groups may take, in blocks of these sizes.

        Args:
            known: what an earlier run has learned; the network is then not measured again.
        """
        self = cls(goals, coupling, model, inputs, branches=branches)
        if known is None:
            found = goals.as_found(model, inputs)
            self._quietly([(model, coupling, None)])
            self.notes = _memory_notes(found, self.dense)
        else:
            self.take(known)
        if not self.met_already:
            self.blocks = sizes()
            self.options = in_blocks(options, self.blocks)
            self.tables = goals.tables(coupling, self.options)
            if not self.calibration.points:
                self.scale = self.dense
                layers = goals.cost.total(coupling)
                self.learn(layers, 1.0)
                if isinstance(goals.cost, MeasuredLatency) and goals.cost.launched:
                    self.idle = max(1 - layers / self.dense, 0.0)
                self.notes += launch_notes(self.idle)
        return self

    @property
    def learned(self) -> Learned:
        """What was found out so far; `start` takes it."""
        found = self.calibration.points, tuple(sorted(self.held)), self.notes
        several = tuple(sorted(self.several))
        return Learned(self.dense, self.scale, *found, self.scatter, self.busy, self.waited, self.idle, several)

    def take(self, known: Learned) -> None:
        """Know what an earlier run of the same network has found out."""
        self.dense, self.scale, self.calibration = known.dense, known.scale, Calibration(known.points)
        self.held, self.several, self.notes = set(known.held), set(known.several), known.notes
        self.scatter, self.busy, self.waited, self.idle = known.scatter, known.busy, known.waited, known.idle

    @property
    def met_already(self) -> bool:
        """Whether the dense network meets every budget as it is."""
        return self.goals.met_by(self.dense, self.coupling)

    def left(self, plan: Plan) -> tuple[Coupling, list[CostTable], list[Branch]]:
        """Coupling, tables and removable branches without the branches that a plan drops."""
        gone = [b for b in self.branches if b.name in plan.dropped]
        tables = [t for t in self.tables or () if not any(in_branch(t, b) for b in gone)]
        return without(self.coupling, gone), tables, [b for b in self.branches if b not in gone]

    def prices(self, plan: Plan) -> PriceList | None:
        """The tables without the branches that a plan drops, packed once for all steps and budgets."""
        if plan.dropped not in self._prices:
            left, tables, _ = self.left(plan)
            self._prices[plan.dropped] = price_list({g.name: self.options[g.name] for g in left.prunable}, tables)
        return self._prices[plan.dropped]

    def total(self, plan: Plan) -> float:
        """Sum of the layer costs of the network that a plan leads to."""
        coupling, _, _ = self.left(plan)
        return self.goals.cost.total(coupling, coupling.widths(plan))

    @property
    def budget(self) -> float:
        """The budget as a share of the dense cost."""
        return self.goals.budget.limit(self.dense) / self.dense

    def asked(self, way: float = 1.0) -> float:
        """The sum of layer costs that the calibration asks for, for a step that stops at `way` of the way (0: dense, 1:
        the end), in the logarithm of the cost."""
        return self.scale * self.calibration.budget_for(min(self.budget, 1.0) ** way)

    def limits(self, way: float = 1.0, asked: float | None = None) -> dict[str, float]:
        """Sums of layer costs per resource that may be spent, for a step that stops at `way` of the way.

        Args:
            asked: of the steering cost; None: what the calibration says.
        """
        return self.goals.limits(self.coupling, self.asked(way) if asked is None else asked, way)

    @property
    def steering(self) -> frozenset[str]:
        """Resources of the solver's problem that stand for the steering cost."""
        return self.goals.steering(self.coupling)

    def predict(self, total: float) -> float:
        """Share of the dense end-to-end cost of a network whose layers sum up to `total`."""
        return self.calibration.predict(total / self.scale)

    def measure(self, plan: Plan, small: nn.Module) -> float:
        """Share of the dense end-to-end cost, both timed in turn."""
        left, _, _ = self.left(plan)
        return self._quietly([(self.model, self.coupling, None), (small, left, left.widths(plan))])

    def _quietly(self, networks: Sequence[tuple[nn.Module, Coupling, Mapping[str, int] | None]]) -> float:
        """Share of the last network of the dense one, which is the first. Repeated while something disturbs the
        machine, and if that does not end, the median of the tries, and `busy` says so."""
        tries = []
        for _ in range(MAX_TRIES):
            found = self.goals.cost.measure(networks, self.inputs)
            dense = found.costs[0]
            if not dense > 0:
                raise LatencyError(
                    f"the dense network costs {dense} {self.goals.cost.unit}: nothing can be a share of it"
                )
            share = found.costs[-1] / dense
            self.dense = min(self.dense, dense)
            self.waited = max(self.waited, found.waited)
            if dense <= DISTURBED * self.dense and found.scatter <= SCATTER:
                self.scatter, self.busy = found.scatter, ""
                return share
            tries.append((dense, share, found.scatter))
            logger.info("dense took %.4g, at best %.4g: measuring again", dense, self.dense)
        times, shares, scatter = zip(*tries, strict=True)
        self.scatter = max(scatter)
        unit = self.goals.cost.unit
        self.busy = (
            f"in {MAX_TRIES} tries the dense network took {min(times):.4g} to {max(times):.4g} {unit} (at best "
            f"{self.dense:.4g}), scattering by up to {max(scatter):.0%} within one"
        )
        return float(median(shares))

    def hold(self, error: RewriteError, coupling: Coupling, step: Plan) -> None:
        """Let a group that a failed rewrite names keep its width, what leads to the failing operator before what it
        makes; or two channels, if one was left.

        Raises:
            RewriteError: the step takes nothing from any of them.
        """
        sizes = {g.name: g.size for g in coupling.prunable if g.name not in self.held}
        found = [name for name in error.groups if name in sizes and len(step.get(name, ())) not in (0, sizes[name])]
        if not found:
            raise error
        alone = [name for name in found if len(step[name]) == 1 and name not in self.several]
        if alone:
            self.several.add(alone[-1])
            self.notes = (*self.notes, f"{alone[-1]} keeps two channels: {str(error).splitlines()[0]}")
            return
        self.held.add(found[-1])
        self.notes = (*self.notes, f"{found[-1]} shrank no further: {str(error).splitlines()[0]}")

    def learn(self, total: float, share: float) -> None:
        """Take a measured network into the calibration."""
        self.calibration = self.calibration.with_point(total / self.scale, share)


def launch_notes(idle: float) -> tuple[str, ...]:
    """A note where a network's time is that of launches, which narrower layers do not make shorter."""
    if idle <= _IDLE:
        return ()
    return (
        f"in {idle:.0%} of the dense network's time the GPU waits for the CPU that launches its operators, and "
        "narrower layers do not change that: run it as a CUDA graph (latency=halp_fx.latency.MeasuredLatency("
        "runtime='cudagraph')), compiled, or with a larger batch",
    )


def _memory_notes(found: NetworkTiming | None, dense: float) -> tuple[str, ...]:
    """A note where the dense network pays for page faults outside of the timing."""
    if found is None or found.median_ms <= _FAULTY * dense or found.faults * _FAULT_MS < (_FAULTY - 1) / 2 * dense:
        return ()
    return (
        f"times are taken with freed memory kept in the process. As this process was found, the dense network took "
        f"{found.median_ms:.4g} ms instead of {dense:.4g} ms, with {found.faults:,.0f} page faults a call: call "
        "halp_fx.keep_memory() where you deploy (docs/latency.md, Memory)",
    )
