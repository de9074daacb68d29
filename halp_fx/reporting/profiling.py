"""profile: where a network's time goes, which widths pay, and which budgets can be reached.

Takes a model and example inputs, returns a `Profile`: the answer to "why did pruning not make it faster".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ..errors import LatencyError
from ..fitting import Column, folded, tabled
from ..latency.calibration import Calibration
from ..latency.costs import Cost, Options
from ..latency.interleaving import interleaved
from ..latency.layers import Layer, layers
from ..latency.lookup import cost_at
from ..latency.measured import MeasuredLatency
from ..model.inputs import Examples, normalize_inputs
from ..model.naming import Ignored
from ..progress import shown
from ..pruning.budgets import figure
from ..pruning.goals import cost_called
from ..pruning.widths import width_options
from ..solver import CostTable
from ..trials.trials import channel_groups
from ..types import Coupling
from .detailing import given_by

_PAYS = 0.01
"""A width pays if it saves at least this share of its group's time over the next wider one that does."""


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """One layer of the dense network: its cost in the profile's unit, and that as a share of the sum of all."""

    name: str
    op: str
    dense: tuple[int, int]
    groups: tuple[str, ...]
    cost: float
    share: float
    spread: float | None


@dataclass(frozen=True, slots=True)
class GroupProfile:
    """One channel group.

    Attributes:
        cost: sum over the layers whose cost its width changes; share: of the sum of all layers. Layers between two
            groups count for both, so shares add up to more than 1.
        curve: (width, cost of those layers) with all other groups dense.
        paying: widths, descending, that each save at least 1 % over the next wider one of them. The others are
            steps of the staircase that cost as much as a wider group.
        frozen: None, or why it cannot shrink.
    """

    name: str
    size: int
    cost: float
    share: float
    curve: tuple[tuple[int, float], ...]
    paying: tuple[int, ...]
    frozen: str | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """What `profile` found.

    Attributes:
        unit: of all costs.
        layers: by cost, the most costly first. groups: likewise; frozen ones last.
        total: sum of the layers' costs. least: that sum with every group at its narrowest.
        dense: end-to-end cost measured; the total for a cost that is not measured.
        fixed_share: share of the sum that no prunable group changes.
        tables: one per layer, in the solver's terms. tables_of: layer name -> signature.
        notes: operators without a rule, and other things a reader should know.
        by: as for `Curve`.
    """

    unit: str
    layers: tuple[LayerProfile, ...]
    groups: tuple[GroupProfile, ...]
    total: float
    least: float
    dense: float
    fixed_share: float
    tables: tuple[CostTable, ...]
    signatures: Mapping[str, str]
    notes: tuple[str, ...] = ()
    by: str = ""

    @property
    def reachable(self) -> tuple[float, float]:
        """Smallest and largest end-to-end cost that pruning can give, by proportion to the layers' sum."""
        least = Calibration().with_point(self.total, self.dense).predict(self.least)
        return min(least, self.dense), self.dense  # Narrow layers may be slower than dense ones.

    def summary(self, rows: int = 15, width: int | None = None) -> str:
        """The profile as text: totals, the most costly layers, the groups and the widths that pay.

        Args:
            rows: layers and groups shown.
            width: columns of text; None: those of the terminal. Where there is none, sentences are one line each.
        """
        low, high = self.reachable
        timed = self.unit == "ms" and not self.by

        head = [
            [
                "measured end to end" if timed else f"the network{f', by {self.by}' if self.by else ''}",
                figure(self.dense, self.unit),
                "100.0%",
            ]
        ]
        if timed:
            head.append(["sum of layers", figure(self.total, self.unit), f"{self.total / self.dense:.1%}"])
        head.append(["smallest that can be reached", figure(low, self.unit), f"{low / high:.1%}"])
        cost = Column.number(self.unit)
        parts = [tabled((Column(""), cost, Column.number("of dense")), head, width)]
        what = "time" if self.unit == "ms" else "cost"
        parts.append(f"{self.fixed_share:.1%} of the {what} does not depend on any group that may shrink")
        layer_rows = [
            [x.name, x.op, f"{x.dense[0]} -> {x.dense[1] or x.dense[0]}", figure(x.cost, self.unit), f"{x.share:.1%}"]
            for x in self.layers[:rows]
        ]
        share = Column.number("share")
        sizes = Column.number("width", gives=3)
        layer = (Column.name("layer", gives=2), Column("operator", gives=1), sizes, cost, share)
        parts.append(tabled(layer, layer_rows, width))
        group_rows = [
            [g.name, f"{g.size}", figure(g.cost, self.unit), f"{g.share:.1%}", _few(g.paying)]
            if g.frozen is None
            else [g.name, f"{g.size}", "", "", f"frozen: {g.frozen}"]
            for g in self.groups[:rows]
        ]
        size = Column.number("size", gives=2)
        group = (Column.name("group"), size, cost, share, Column.words("widths that pay"))
        parts.append(tabled(group, group_rows, width))
        hidden = max(len(self.layers), len(self.groups)) - rows
        if hidden > 0:
            parts.append(f"the {rows} most costly of {len(self.layers)} layers and {len(self.groups)} groups are shown")
        return folded("\n\n".join([*parts, *(f"note: {note}" for note in self.notes)]), width)

    def __str__(self) -> str:
        return self.summary()


