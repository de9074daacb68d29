"""Scores + costs -> the width problem, and its solution -> a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..coupling.branches import Branch
from ..errors import BudgetError
from ..scoring.values import WidthValues
from ..solver import Branch as BranchChoice
from ..solver import CostTable, WidthGroup, WidthProblem
from ..types import ChannelGroup, Coupling, Plan, scored_name

MAX_OPTIONS = 32
"""Widths offered per group: finer steps than a 32nd of a group hardly change the optimum."""


def width_options(
    group: ChannelGroup, round_to: int | None = None, min_keep: float | int = 0.1, floor: int = 1
) -> tuple[int, ...]:
    """The widths that a group may take, ascending; its present size is always one of them.

    Args:
        group: a group that may shrink.
        round_to: widths are multiples of this many slots of the producing layers, where hardware runs best. None
            takes 8, or less for groups so small that few widths would be left.
        min_keep: smallest width: a fraction of the group (a float), or a number of channels (an int).
        floor: a further smallest width.

    Raises:
        BudgetError: `round_to` or `min_keep` out of range.
    """
    if round_to is not None and (isinstance(round_to, bool) or int(round_to) != round_to or round_to < 1):
        raise BudgetError(f"round_to={round_to!r} must be a whole number of at least 1")
    if isinstance(min_keep, bool) or not min_keep > 0:
        raise BudgetError(f"min_keep={min_keep!r} must be a fraction in (0, 1] or a number of channels")
    slots = min((m.slots.shape[1] for m in group.members if m.role == "producer"), default=1)
    if round_to is None:
        round_to = next(r for r in (8, 4, 2, 1) if group.size * slots >= 6 * r or r == 1)
    step = round_to // math.gcd(round_to, slots)
    share = isinstance(min_keep, float)
    if share and min_keep > 1:
        raise BudgetError(f"min_keep={min_keep!r} is a fraction above 1: write a whole number for a channel count")
    least = max(math.ceil(min_keep * group.size) if share else int(min_keep), floor)
    if group.size // step > MAX_OPTIONS:
        step *= math.ceil(group.size / step / MAX_OPTIONS)
    widths = {w for w in range(step, group.size, step) if w >= least}
    return tuple(sorted(widths | {group.size}))


def build_problem(
    coupling: Coupling,
    values: Mapping[str, WidthValues],
    options: Mapping[str, Sequence[int]],
    tables: Sequence[CostTable],
    budgets: Mapping[str, float],
    unit: str,
    branches: Sequence[Branch] = (),
    silent: Sequence[str] = (),
) -> WidthProblem:
    """What the solver is asked.

    Args:
        coupling, tables: of the network that is left; `tables` may hold costs of branches dropped from it.
        values: of the groups as they stand; groups without values stay as wide as they are.
        branches: that may be dropped; each is worth all of the channels that it adds.
        silent: groups whose values only rank their channels: see `neutral_values`.
    """
    groups = {}
    for group in coupling.prunable:
        value = values[group.name].value if group.name in values else np.zeros(group.size + 1)
        widths = np.asarray(options[group.name])
        groups[group.name] = WidthGroup(widths, value[widths])
    found = [_choice(branch, tables, groups, float(values[scored_name(branch.name)].value[-1])) for branch in branches]
    choices = tuple(c for c in found if c)
    # A branch that adds nothing can go without a loss, and so can what is in it.
    idle = {name for choice in choices if choice.value == 0 for name in choice.groups}
    quiet = [name for name in silent if name not in idle]
    neutral = neutral_values(groups, values, quiet, tables, budgets)
    import os
    lam = float(os.environ.get("X_PRIOR", 0))
    if lam:
        loudn = [n for n in values if n in groups and n not in idle and n not in quiet]
        pri = prior_values(groups, values, loudn, tables, budgets)
        for n in loudn:
            groups[n] = WidthGroup(groups[n].widths, groups[n].value + lam * pri[n])
    neutral |= {name: np.zeros(len(groups[name].widths)) for name in idle}
    for name, values in neutral.items():
        groups[name] = WidthGroup(groups[name].widths, values)
    return WidthProblem("network", groups, tuple(tables), dict(budgets), choices, unit)


def neutral_values(
    groups: Mapping[str, WidthGroup],
    known: Mapping[str, WidthValues],
    silent: Sequence[str],
    tables: Sequence[CostTable],
    budgets: Mapping[str, float],
) -> dict[str, np.ndarray]:
    """Values for groups about which nothing is known, so that they become about as narrow as the others.

    A group is worth its share of the cost, in the unit that the other groups pay: their mean loss of value per share at
    the width that all would have if all were equally narrow. The value rises with the share r of channels kept as
    r / (r + 0.1): costs are products of two widths, and with less curvature narrow layers between wide ones would win.

    Returns:
        For each silent group, one value per width that it may take.
    """
    quiet = [name for name in silent if name in groups]
    if not quiet:
        return {}
    share, narrow = _shares(groups, tables, budgets)
    loud = [name for name in groups if name not in quiet and name in known and len(groups[name].widths) > 1]
    lost = 0.0
    for name in loud:
        value, size = known[name].value, known[name].size
        at = min(int(narrow * size), size - 1)
        lost += (value[-1] - value[at]) / (size - at) * size
    paid = lost / sum(share[name] for name in loud) if lost > 0 else 1.0
    slope = _CURVE / (narrow + _CURVE) ** 2
    values = {}
    for name in quiet:
        part = groups[name].widths / groups[name].widths[-1]
        values[name] = paid * share[name] / slope * part / (part + _CURVE)
    return values


def prior_values(groups, known, names, tables, budgets):
    import os
    share, narrow = _shares(groups, tables, budgets)
    lost = 0.0
    loud = [name for name in names if len(groups[name].widths) > 1]
    for name in loud:
        value, size = known[name].value, known[name].size
        at = min(int(narrow * size), size - 1)
        lost += (value[-1] - value[at]) / (size - at) * size
    paid = lost / sum(share[name] for name in loud)
    slope = _CURVE / (narrow + _CURVE) ** 2
    values = {}
    for name in names:
        part = groups[name].widths / groups[name].widths[-1]
        values[name] = paid * share[name] / slope * part / (part + _CURVE)
    return values


_CURVE = 0.1


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
        there = table.at(WidthProblem.out_width(table, full), WidthProblem.in_width(table, full))
        cost = max(float(there[0, 0]), 0.0) / budgets[table.resource]
        spent[table.resource] += cost
        for name in {t.group for t in terms}:
            share[name] += cost
    least = max(share.values(), default=1.0) / 1000 or 1.0
    share = {name: max(s, least) for name, s in share.items()}
    # Costs are about the product of two widths.
    return share, max(1.0, *spent.values()) ** -0.5


def in_branch(table: CostTable, branch: Branch) -> bool:
    """Whether a cost vanishes with a branch: tables are named after a parameter, a node, or "module/node"."""
    return table.name in branch.tensors or table.name.rpartition("/")[2] in branch.nodes


def _choice(
    branch: Branch, tables: Sequence[CostTable], groups: Mapping[str, WidthGroup], value: float
) -> BranchChoice | None:
    """The branch in the solver's terms; None if a cost that stays follows the width of one of its groups, as that of
    a fused unit across its end may."""
    own = {g for g in branch.groups if g in groups}
    costs = {i for i, table in enumerate(tables) if in_branch(table, branch)}
    using = {i for i, table in enumerate(tables) if own & {t.group for t in (*table.inputs, *table.output)}}
    return BranchChoice(branch.name, tuple(sorted(own)), tuple(sorted(costs)), value) if using <= costs else None


def plan_from(
    coupling: Coupling, values: Mapping[str, WidthValues], widths: Mapping[str, int], dropped: Sequence[str] = ()
) -> Plan:
    """Keep `widths[g]` channels of each group, those that its value is of."""
    kept = {}
    for group in coupling.prunable:
        if not widths.get(group.name):
            continue  # In a branch that is dropped.
        kept[group.name] = values[group.name].kept(widths[group.name])
    return Plan(kept, tuple(dropped))


def compose(first: Plan, second: Plan) -> Plan:
    """The plan that does `first`, then `second` (whose indices count what `first` kept)."""
    kept = dict(first.kept)
    for name, rows in second.items():
        kept[name] = tuple(kept[name][i] for i in rows) if name in kept else rows
    return Plan(kept, (*first.dropped, *second.dropped))
