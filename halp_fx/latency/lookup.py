"""Costs from tables at given widths: one at a time, or millions at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..kernels import TableStack
from ..solver import CostTable, Term


def cost_at(table: CostTable, widths: Mapping[str, int]) -> float:
    """The cost of a layer when each group is as wide as `widths` says."""
    n_out = _width(table.output, table.out_offset, widths, table.out_widths)
    n_in = _width(table.inputs, table.in_offset, widths, table.in_widths)
    return float(table.at([n_out], [n_in])[0, 0])


def costs_along(table: CostTable, widths: Mapping[str, int], group: str, at: Sequence[int]) -> np.ndarray:
    """As `cost_at`, with one group at each of some widths in turn: shape (len(at),)."""
    outs, ins = (
        [_width(terms, offset, {**widths, group: w}, grid) for w in at]
        for terms, offset, grid in (
            (table.output, table.out_offset, table.out_widths),
            (table.inputs, table.in_offset, table.in_widths),
        )
    )
    # Where one of the two does not follow the group, it need not be looked up for each of the other.
    rows, row_of = np.unique(outs, return_inverse=True)
    columns, column_of = np.unique(ins, return_inverse=True)
    found: np.ndarray = table.at(rows, columns)[row_of, column_of]
    return found


def stack_tables(
    tables: Sequence[CostTable], dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> TableStack:
    """Tables packed for `halp_fx.kernels.lookup`: the layer index of a query is the position in `tables`."""
    return TableStack.build([(t.in_widths, t.out_widths, t.table) for t in tables], dtype, device)


def _width(terms: tuple[Term, ...], offset: int, widths: Mapping[str, int], grid: np.ndarray) -> int:
    if not terms and len(grid) == 1:
        return int(grid[0])
    return offset + sum(term.scale * widths[term.group] for term in terms)
