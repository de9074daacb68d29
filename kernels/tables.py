"""Latency tables of many layers, packed so that one query reads three small things.

Grids are irregular, so the cell of a width is looked up, not searched. For every layer and every whole width up to the
widest of all layers a *place* says, in one 64-bit number, where that width lies on the layer's grid:

    place = (distance to the grid point at or below) << 32 | (that point's share of the cell's index)

A cell holds the polynomial of one rectangle of the grid (16 bytes in float32), dx and dy being the distances:

    time = t + dx * by_x + dy * (by_y + dx * by_xy)        x: input width, y: output width

The last grid point of an axis begins a cell of its own, with slopes of 0, and a width on a grid point has distance 0:
its time comes back bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import LatencyError

Table = tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray, Sequence[Sequence[float]] | np.ndarray]


PLACES = 2**27
"""Of one side of a stack at most: 1 GiB."""


@dataclass(frozen=True, slots=True, eq=False)
class TableStack:
    """Tables of `num_layers` layers on one device. Build with `build`, query with `halp_fx.kernels.lookup`.

    Attributes:
        cells: (cells, 4), float32 or float64: t, by_x, by_y, by_xy of the module's docstring, in the unit of the
            tables, and per channel.
        inputs: (num_layers, widest + 1) int64: the place of every input width. The shares are the layer's first
            cell and the column.
        outputs: the same of output widths. The shares are the first cell of a row, less that of the layer.
    """

    cells: Tensor
    inputs: Tensor
    outputs: Tensor

    @property
    def num_layers(self) -> int:
        return len(self.inputs)

    @property
    def device(self) -> torch.device:
        return self.cells.device

    @classmethod
    def build(
        cls,
        tables: Sequence[Table],
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> TableStack:
        """Packs tables.

        Args:
            tables: for every layer (in_widths, out_widths, times): ascending whole widths, and the time at
                each pair, times[o][i], shape (len(out_widths), len(in_widths)).
            dtype: of cells and results.
            device: where the queries will be.

        Raises:
            LatencyError: widths not ascending or not whole, times of another shape, or not finite.
        """
        if not tables or dtype not in (torch.float32, torch.float64):
            raise LatencyError(f"a table stack needs at least one table and float32 or float64, not {dtype}")
        parts = [_checked(n, *table) for n, table in enumerate(tables)]
        first = np.cumsum([0] + [times.size for *_, times in parts])
        widest = [max(int(part[side][-1]) for part in parts) for side in (0, 1)]
        if first[-1] >= 2**31 or len(parts) * (max(widest) + 1) > PLACES:
            raise LatencyError(
                f"{len(parts)} tables with {first[-1]:,} cells and widths up to {max(widest):,} are too much for one "
                "stack: split them into several"
            )
        inputs = np.stack(
            [
                _places(i, start + np.arange(len(i)), widest[0])
                for (i, _, _), start in zip(parts, first[:-1], strict=True)
            ]
        )
        outputs = np.stack([_places(o, len(i) * np.arange(len(o)), widest[1]) for i, o, _ in parts])
        cells = np.concatenate([_cells(*part) for part in parts])
        return cls(
            torch.from_numpy(cells).to(device, dtype),
            torch.from_numpy(inputs).to(device),
            torch.from_numpy(outputs).to(device),
        )


def _checked(number: int, in_widths: Any, out_widths: Any, times: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    axes = []
    for name, widths in (("in_widths", in_widths), ("out_widths", out_widths)):
        axis = np.asarray(widths)
        if axis.ndim != 1 or axis.size == 0 or not np.all(np.equal(np.mod(axis, 1), 0)):
            raise LatencyError(f"table {number}: {name} must be a row of whole numbers, not {widths!r}")
        if np.any(np.diff(axis) <= 0):
            raise LatencyError(f"table {number}: {name} must ascend, not {axis.tolist()}")
        axes.append(axis.astype(np.int64))
    values = np.asarray(times, dtype=np.float64)
    if values.shape != (len(axes[1]), len(axes[0])):
        raise LatencyError(f"table {number}: times have shape {values.shape}, not {(len(axes[1]), len(axes[0]))}")
    if not np.isfinite(values).all():
        raise LatencyError(f"table {number}: times must be finite; fill or drop the entries that were not measured")
    return axes[0], axes[1], values


def _places(widths: np.ndarray, shares: np.ndarray, widest: int) -> np.ndarray:
    """The place of every width from 0 to `widest`; beyond the grid that of its nearest end."""
    asked = np.clip(np.arange(widest + 1), widths[0], widths[-1])
    at = np.searchsorted(widths, asked, side="right") - 1
    found: np.ndarray = (asked - widths[at]) << 32 | shares[at]
    return found


def _cells(in_widths: np.ndarray, out_widths: np.ndarray, times: np.ndarray) -> np.ndarray:
    by_x, by_y, by_xy = (np.zeros(times.shape) for _ in range(3))
    dx, dy = np.diff(in_widths), np.diff(out_widths)[:, None]
    by_x[:, :-1] = np.diff(times, axis=1) / dx
    by_y[:-1] = np.diff(times, axis=0) / dy
    by_xy[:-1] = np.diff(by_x, axis=0) / dy
    return np.stack([times, by_x, by_y, by_xy], axis=-1).reshape(-1, 4)