def profile(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    latency: Any = None,
    ignore: Ignored | Iterable[Ignored] = (),
    round_to: int | None = None,
    min_keep: float | int = 0.1,
    progress: bool = True,
    cost: Cost | None = None,
) -> Profile:
    """Measure the layers of a network and say what its latency depends on.

    The model is left as found.

    Args:
        model, example_inputs, latency, ignore, round_to, min_keep, progress: as for `halp_fx.prune`.
        cost: the earlier name of `latency`.

    Raises:
        BudgetError: `latency` is no cost; `round_to` or `min_keep` out of range.
        ModelError, LatencyError: see `channel_groups` and `MeasuredLatency`; the network costs nothing.
    """
    cost = cost_called(latency if cost is None else cost)
    inputs = normalize_inputs(model, example_inputs)
    coupling = channel_groups(model, Examples([inputs]), ignore)
    options = {g.name: width_options(g, round_to, min_keep) for g in coupling.prunable}
    with shown(progress):
        tables = cost.tables(coupling, options)
        total = end_to_end = cost.total(coupling)
        units = layers(coupling)
        if isinstance(cost, MeasuredLatency):
            (timing,) = interleaved((model,), inputs, runtime=cost.runtime, threads=cost.threads)
            end_to_end, units = timing.median_ms, cost.layers(coupling)
    dense = coupling.widths()
    costs = [cost_at(table, dense) for table in tables]
    if not sum(costs) > 0:
        raise LatencyError(
            f"the layers of this network add up to {sum(costs):.4g} {cost.unit}: there are no shares of it"
        )
    return Profile(
        unit=cost.unit,
        layers=_layers(units, tables, costs, cost),
        groups=_groups(coupling, tables, options, sum(costs)),
        total=total,
        least=sum(cost_at(t, {**dense, **{g: row[0] for g, row in options.items()}}) for t in tables),
        dense=end_to_end,
        fixed_share=sum(c for t, c in zip(tables, costs, strict=True) if not (t.inputs or t.output)) / sum(costs),
        tables=tables,
        signatures={layer.name: layer.key for layer in units},
        notes=coupling.notes,
        by=given_by(cost),
    )


def _layers(
    units: Sequence[Layer], tables: Sequence[CostTable], costs: Sequence[float], cost: Cost
) -> tuple[LayerProfile, ...]:
    known = {layer.name: layer for layer in units}
    found = []
    for table, value in zip(tables, costs, strict=True):
        layer = known.get(table.name)
        timing = cost.timing(layer, *layer.dense) if layer and isinstance(cost, MeasuredLatency) else None
        groups = tuple(dict.fromkeys(term.group for term in (*table.inputs, *table.output)))
        op, dense = (layer.op, layer.dense) if layer else ("parameter", (0, 0))
        spread = timing.spread if timing else None
        found.append(LayerProfile(table.name, op, dense, groups, value, value / sum(costs), spread))
    return tuple(sorted(found, key=lambda x: -x.cost))


def _groups(
    coupling: Coupling, tables: Sequence[CostTable], options: Options, total: float
) -> tuple[GroupProfile, ...]:
    dense = coupling.widths()
    touching: dict[str, list[CostTable]] = {name: [] for name in options}
    for table in tables:
        for name in {term.group for term in (*table.inputs, *table.output)}:
            touching[name].append(table)
    found = []
    for group in coupling.prunable:
        curve = tuple(
            (w, sum(cost_at(t, {**dense, group.name: w}) for t in touching[group.name])) for w in options[group.name]
        )
        cost = curve[-1][1]
        found.append(GroupProfile(group.name, group.size, cost, cost / total, curve, paying_widths(curve)))
    frozen = [GroupProfile(g.name, g.size, 0.0, 0.0, (), (), g.frozen) for g in coupling.groups if g.frozen]
    return (*sorted(found, key=lambda g: -g.cost), *frozen)


def paying_widths(curve: Sequence[tuple[int, float]]) -> tuple[int, ...]:
    """Widths, descending from the dense one, that each save at least 1 % of the dense cost over the last of them."""
    widths = [curve[-1][0]]
    least, scale = curve[-1][1], curve[-1][1]
    for width, cost in reversed(curve[:-1]):
        if cost <= least - _PAYS * scale:
            widths.append(width)
            least = cost
    return tuple(widths)


def _few(widths: Sequence[int], most: int = 9) -> str:
    if len(widths) <= most:
        return " ".join(map(str, widths))
    picked = [widths[i] for i in np.linspace(0, len(widths) - 1, most).round().astype(int)]
    return " ".join(map(str, picked)) + f" … ({len(widths)} in all)"
