"""From a layout and the strides and dtypes of one step to the tables that drive the saliency kernel. NumPy only.

A strided tensor is looked at as a matrix: its dimensions in memory order, cut in two, so that every scored
dimension lies either in the rows or in the columns. A tile of that matrix then serves both kinds with one
read. Work is cut into *items* of about equal bytes, walked tile by tile:

    columns scored (and perhaps rows)   an item is one tile wide and walks down; it keeps column sums in registers
                                        and writes row sums per tile
    only rows scored                    an item is one tile high and walks right; it keeps row sums in registers
    thin or short (BatchNorm, 3x3       the flat memory is cut into rows of one tile's width, and an item writes
    depthwise)                          every element's contribution

What items write are *partials*. `index[indptr[c]:indptr[c + 1]]` lists the partials of channel c. That order
is fixed here, hence the result does not depend on which program finishes first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..errors import SaliencyError
from .layout import FLOATS, SegmentLayout

DTYPE_CODE = {dtype: code for code, dtype in enumerate(FLOATS)}
FIELDS = 16
"""int64 per item (128 bytes, one cache line): see `Field`."""


class Field:
    """Columns of the item table. An output of -1 is not written."""

    KIND = 0  # dtype code of w + 4 * dtype code of g + 16 if offsets are base + row * pitch, vectorised
    TENSOR = 1  # row of the pointer table
    ROWS = 2  # extent of the item in its matrix
    COLS = 3
    W_ROW = 4  # dense: element offset of the item's corner. Else: where its row offsets begin in `offsets`
    W_COL = 5  # dense: row pitch in elements. Else: where its column offsets begin in `offsets`
    G_ROW = 6
    G_COL = 7
    ROW_STEP = 8  # how the tile moves: (tile rows, 0) or (0, tile columns)
    COL_STEP = 9
    STEPS = 10
    TILE_ROW_SUMS = 11  # partial of row 0: row sums of each tile, walking down
    ROW_SUMS = 12  # partial of row 0: row sums over all tiles, walking right
    COL_SUMS = 13  # partial of column 0: column sums over all tiles, walking down
    ELEMENTS = 14  # partial of element 0: each element, rows one tile width apart


@dataclass(frozen=True, slots=True)
class Tiling:
    """Sizes of the cut.

    Attributes:
        rows, cols: one tile: two 16-byte loads per thread and tensor in float32, and as many under way for the next
            tile. With that the kernel needs 87 registers (72 in bfloat16) and spills none, so an SM holds five to
            seven programs with 8 to 16 KiB in flight each, where 3 TB/s at 800 ns latency need about 20 KiB per SM.
            Tiles twice as high were tried: 165 registers, hence two programs.
        items: how many items to aim at: about one wave of the 700 programs that run at once. An item has a start and an
            end that take as long as half a dozen tiles; in six waves of small items ResNet-50 took 83 us (float32) and
            75 us (bfloat16) on an H200, in one wave 71 and 53.
        max_steps: longest walk of an item, in tiles.
        direct: largest tensor (elements) whose contributions may be written one by one.
    """

    rows: int = 8
    cols: int = 128
    items: int = 700
    max_steps: int = 1024
    direct: int = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class WorkPlan:
    """The tables of one launch.

    Attributes:
        items: (items, FIELDS) int64, the largest first.
        offsets: int64 element offsets of rows and columns of tensors that are not dense and aligned.
        indptr: (num_channels + 1,) int32.
        index: int32, the partials of each channel.
        num_partials: floats that the items write.
        kinds: bit k is set when an item of kind k exists: the kernel is compiled for exactly these.
        bytes_read: of weights and gradients, each element once.
    """

    items: np.ndarray
    offsets: np.ndarray
    indptr: np.ndarray
    index: np.ndarray
    num_partials: int
    kinds: int
    bytes_read: int


def build_plan(
    layout: SegmentLayout,
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None] | None,
    tiling: Tiling = Tiling(),
) -> WorkPlan:
    """Plans one launch for tensors with these strides, dtypes and alignments.

    Args:
        layout: has been checked against the tensors.
        weights, grads: the tensors; without grads only weights are read. A parameter whose gradient is None
            is left out.
        tiling: sizes of the cut.
    """
    pairs = [(i, weights[i], weights[i] if grads is None else grads[i]) for i in layout.scored]
    present = [(i, w, g) for i, w, g in pairs if g is not None and w.numel()]
    width = {i: w.element_size() + (0 if grads is None else g.element_size()) for i, w, g in present}
    total = sum(w.numel() * width[i] for i, w, _ in present)
    builder = _Builder(tiling)
    for i, w, g in present:
        steps = round(total / tiling.items / (tiling.rows * tiling.cols * width[i]))
        maps = [(s.dim, s.channels) for s in layout.segments if s.tensor == i]
        builder.add(i, w, g, maps, min(max(steps, 1), tiling.max_steps))
    items = np.concatenate([*builder.items, np.zeros((0, FIELDS), np.int64)])
    weight_of = np.array([width.get(i, 0) for i in range(len(weights))] + [0])
    load = items[:, Field.ROWS] * items[:, Field.COLS] * weight_of[items[:, Field.TENSOR]]
    items = items[np.argsort(-load, kind="stable")]
    indptr, index = builder.channel_lists(layout.num_channels)
    kinds = int(np.bitwise_or.reduce(1 << items[:, Field.KIND])) if len(items) else 0
    offsets = np.concatenate([*builder.offsets, np.zeros(1, np.int64)])
    return WorkPlan(items, offsets, indptr, index, builder.num_partials, kinds, total)


@dataclass(slots=True)
class _Builder:
    tiling: Tiling
    items: list[np.ndarray] = field(default_factory=list)
    offsets: list[np.ndarray] = field(default_factory=list)
    channels: list[np.ndarray] = field(default_factory=list)
    partials: list[np.ndarray] = field(default_factory=list)
    num_partials: int = 0
    num_offsets: int = 0

    def add(self, number: int, w: Tensor, g: Tensor, maps: list[tuple[int, np.ndarray]], steps: int) -> None:
        """Items of one parameter; maps are its (dim, channels)."""
        order = sorted((d for d in range(w.dim()) if w.shape[d] > 1), key=w.stride, reverse=True)
        sizes = [w.shape[d] for d in order]
        dense = _dense(w, order, sizes) and all(w.stride(d) == g.stride(d) for d in order)
        cut = max(range(len(sizes) + 1), key=lambda c: self._use(math.prod(sizes[:c]), math.prod(sizes[c:])))
        rows, cols = math.prod(sizes[:cut]), math.prod(sizes[cut:])
        kind = DTYPE_CODE[w.dtype] + 4 * DTYPE_CODE[g.dtype]
        aligned = dense and w.data_ptr() % 16 == 0 and g.data_ptr() % 16 == 0
        if dense and w.numel() <= self.tiling.direct and self._use(rows, cols) < 0.25:
            slots = [channels[_slots(order, sizes, d, 0, len(sizes))] for d, channels in maps]
            self._direct(number, kind, w.numel(), slots, aligned, steps)
            return
        row_maps = [c[_slots(order, sizes, d, 0, cut)] for d, c in maps if d not in order[cut:]]
        col_maps = [c[_slots(order, sizes, d, cut, len(sizes))] for d, c in maps if d in order[cut:]]
        if aligned and cols % 8 == 0 and cols * self.tiling.rows < 2**31:
            place: _Dense | _Tabled = _Dense(kind + 16, cols)
        else:
            tables = [_offsets(t, order[a:b]) for t in (w, g) for a, b in ((0, cut), (cut, len(order)))]
            place = _Tabled(kind, tuple(self._table(table) for table in tables))
        self._matrix(number, place, rows, cols, row_maps, col_maps, steps)

    def _use(self, rows: int, cols: int) -> float:
        """Fraction of the tiles' lanes that hold an element."""
        tall, wide = -(-rows // self.tiling.rows), -(-cols // self.tiling.cols)
        return rows * cols / (tall * wide * self.tiling.rows * self.tiling.cols)

    def _matrix(
        self,
        number: int,
        place: _Dense | _Tabled,
        rows: int,
        cols: int,
        row_maps: list[np.ndarray],
        col_maps: list[np.ndarray],
        steps: int,
    ) -> None:
        t = self.tiling
        down = bool(col_maps)
        high, wide = (t.rows * steps, t.cols) if down else (t.rows, t.cols * steps)
        grid = np.meshgrid(np.arange(0, rows, high), np.arange(0, cols, wide), indexing="ij")
        r0, c0 = (corner.ravel() for corner in grid)
        extent = np.minimum(high, rows - r0), np.minimum(wide, cols - c0)
        item = self._blank(number, place, r0, c0, *extent, down)
        if row_maps:
            base = self._claim(row_maps, -(-cols // wide), rows)
            item[:, Field.TILE_ROW_SUMS if down else Field.ROW_SUMS] = base + c0 // wide * rows + r0
        if col_maps:
            base = self._claim(col_maps, -(-rows // high), cols)
            item[:, Field.COL_SUMS] = base + r0 // high * cols + c0
        self.items.append(item)

    def _direct(self, number: int, kind: int, numel: int, maps: list[np.ndarray], aligned: bool, steps: int) -> None:
        t = self.tiling
        full, tail = divmod(numel, t.cols)
        r0 = np.append(np.arange(0, full, t.rows * steps), [full] * (tail > 0)).astype(np.int64)
        rows = np.append(np.minimum(t.rows * steps, full - r0[: len(r0) - (tail > 0)]), [1] * (tail > 0))
        cols = np.where(r0 == full, tail, t.cols)
        place: _Dense | _Tabled = _Dense(kind + 16, t.cols)
        if not aligned or tail % 8:
            tables = self._table(np.arange(full + 1) * t.cols), self._table(np.arange(t.cols))
            place = _Tabled(kind, tables * 2)
        item = self._blank(number, place, r0, np.zeros_like(r0), rows.astype(np.int64), cols, True)
        item[:, Field.ELEMENTS] = self._claim(maps, 1, numel) + r0 * t.cols
        self.items.append(item)

    def _blank(
        self,
        number: int,
        place: _Dense | _Tabled,
        r0: np.ndarray,
        c0: np.ndarray,
        rows: np.ndarray,
        cols: np.ndarray,
        down: bool,
    ) -> np.ndarray:
        t = self.tiling
        item = np.full((len(r0), FIELDS), -1, np.int64)
        item[:, Field.KIND], item[:, Field.TENSOR] = place.kind, number
        item[:, Field.ROWS], item[:, Field.COLS] = rows, cols
        item[:, Field.W_ROW : Field.G_COL + 1] = place.at(r0, c0)
        item[:, Field.ROW_STEP], item[:, Field.COL_STEP] = (t.rows, 0) if down else (0, t.cols)
        item[:, Field.STEPS] = -(-rows // t.rows) if down else -(-cols // t.cols)
        return item

    def _claim(self, maps: list[np.ndarray], copies: int, length: int) -> int:
        """Partials [copies, length], where maps say which channel each of `length` belongs to."""
        # A multiple of 32: whole sectors, and the kernel may store four at a time.
        base, self.num_partials = self.num_partials, self.num_partials + -(-copies * length // 32) * 32
        for channels in maps:
            kept = np.flatnonzero(channels >= 0)
            self.channels.append(np.repeat(channels[kept], copies))
            self.partials.append((base + kept[:, None] + np.arange(copies)[None, :] * length).ravel())
        return base

    def _table(self, offsets: np.ndarray) -> int:
        start, self.num_offsets = self.num_offsets, self.num_offsets + len(offsets)
        self.offsets.append(offsets.astype(np.int64))
        return start

    def channel_lists(self, num_channels: int) -> tuple[np.ndarray, np.ndarray]:
        """(indptr, index): the partials of every channel, in the order in which they were claimed."""
        channels = np.concatenate([*self.channels, np.zeros(0, np.int64)])
        partials = np.concatenate([*self.partials, np.zeros(0, np.int64)])
        if max(self.num_partials, len(partials)) >= 2**31:
            raise SaliencyError("more than 2^31 partial sums: score the network in parts")
        index = partials[np.argsort(channels, kind="stable")].astype(np.int32)
        counts = np.bincount(channels, minlength=num_channels)
        return np.append(0, np.cumsum(counts)).astype(np.int32), index


@dataclass(frozen=True, slots=True)
class _Dense:
    kind: int
    pitch: int

    def at(self, r0: np.ndarray, c0: np.ndarray) -> np.ndarray:
        corner, pitch = r0 * self.pitch + c0, np.full_like(r0, self.pitch)
        return np.stack([corner, pitch, corner, pitch], axis=1)


@dataclass(frozen=True, slots=True)
class _Tabled:
    kind: int
    tables: tuple[int, ...]

    def at(self, r0: np.ndarray, c0: np.ndarray) -> np.ndarray:
        w_rows, w_cols, g_rows, g_cols = self.tables
        return np.stack([w_rows + r0, w_cols + c0, g_rows + r0, g_cols + c0], axis=1)


def _dense(tensor: Tensor, order: list[int], sizes: list[int]) -> bool:
    return all(tensor.stride(d) == math.prod(sizes[i + 1 :]) for i, d in enumerate(order))


def _slots(order: list[int], sizes: list[int], dim: int, start: int, stop: int) -> np.ndarray:
    """Slot along `dim` of every index of the flattened dimensions order[start:stop]; size-1 dims have slot 0."""
    flat = np.arange(math.prod(sizes[start:stop]))
    if dim not in order:
        return np.zeros_like(flat)
    place = order.index(dim)
    return flat // math.prod(sizes[place + 1 : stop]) % sizes[place]


def _offsets(tensor: Tensor, dims: Sequence[int]) -> np.ndarray:
    """Element offset of every index of the flattened dims."""
    flat = np.zeros(1, np.int64)
    for d in dims:
        flat = (flat[:, None] + np.arange(tensor.shape[d])[None, :] * tensor.stride(d)).ravel()
    return flat


def signature(tensors: Sequence[Tensor | None]) -> tuple[object, ...]:
    """All that a plan and the layout's checks depend on, and that a later step might change."""
    return tuple(
        None if t is None else (t.dtype, t.shape, t.stride(), t.get_device(), t.data_ptr() % 16 == 0) for t in tensors
    )
