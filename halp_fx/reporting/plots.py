"""Pictures of a profile: a bar chart of the network and a heat map per table. Needs matplotlib (extra `plots`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..latency.errors import LatencyError
from ..solver import CostTable
from .profiling import Profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_BARS = 25


def save_plots(profile: Profile, directory: str | Path, most_tables: int = 12) -> tuple[Path, ...]:
    """Write `network.png` and a heat map of each of the most costly distinct tables; returns the paths.

    Raises:
        LatencyError: matplotlib is not installed.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = [save(bars(profile), directory / "network.png")]
    tables = {table.name: table for table in profile.tables}
    seen: set[str] = set()
    for layer in profile.layers:
        signature, table = profile.signatures.get(layer.name, layer.name), tables[layer.name]
        if signature in seen or table.table.size < 2 or len(seen) >= most_tables:
            continue
        seen.add(signature)
        name = re.sub(r"[^\w.-]+", "-", layer.name).strip("-")
        paths.append(save(heat_map(table, profile.unit), directory / f"table-{name}.png"))
    return tuple(paths)


def bars(profile: Profile) -> Figure:
    """Cost of the most costly layers, coloured by operator, and the staircases of the most costly groups."""
    figure = new_figure(figsize=(11, 8))
    left, right = figure.subplots(1, 2)
    rows = profile.layers[:_MOST_BARS][::-1]
    operators = sorted({row.op for row in rows})
    colors = {op: f"C{i % 10}" for i, op in enumerate(operators)}
    left.barh([row.name[-38:] for row in rows], [row.cost for row in rows], color=[colors[row.op] for row in rows])
    left.set_xlabel(profile.unit)
    left.set_title(f"layers: {profile.total:.4g} {profile.unit} in sum, {profile.dense:.4g} end to end", fontsize=9)
    left.tick_params(labelsize=6)
    for op in operators:
        left.barh([], [], color=colors[op], label=op)
    left.legend(fontsize=6)
    for group in [g for g in profile.groups if g.frozen is None][:8]:
        widths, costs = zip(*group.curve, strict=True)
        right.plot(np.array(widths) / group.size, costs, marker=".", label=group.name)
    right.set_xlabel("share of the group's channels kept, all other groups dense")
    right.set_ylabel(f"layers of the group, {profile.unit}")
    right.set_ylim(bottom=0)
    right.legend(fontsize=6)
    figure.tight_layout()
    return figure


def heat_map(table: CostTable, unit: str) -> Figure:
    """One table: a heat map over both widths, or a line where only one width matters."""
    figure = new_figure(figsize=(5, 4))
    axes = figure.subplots()
    axes.set_title(table.name, fontsize=8)
    if 1 in table.table.shape:
        widths = table.in_widths if len(table.in_widths) > 1 else table.out_widths
        axes.plot(widths, table.table.reshape(-1), marker="o")
        axes.set_xlabel("input width" if len(table.in_widths) > 1 else "output width")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
    else:
        image = axes.pcolormesh(_edges(table.in_widths), _edges(table.out_widths), table.table)
        figure.colorbar(image, label=unit)
        axes.set_xlabel("input width")
        axes.set_ylabel("output width")
    figure.tight_layout()
    return figure


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
        raise LatencyError("plots need matplotlib: pip install 'halp-fx[plots]'") from error
    return Figure(**options)


def save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=110)
    return path
