"""evenness: what a width is worth of itself, so that groups become about as narrow as each other.

A group is worth its share of the cost, in the unit that the groups pay about which something is known: their mean loss
of value per share at the width that all would have if all were equally narrow. The value rises with the share r of
channels kept as r / (r + 0.1): costs are products of two widths, and with less curvature narrow layers between wide
ones would win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..latency.pricing import PriceList
from ..scoring.values import WidthValues
from ..solver import CostTable, WidthGroup, WidthProblem
from ..solver.problem import TOLERANCE

_CURVE = 0.1

_SHARES, _REFINED = 64, 4
"""Shares that are priced at once, and how often the interval that holds the largest that fits is divided into them."""


def even_values(
    groups: Mapping[str, WidthGroup],
    known: Mapping[str, WidthValues],
    wanted: Sequence[str],
    tables: Sequence[CostTable],
    budgets: Mapping[str, float],
) -> dict[str, np.ndarray]:
    """Values of even widths.

    Args:
        groups: all that the solver decides about, with the widths that they may take.
        known: what is known of groups; it sets the unit.
        wanted: the groups to tell the values of.

    Returns:
        For each wanted group, one value per width that it may take.
    """
    wanted = [name for name in wanted if name in groups]
    if not wanted:
        return {}
    share, narrow = _shares(groups, tables, budgets)
    told = [name for name in groups if name in known and len(groups[name].widths) > 1]
    lost = 0.0
    for name in told:
        value, size = known[name].value, known[name].size
        at = min(int(narrow * size), size - 1)
        lost += float(value[-1] - value[at]) / (size - at) * size
    paid = lost / sum(share[name] for name in told) if lost > 0 else 1.0
    slope = _CURVE / (narrow + _CURVE) ** 2
    values = {}
    for name in wanted:
        part = groups[name].widths / groups[name].widths[-1]
        values[name] = paid * share[name] / slope * part / (part + _CURVE)
    return values


def uniform_values(
    groups: Mapping[str, WidthGroup],
    tables: Sequence[CostTable],
    prices: PriceList | None,
    budgets: Mapping[str, float],
) -> dict[str, np.ndarray]:
    """Values of which the best choice is the one closest to all groups equally narrow: minus the square of the
    logarithm by which a width falls short of that, weighted by what the group's layers cost. So what the grid of widths
    does not allow is taken where little is moved by it, and not from a stream that half of the network reads. What is
    wider is worth hardly more.

    Args:
        prices: of these groups; of others that it knows the smallest widths count. None: nothing costs anything.
    """
    low = 1.0 if prices is None else _common_share(groups, prices, budgets)
    share, _ = _shares(groups, tables, budgets)
    parts = np.concatenate([np.zeros(0), *(group.widths / group.widths[-1] for group in groups.values())])
    short = np.log(np.maximum(parts, 1e-9) / max(low, 1e-9))
    worth, values, start = -(np.minimum(short, 0) ** 2) + 1e-4 * short, {}, 0
    for name, group in groups.items():
        values[name] = share[name] * worth[start : start + len(group.widths)]
        start += len(group.widths)
    return values


def _common_share(groups: Mapping[str, WidthGroup], prices: PriceList, budgets: Mapping[str, float]) -> float:
    """The largest share of its channels that every group can keep, each at the width that is nearest; 0 if none."""
    limits = [budgets.get(r, np.inf) for r in prices.resources]
    least = dict(zip(prices.groups, prices.bounds[0].tolist(), strict=True))
    most = np.array([b + TOLERANCE * max(1.0, abs(b)) for b in limits])

    # (groups, options): widths, and the middle between each and the one before it.
    offered = [groups[name].widths if name in groups else np.array([least[name]]) for name in prices.groups]
    widths = np.zeros((len(offered), max(map(len, offered), default=1)), np.int64)
    middles = np.full((len(offered), widths.shape[1]), np.inf)
    for row, own in enumerate(offered):
        widths[row, : len(own)] = own
        middles[row, 1 : len(own)] = (own[1:] + own[:-1]) / 2
    middles, each = middles[:, 1:], np.arange(len(offered))
    full = widths.max(1)

    low, high = 0.0, 1.0
    for _ in range(_REFINED):
        shares = np.linspace(low, high, _SHARES + 1)
        nearest = (middles < (shares[:, None] * full)[:, :, None]).sum(2)
        rows = widths[each, nearest]
        # Most of the shares, which ascend, lead to the same widths as the one before.
        new = np.append(True, (rows[1:] != rows[:-1]).any(1))
        totals = prices.totals_again(rows[new])
        fitting = np.flatnonzero(np.asarray((totals <= most).all(1))[np.cumsum(new) - 1])
        last = int(fitting[-1]) if len(fitting) else 0
        low, high = float(shares[last]), float(shares[min(last + 1, _SHARES)])
    return low


def _shares(
    groups: Mapping[str, WidthGroup], tables: Sequence[CostTable], budgets: Mapping[str, float]
) -> tuple[dict[str, float], float]:
    """What each group's layers take of the budgets at full width, and the share of its channels that every group would
    keep if all kept equally many."""
    full = {name: int(group.widths[-1]) for name, group in groups.items()}
    share = dict.fromkeys(groups, 0.0)
    spent = dict.fromkeys(budgets, 0.0)
    for table in tables:
        terms = (*table.inputs, *table.output)
        if table.resource not in budgets or budgets[table.resource] <= 0 or any(t.group not in full for t in terms):
            continue
        there = table.entry(WidthProblem.out_width(table, full), WidthProblem.in_width(table, full))
        cost = max(there, 0.0) / budgets[table.resource]
        spent[table.resource] += cost
        for name in {t.group for t in terms}:
            share[name] += cost
    least = max(share.values(), default=1.0) / 1000 or 1.0
    share = {name: max(s, least) for name, s in share.items()}
    # Costs are about the product of two widths.
    return share, max(1.0, *spent.values()) ** -0.5
