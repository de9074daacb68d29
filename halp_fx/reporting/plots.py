"""Pictures of profiles and reports, as matplotlib figures. Needs matplotlib (extra `plots`).

Colours are those of Okabe and Ito (2008), which people of every colour vision tell apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LatencyError
from ..extras import missing
from ..files import path_of, replacing
from ..pruning.budgets import amount
from ..solver import CostTable
from .details import GroupReport
from .profiling import Profile
from .report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
DENSE, PRUNED = "#9AA1AB", COLORS[0]

_KINDS = ("png", "svg", "pdf", "jpg")
"""What is offered where a name ends in none that is known; matplotlib writes some more."""

_MOST_BARS = 25
_MOST_STAIRS = 12
_OTHERS = "others"


def save_plots(profile: Profile, directory: str | Path, most_tables: int = 12) -> tuple[Path, ...]:
    """Write `network` and a heat map of each of the most costly distinct tables, each as PNG and SVG.

    Returns:
        The paths, each PNG before its SVG.

    Raises:
        LatencyError: matplotlib is not installed.
    """
    directory = path_of(directory)
    paths = _both(bars(profile), directory / "network")
    tables = {table.name: table for table in profile.tables}
    seen: set[str] = set()
    for layer in profile.layers:
        signature, table = profile.signatures.get(layer.name, layer.name), tables[layer.name]
        if signature in seen or table.table.size < 2 or len(seen) >= most_tables:
            continue
        seen.add(signature)
        name = re.sub(r"[^\w.-]+", "-", layer.name).strip("-")
        paths += _both(heat_map(table, profile.unit), directory / f"table-{name}")
    return tuple(paths)


def save_report_plots(report: Report, directory: str | Path) -> tuple[Path, ...]:
    """Write `layers` (before and after) and `widths` (staircases with the chosen widths), each as PNG and SVG, where
    the report has what they show.

    Raises:
        LatencyError: matplotlib is not installed.
    """
    directory = path_of(directory)
    paths: list[Path] = []
    if report.costs:
        paths += _both(before_after(report), directory / "layers")
    if any(len(g.cost.widths) > 1 for g in report.groups):
        paths += _both(staircases(report), directory / "widths")
    return tuple(paths)


def bars(profile: Profile) -> Figure:
    """Cost of the most costly layers, coloured by operator, and the staircases of the most costly groups."""
    figure = new_figure(figsize=(12, 8))
    left, right = figure.subplots(1, 2)
    rows = profile.layers[:_MOST_BARS][::-1]
    colors = _by_operator(profile)
    named = [row.op if row.op in colors else _OTHERS for row in rows]
    for op, color in colors.items():
        # An operator at a time: a legend takes the colour of what was drawn.
        at = [i for i, name in enumerate(named) if name == op]
        left.barh(at, [rows[i].cost for i in at], color=color, label=op)
    left.set_yticks(range(len(rows)), [row.name[-38:] for row in rows])
    left.margins(y=0.01)
    left.set_xlabel(f"cost of a layer, {profile.unit}")
    _amounts(left.xaxis, profile.unit)
    left.set_title(
        f"Layers: {amount(profile.total, profile.unit)} in sum, {amount(profile.dense, profile.unit)} end to end",
        fontsize=10,
    )
    left.tick_params(labelsize=7)
    left.legend(fontsize=7, frameon=False, loc="lower right")
    for i, group in enumerate([g for g in profile.groups if g.frozen is None][:8]):
        widths, costs = zip(*group.curve, strict=True)
        right.plot(np.array(widths) / group.size, costs, marker=".", color=COLORS[i], label=group.name)
    right.set_title("Groups: what their widths cost, all other groups dense", fontsize=10)
    right.set_xlabel("share of the group's channels kept")
    right.set_ylabel(f"cost of the group's layers, {profile.unit}")
    shares_on(right.xaxis)
    _amounts(right.yaxis, profile.unit)
    right.set_ylim(bottom=0)
    if right.lines:
        right.legend(fontsize=7, frameon=False)
    return _tidy(figure)


def _by_operator(profile: Profile) -> dict[str, str]:
    """A colour for each of the operators that cost most, and one for all others."""
    costs: dict[str, float] = {}
    for layer in profile.layers[:_MOST_BARS]:
        costs[layer.op] = costs.get(layer.op, 0.0) + layer.cost
    ranked = sorted(costs, key=lambda op: -costs[op])
    known = dict(zip(ranked[: len(COLORS) - 1], COLORS, strict=False))
    return known if len(ranked) < len(COLORS) else {**known, _OTHERS: DENSE}


def before_after(report: Report) -> Figure:
    """The layers that cost most, in the dense network and in the pruned one."""
    rows = sorted(report.costs, key=lambda c: -c.cost[0])[:_MOST_BARS][::-1]
    figure = new_figure(figsize=(9, 1.2 + 0.28 * len(rows)))
    axes = figure.subplots()
    at = np.arange(len(rows))
    axes.barh(at + 0.2, [c.cost[0] for c in rows], 0.38, color=DENSE, label="dense")
    axes.barh(at - 0.2, [c.cost[1] for c in rows], 0.38, color=PRUNED, label="pruned")
    axes.set_yticks(at, [c.name[-44:] for c in rows])
    axes.margins(y=0.01)
    axes.tick_params(labelsize=7)
    axes.set_xlabel(f"cost of a layer, {report.unit}")
    _amounts(axes.xaxis, report.unit)
    axes.set_title(report.verdict, fontsize=10, wrap=True)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return _tidy(figure)


def staircases(report: Report) -> Figure:
    """What the widths of the most costly groups cost, all other groups as chosen; the chosen width is marked."""
    groups = sorted((g for g in report.groups if len(g.cost.widths) > 1), key=_most)[:_MOST_STAIRS]
    columns = min(3, max(len(groups), 1))
    rows = -(-max(len(groups), 1) // columns)
    figure = new_figure(figsize=(4 * columns, 2.6 * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, group in zip(grid.flat, groups, strict=False):
        axes.plot(group.cost.widths, group.cost.values, marker=".", color="#444444", lw=1.2)
        if group.kept in group.cost.widths:
            chosen = group.cost.values[group.cost.widths.index(group.kept)]
            axes.plot([group.kept], [chosen], "o", color=PRUNED, ms=8)
            axes.axvline(group.kept, color=PRUNED, lw=0.8, ls=":")
        axes.set_title(f"{group.name[-32:]}: {group.kept} of {group.size}", fontsize=9)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("channels", fontsize=8)
        axes.set_ylabel(report.unit, fontsize=8)
        _amounts(axes.yaxis, report.unit)
    for axes in list(grid.flat)[len(groups) :]:
        axes.axis("off")
    figure.suptitle("Cost of a group's layers at its widths, all other groups as chosen (dot: its own)", fontsize=10)
    return _tidy(figure)


def _most(group: GroupReport) -> float:
    return -max(group.cost.values, default=0.0)


def _amounts(axis: Any, unit: str) -> None:
    """Ticks such as "4 M", where costs are counted."""
    from matplotlib.ticker import EngFormatter

    if unit != "ms":
        axis.set_major_formatter(EngFormatter())


def shares_on(*axes: Any) -> None:
    """Ticks such as "60%"."""
    for axis in axes:
        axis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")


def heat_map(table: CostTable, unit: str) -> Figure:
    """One table: a heat map over both widths, or a line where only one width matters."""
    figure = new_figure(figsize=(5, 4))
    axes = figure.subplots()
    axes.set_title(f"{table.name}, {unit}", fontsize=9)
    if 1 in table.table.shape:
        widths = table.in_widths if len(table.in_widths) > 1 else table.out_widths
        axes.plot(widths, table.table.reshape(-1), marker="o", color=PRUNED)
        axes.set_xlabel("input width" if len(table.in_widths) > 1 else "output width")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
    else:
        image = axes.pcolormesh(_edges(table.in_widths), _edges(table.out_widths), table.table)
        figure.colorbar(image, label=unit)
        axes.set_xlabel("input width")
        axes.set_ylabel("output width")
    return _tidy(figure)


def _edges(widths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Borders of the cells around grid lines."""
    points = np.asarray(widths, np.float64)
    middle = (points[1:] + points[:-1]) / 2
    return np.concatenate([[2 * points[0] - middle[0]], middle, [2 * points[-1] - middle[-1]]])


def new_figure(**options: Any) -> Figure:
    """A figure that no window shows.

    Raises:
        LatencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LatencyError(missing("a picture", "matplotlib", error, "plots")) from error
    return Figure(**options)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure; the path's suffix says how: PNG, SVG, PDF. A folder that is not there is made.

    Raises:
        LatencyError: nothing is written under such a suffix.
        OSError: it cannot be written.
    """
    kinds = figure.canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise LatencyError(f"{path}: a picture's name ends in .{', .'.join(k for k in _KINDS if k in kinds)}")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)
    return path


def _both(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and as SVG; the path has no suffix yet."""
    return [save(figure, path.with_name(f"{path.name}.{kind}")) for kind in ("png", "svg")]


def _tidy(figure: Figure) -> Figure:
    """Without frames that say nothing."""
    for axes in figure.axes:
        if axes.get_label() != "<colorbar>":
            axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
