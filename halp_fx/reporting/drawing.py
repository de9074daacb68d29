"""A picture of a dependency graph. Needs matplotlib (extra `plots`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import path_of
from ..types import LAYER, Axis, DependencyGraph
from .plots import new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Axes that only follow a layer's: drawn, they are four of five boxes of a ResNet, each on one line to its convolution.
_FOLLOWING = ("norm", "bias", "statistic")
_WIDE, _HIGH = 2.6, 0.62
_LONGEST = 32


def draw(graph: DependencyGraph, path: str | Path) -> Path:
    """Write a picture of the graph, the first layer on top: a box for every axis but those of norms and biases, a line
    for everything that couples two of them, and an arrow where a layer computes one from the other.

    Raises:
        LatencyError: matplotlib is not installed.
    """
    return save(picture(graph), path_of(path))


def picture(graph: DependencyGraph) -> Figure:
    """As `draw`, to go on with."""
    at = _places(graph)
    columns, rows = ([0, *(place[i] for place in at.values())] for i in (0, 1))
    wide, high = max(columns) - min(columns) + 1, max(rows) + 1
    figure = new_figure(figsize=(_WIDE * (wide + 0.6) + 1.2, _HIGH * high + 0.4))
    axes = figure.subplots()
    groups = {g: f"C{i % 10}" for i, g in enumerate(dict.fromkeys(g for a in at for g in _data(graph, a)["groups"]))}
    edges = {(e.first, e.second, e.kind): e for e in graph.edges() if e.first in at and e.second in at}
    kinds = {kind: f"C{i % 10}" for i, kind in enumerate(sorted({e.kind for e in edges.values()} - {LAYER}))}
    for e in edges.values():
        (left, top), (right, bottom) = at[e.first], at[e.second]
        layer = e.kind == LAYER
        # Around the boxes between: what is a few rows apart would pass behind them.
        bend = 0.0 if left != right or bottom - top < 2 else 0.55 if bottom - top < 6 else 0.3
        arrow = {
            "arrowstyle": "-|>" if layer else "-",
            "color": "0.6" if layer else kinds[e.kind],
            "lw": 1.0 if layer else 1.8,
            "connectionstyle": f"arc3,rad={-bend}",
            "shrinkA": 10,
            "shrinkB": 14,
        }
        axes.annotate("", (right, -bottom), (left, -top), arrowprops=arrow, zorder=1)
    for axis, (column, row) in at.items():
        data = _data(graph, axis)
        box = {
            "boxstyle": "round,pad=0.3",
            "fc": "0.92" if data["frozen"] or not data["groups"] else "white",
            "ec": groups[data["groups"][0]] if len(data["groups"]) == 1 else "0.4",
        }
        name = str(axis) if len(str(axis)) <= _LONGEST else f"…{str(axis)[-_LONGEST:]}"
        words = f"{name}\n{data['size']}{' frozen' if data['frozen'] else ''}"
        axes.text(column, -row, words, ha="center", va="center", fontsize=7, bbox=box, zorder=2)
    for kind, color in kinds.items():
        axes.plot([], [], color=color, label=kind)
    axes.plot([], [], color="0.6", label="layer: is computed from")
    axes.set_xlim(min(columns) - 0.7, max(columns) + 0.9)
    axes.set_ylim(-high, 1)
    axes.axis("off")
    axes.legend(fontsize=7, title="lines (a border: the channel group)", title_fontsize=7, loc="upper right")
    figure.tight_layout(pad=0.2)
    return figure


def _data(graph: DependencyGraph, axis: Axis) -> dict[str, Any]:
    found: dict[str, Any] = graph.graph.nodes[axis]
    return found


def _places(graph: DependencyGraph) -> dict[Axis, tuple[float, int]]:
    """A column and a row for every axis that is drawn: a row for every generation, below those that it depends on."""
    shown = ([a for a in g if _data(graph, a)["role"] not in _FOLLOWING] for g in graph.generations())
    at: dict[Axis, tuple[float, int]] = {}
    for row, generation in enumerate(filter(None, shown)):
        wanted = []
        for axis in generation:
            # Below the leftmost that it depends on: below the last one, the columns of a GoogLeNet drift to the right.
            wanted.append((min((at[a][0] for a in graph.graph.predecessors(axis) if a in at), default=0.0), axis))
        free = float("-inf")
        for column, axis in sorted(wanted, key=lambda each: each[0]):
            free = max(column, free + 1)
            at[axis] = (free, row)
    return at
