"""Latency tables of many layers, packed so that one query reads one record.

Grids are irregular, so the cell of a width is looked up, not searched: `cells` maps every whole width between
the first and the last grid point of an axis to its cell. A record holds all that one cell needs (32 bytes in
float32: one memory sector):

    x0, 1 / (x1 - x0), y0, 1 / (y1 - y0), t00, t01, t10, t11        x: input width, y: output width, tYX: time

The last grid point of an axis begins a cell of its own, with slope 0: hence a width on a grid point always
has fraction exactly 0, and its time comes back bit for bit.
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


@dataclass(frozen=True, slots=True, eq=False)
class TableStack:
    """Tables of `num_layers` layers on one device. Build with `build`, query with `halp_fx.kernels.lookup`.

    Attributes:
        records: (cells, 8), float32 or float64, in the unit of the tables: see the module's docstring.
        cells: unsigned 8-bit where every axis has at most 256 points (so that it stays in L1), else int32.
        layers: (num_layers, 8) int32: smallest and largest input width, offset of its map in `cells` less the
            smallest width, first record; smallest and largest output width, offset of its map likewise, and
            records per output cell.
        layers_by_column: the same as 8 tensors, for the PyTorch twin.
    """

    records: Tensor
    cells: Tensor
    layers: Tensor
    layers_by_column: tuple[Tensor, ...]

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        return self.records.device

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
            dtype: of records and results. float32 halves what a query reads.
            device: where the queries will be.

        Raises:
            LatencyError: widths not ascending or not whole, times of another shape, or not finite.
        """
        if not tables or dtype not in (torch.float32, torch.float64):
            raise LatencyError(f"a table stack needs at least one table and float32 or float64, not {dtype}")
        parts = [_checked(n, *table) for n, table in enumerate(tables)]
        records = np.concatenate([_records(*part) for part in parts])
        maps = [_cell_of_width(widths) for part in parts for widths in part[:2]]
        starts = np.cumsum([0] + [len(m) for m in maps])
        rows = np.cumsum([0] + [len(i) * len(o) for i, o, _ in parts])
        layers = np.array(
            [
                (i[0], i[-1], starts[2 * n] - i[0], rows[n], o[0], o[-1], starts[2 * n + 1] - o[0], len(i))
                for n, (i, o, _) in enumerate(parts)
            ],
            dtype=np.int64,
        )
        if max(np.abs(layers).max(), starts[-1], rows[-1]) >= 2**31:
            raise LatencyError("the tables hold more than 2^31 widths or cells: split them into several stacks")
        cell_dtype = np.uint8 if max(len(axis) for part in parts for axis in part[:2]) <= 256 else np.int32
        return cls(
            torch.from_numpy(records).to(device, dtype),
            torch.from_numpy(np.concatenate(maps).astype(cell_dtype)).to(device),
            torch.from_numpy(layers.astype(np.int32)).to(device),
            tuple(torch.from_numpy(column.copy()).to(device) for column in layers.astype(np.int32).T),
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


def _cell_of_width(widths: np.ndarray) -> np.ndarray:
    """Cell of every whole width from the first to the last grid point; the last point is a cell of its own."""
    return np.searchsorted(widths, np.arange(widths[0], widths[-1] + 1), side="right") - 1


def _records(in_widths: np.ndarray, out_widths: np.ndarray, times: np.ndarray) -> np.ndarray:
    def slope(widths: np.ndarray) -> np.ndarray:
        return np.append(1.0 / np.diff(widths), 0.0)

    found = np.empty((*times.shape, 8))
    found[..., 0], found[..., 1] = in_widths, slope(in_widths)
    found[..., 2], found[..., 3] = out_widths[:, None], slope(out_widths)[:, None]
    # Beyond the last point of an axis lies that point once more.
    right, below = (np.minimum(np.arange(n) + 1, n - 1) for n in times.shape[::-1])
    found[..., 4], found[..., 5] = times, times[:, right]
    found[..., 6], found[..., 7] = times[below], times[below][:, right]
    return found.reshape(-1, 8)
