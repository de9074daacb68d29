"""Scores + costs -> the width problem, and its solution -> a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from ..arguments import is_count, is_share, is_whole
from ..coupling.branches import Branch
from ..errors import BudgetError
from ..latency.pricing import PriceList
from ..scoring.values import WidthValues
from ..solver import Branch as BranchChoice
from ..solver import CostTable, WidthGroup, WidthProblem
from ..types import ChannelGroup, Coupling, Plan, scored_name
from .evenness import even_values, uniform_values

MAX_OPTIONS = 32
"""Widths offered per group: finer steps than a 32nd of a group hardly change the optimum."""

COARSE, FINE = 6, 16
"""At least so many widths lie between nothing and all of a group before they are multiples of 8, where time is measured
and where it is not. With 6, even widths of groups of 16 to 64 channels lost 2 to 8 points at 10 % of the MACs
(docs/benchmarks_accuracy.md); with 16, measuring a small network took 75 s instead of 4."""


def width_options(
    group: ChannelGroup, round_to: int | None = None, min_keep: float | int = 0.1, floor: int = 1, steps: int = COARSE
) -> tuple[int, ...]:
    """The widths that a group may take, ascending; its present size is always one of them.

    Args:
        group: a group that may shrink.
        round_to: widths are multiples of this many slots of the producing layers, where hardware runs best. None
            takes 8, or less for groups so small that few widths would be left.
        min_keep: smallest width: a share of the group (a float), or a number of channels (an int).
        floor: a further smallest width.
        steps: with `round_to` None, `COARSE` or `FINE`.

    Raises:
        BudgetError: `round_to` or `min_keep` out of range.
    """
    if round_to is not None and not is_whole(round_to):
        raise BudgetError(f"round_to={round_to!r} must be a whole number of at least 1")
    share = is_share(min_keep)
    if not (share or is_count(min_keep)):
        raise BudgetError(
            f"min_keep={min_keep!r} must be a share in (0, 1] (a float) or a number of channels (an int of at least 1)"
        )
    slots = min((m.slots.shape[1] for m in group.members if m.role == "producer"), default=1)
    if round_to is None:
        round_to = next(r for r in (8, 4, 2, 1) if group.size * slots >= steps * r or r == 1)
    step = int(round_to) // math.gcd(int(round_to), slots)
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
    evenness: float = 0.0,
    uniform: bool = False,
    dropping: Mapping[str, float] | None = None,
    prices: PriceList | None = None,
) -> WidthProblem:
    """What the solver is asked.

    Args:
        coupling, tables: of the network that is left; `tables` may hold costs of branches dropped from it.
        values: of the groups as they stand; groups without values stay as wide as they are.
        branches: that may be dropped; each is worth all of the channels that it adds.
        silent: groups whose values only rank their channels: even widths decide about them (`evenness`).
        evenness: weight of even widths beside the values of the other groups.
        uniform: all values only rank channels.
        prices: of `tables`, where values only rank channels (`price_list`); they serve many problems.
        dropping: what is lost without a branch, measured: all that is lost, its groups included.
    """
    groups = {}
    for group in coupling.prunable:
        value = values[group.name].value if group.name in values else np.zeros(group.size + 1)
        widths = _as_array(tuple(options[group.name]))
        groups[group.name] = WidthGroup(widths, value[widths])
    removable = [
        branch_choice(branch, tables, groups, float(values[scored_name(branch.name)].value[-1])) for branch in branches
    ]
    # A branch that adds nothing can go without a loss, and so can what is in it.
    idle = {name for choice in removable if choice and choice.value == 0 for name in choice.groups}
    quiet = [name for name in silent if name not in idle]
    loud = {name: v for name, v in values.items() if name in groups and name not in (*quiet, *idle)}
    even = even_values(groups, loud, [*quiet, *(loud if evenness > 0 else ())], tables, budgets)
    neutral = {name: groups[name].value + evenness * v if name in loud else v for name, v in even.items()}
    neutral |= {name: np.zeros(len(groups[name].widths)) for name in idle}
    if uniform:
        neutral |= uniform_values({n: g for n, g in groups.items() if n not in idle}, tables, prices, budgets)
    for name, value in neutral.items():
        groups[name] = WidthGroup(groups[name].widths, value)
    choices = tuple(_measured(c, groups, (dropping or {}).get(c.name)) for c in removable if c)
    return WidthProblem("network", groups, tuple(tables), dict(budgets), choices, unit)


@lru_cache(maxsize=1024)
def _as_array(widths: tuple[int, ...]) -> np.ndarray:
    """One array for the same widths: problems for many budgets, and many groups, have them."""
    array = np.array(widths, np.int64)
    array.setflags(write=False)
    return array


def price_list(options: Mapping[str, Sequence[int]], tables: Sequence[CostTable]) -> PriceList | None:
    """The tables packed, for all widths that groups may take; None if there are none."""
    groups = {name: WidthGroup(np.asarray(widths), np.zeros(len(widths))) for name, widths in options.items()}
    return PriceList.of(WidthProblem("prices", groups, tuple(tables), {})) if tables else None


def _measured(choice: BranchChoice, groups: Mapping[str, WidthGroup], loss: float | None) -> BranchChoice:
    """The branch worth so much that dropping it loses this, with what its groups are worth at their full widths."""
    if loss is None or choice.value == 0:
        return choice
    return replace(choice, value=loss - sum(float(groups[name].value[-1]) for name in choice.groups))


def in_branch(table: CostTable, branch: Branch) -> bool:
    """Whether a cost vanishes with a branch: tables are named after a parameter, a node, or "module/node"."""
    return table.name in branch.tensors or table.name.rpartition("/")[2] in branch.first.nodes


def branch_choice(
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
    return coupling.planned(kept, dropped)


def compose(first: Plan, second: Plan) -> Plan:
    """The plan that does `first`, then `second` (whose indices count what `first` kept)."""
    if not first:
        return second
    kept = dict(first.kept)
    for name, rows in second.items():
        kept[name] = tuple(kept[name][i] for i in rows) if name in kept else rows
    made_for, made_by = {**second.made_for, **first.made_for}, {**second.made_by, **first.made_by}
    return Plan(kept, (*first.dropped, *second.dropped), made_for, made_by)


def remaining(done: Plan, reached: Plan) -> Plan:
    """The plan that leads from the network that `done` made to the one that `reached` makes of the original."""
    kept = {}
    for name, rows in reached.items():
        if len(rows) == len(done.get(name, ())):
            continue  # Where one channel was left, that network has no such group.
        place = {channel: i for i, channel in enumerate(done[name])} if name in done else None
        kept[name] = rows if place is None else tuple(place[channel] for channel in rows)
    return Plan(kept, tuple(set(reached.dropped) - set(done.dropped)))
