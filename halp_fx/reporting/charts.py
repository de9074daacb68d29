"""Drawings of a report as SVG, of one ink (`currentColor`) and one accent: the page's style sheet colours them.

Sizes are CSS pixels: drawings are not scaled, so that their words stay readable on a phone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from ..pruning.budgets import figure
from .details import GroupReport, WidthCurve

ToPixels = Callable[[float], float]
"""A figure -> pixels."""

_WIDE, _LEFT, _RIGHT = 260, 6, 6
_COST_TOP, _COST_HIGH = 20, 74
_LOST_TOP, _LOST_HIGH = 112, 40
_HIGH = 172
_APART = 44

ROW = 30
"""Height of a row of the network's drawing."""

REACH = 76
"""Width of its arcs."""

MOST_ARCS = 400


def staircase(group: GroupReport, unit: str) -> Markup:
    """What a group's widths cost, and below it what they lose; the chosen width is marked in both."""
    widths = group.cost.widths or group.lost.widths
    if len(widths) < 2:
        return Markup("")
    x = _scale(widths[0], widths[-1], _LEFT, _WIDE - _RIGHT)
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{_WIDE - _RIGHT}" y1="{_HIGH - 14}" y2="{_HIGH - 14}"/>']
    at = x(group.kept)
    if group.kept:
        parts.append(f'<line class="chosen" x1="{at:.1f}" x2="{at:.1f}" y1="{_COST_TOP - 6}" y2="{_HIGH - 14}"/>')
    if len(group.cost.widths) > 1:
        parts += _line(
            group.cost, x, _COST_TOP, _COST_HIGH, group.kept, f"cost, {unit}", "line", lambda cost: figure(cost, unit)
        )
    if len(group.lost.widths) > 1:
        parts += _line(group.lost, x, _LOST_TOP, _LOST_HIGH, group.kept, "what is lost", "line faint", "{:.3g}".format)
    picked = group.kept not in (0, widths[0], widths[-1])
    for width, end, anchor in ((widths[0], _LEFT, "start"), (widths[-1], _WIDE - _RIGHT, "end")):
        if not picked or abs(at - end) >= _APART:  # Two numbers that touch read as one.
            parts.append(f'<text x="{end}" y="{_HIGH - 2}" text-anchor="{anchor}">{width}</text>')
    if picked:
        middle = min(max(at, _LEFT + 12.0), _WIDE - _RIGHT - 12.0)
        parts.append(f'<text class="picked" x="{middle:.1f}" y="{_HIGH - 2}" text-anchor="middle">{group.kept}</text>')
    words = f"{group.name}: {group.kept} of {group.size} channels kept"
    return _svg(_WIDE, _HIGH, words, parts)


def _line(
    curve: WidthCurve, x: ToPixels, top: int, high: int, kept: int, title: str, kind: str, say: Callable[[float], str]
) -> list[str]:
    """One curve from zero up, its highest value in words, and a dot at the chosen width."""
    most = max(*curve.values, 0.0) or 1.0
    y = _scale(0.0, most, top + high, top)
    points = " ".join(f"{x(w):.1f},{y(v):.1f}" for w, v in zip(curve.widths, curve.values, strict=True))
    parts = [
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDE - _RIGHT}" y1="{top + high}" y2="{top + high}"/>',
        f'<polyline class="{kind}" points="{points}"/>',
        f'<text x="{_LEFT}" y="{top - 8}">{Markup.escape(title)}</text>',
        f'<text x="{_WIDE - _RIGHT}" y="{top - 8}" text-anchor="end">at most {say(most)}</text>',
    ]
    if kept in curve.widths:
        value = curve.values[curve.widths.index(kept)]
        parts.append(f'<circle class="dot" cx="{x(kept):.1f}" cy="{y(value):.1f}" r="4"/>')
    return parts


def _scale(low: float, high: float, start: float, end: float) -> ToPixels:
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return start + (value - low) / span * (end - start)

    return place


def arcs(names: Sequence[str], flows: Sequence[tuple[str, str]]) -> Markup:
    """Which row's channels a layer computes from which: an arc for each pair, rows of `ROW` pixels from the top.

    Of more than `MOST_ARCS`, those between the nearest rows.
    """
    row = {name: i for i, name in enumerate(names)}
    pairs = sorted(
        {(row[a], row[b]) for a, b in flows if a in row and b in row and a != b}, key=lambda p: abs(p[0] - p[1])
    )
    farthest = max((abs(a - b) for a, b in pairs[:MOST_ARCS]), default=1)
    parts = []
    for a, b in pairs[:MOST_ARCS]:
        start, end = (ROW * (i + 0.5) for i in (a, b))
        # Short arcs are flat and long ones reach out, so that they do not lie on each other.
        reach = 10 + (REACH - 18) * (abs(a - b) / farthest) ** 0.6
        kind = "arc" if b > a else "arc back"
        left = REACH - reach * 4 / 3
        parts.append(
            f'<path class="{kind}" d="M{REACH - 3} {start:.0f}C{left:.0f} {start:.0f} {left:.0f} {end:.0f} '
            f'{REACH - 3} {end:.0f}"/>'
        )
    return _svg(REACH, ROW * len(names), f"{len(pairs)} layers between {len(names)} groups", parts)


def _svg(wide: int, high: int, words: str, parts: Sequence[str]) -> Markup:
    label = Markup.escape(words)
    body = "".join(parts)
    return Markup(f'<svg width="{wide}" height="{high}" role="img" aria-label="{label}">{body}</svg>')
