"""What is to be budgeted, from a command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import BudgetError, HalpError
from .output import writable_table

if TYPE_CHECKING:
    from ..latency.costs import Cost
    from ..pruning.budgets import BudgetLike

COUNTED = ("macs", "flops", "params", "memory")


def cost_of(cost: str, runtime: str, device: str, table: Path | None, threads: int | None) -> str | Cost:
    """What `prune` takes as `latency`: a counted cost by its name, or latency, measured here or by the table of another
    device.

    Raises:
        HalpError: no such cost or runtime; a table that is not there, and cannot be made.
    """
    from ..latency.fingerprint import kind_of

    kind_of(runtime)  # A word that is none is said, also where nothing is timed.
    if cost in COUNTED:
        return cost
    if cost != "latency":
        raise HalpError(f"--cost {cost!r} is not known: latency, {', '.join(COUNTED)}")
    from ..latency.elsewhere import of_other_device
    from ..latency.measured import MeasuredLatency

    if table is not None and not table.exists():
        writable_table(table)
    if table is not None and table.suffix == ".json" and not table.exists():
        typer.echo(f"{table} is not there yet: layers are timed here, and their times kept in it", err=True)
    there = None if table is None else of_other_device(table)
    return there or MeasuredLatency(runtime, device, table, threads)


def budget_of(budgets: Sequence[str]) -> BudgetLike:
    """ "60%", or several such as "latency=4ms" and "params=50%".

    Raises:
        BudgetError: several without a name.
    """
    named = [b.partition("=") for b in budgets]
    if len(named) == 1 and not named[0][1]:
        return budgets[0]
    if not all(equals for _, equals, _ in named):
        raise BudgetError(f"--budget {' --budget '.join(budgets)}: name each of several, e.g. latency=4ms params=50%")
    return {name.strip(): value.strip() for name, _, value in named}
