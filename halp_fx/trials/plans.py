"""Coupling -> the widths that trials have."""

from __future__ import annotations

import math
import random
from collections import Counter

from ..types import Coupling, Plan

_SHARES = (0.5, 0.75, 0.625)
# Of fewer channels, two of these would come to the same width.
_FEW, _SHARES_OF_FEW = 6, (0.5, 0.75, 0.25)


def shares(coupling: Coupling) -> Plan:
    """Each group at one of several shares of its width, so that equal widths do not hide what depends on which."""
    kept = {}
    for i, group in enumerate(coupling.prunable):
        share = (_SHARES_OF_FEW if group.size < _FEW else _SHARES)[i % len(_SHARES)]
        kept[group.name] = range(max(1, min(math.ceil(group.size * share), group.size - 1)))
    return Plan({name: tuple(rows) for name, rows in kept.items()})


def halves(coupling: Coupling) -> Plan:
    """Each group at half of its width."""
    return Plan({g.name: tuple(range(max(1, g.size // 2))) for g in coupling.prunable})


def by_turns(coupling: Coupling) -> Plan:
    """As `shares`, but that every other group of two channels keeps both."""
    plan = shares(coupling)
    pairs = [g.name for g in coupling.prunable if g.size == 2]
    return Plan({name: plan[name] for name in plan if name not in pairs[1::2]})


def drawn(coupling: Coupling) -> Plan:
    """Other widths, drawn at random: a number that equals a width by coincidence would have to do so again. Of groups
    that `shares` leaves in the same proportion, no two are here again, as far as there are widths enough: otherwise
    they would seem to follow each other."""
    draw = random.Random(0)
    kept = {}
    taken = [Counter[float]() for _ in _SHARES]
    for i, group in enumerate(coupling.prunable):
        so_far = taken[i % len(_SHARES)]
        widths = range(max(1, group.size // 4), max(1, group.size - 1) + 1)
        rarest = min(so_far[w / group.size] for w in widths)
        width = draw.choice([w for w in widths if so_far[w / group.size] == rarest])
        so_far[width / group.size] += 1
        kept[group.name] = tuple(sorted(draw.sample(range(group.size), width)))
    return Plan(kept)
