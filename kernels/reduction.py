"""Saliency of a whole network in one Triton launch: a segmented reduction over a table of pointers.

Each program draws a ticket. The first `num_items` tickets are work items: tiles of weights and gradients are
read once, multiplied, and their row and column sums written as partials (see `workplan.py`). The later
tickets wait until all items are done and then add up the partials of a few channels each. No program waits
for one that has a later ticket, so the wait ends whatever order the hardware starts programs in; no float is
ever added atomically, so the result is bitwise reproducible. (The ticket is the device of Merrill and
Garland's single-pass scan, NVR-2016-002.)
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(
    address, offsets, row0, col0, rows, cols, num_rows, num_cols, step, row_step, col_step,
    DTYPE: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    """Tile number `step` of an item, in its own dtype; 0 beyond the item. DTYPE: index in `layout.FLOATS`."""
    if DTYPE == 0:
        pointer = address.to(tl.pointer_type(tl.float32))
    elif DTYPE == 1:
        pointer = address.to(tl.pointer_type(tl.bfloat16))
    elif DTYPE == 2:
        pointer = address.to(tl.pointer_type(tl.float16))
    else:
        pointer = address.to(tl.pointer_type(tl.float64))
    row_inside, col_inside = rows < num_rows - step * row_step, cols < num_cols - step * col_step
    if DENSE:
        pointer = tl.multiple_of(pointer, 16) + row0 + step * (row_step * col0 + col_step)
        at = rows[:, None] * col0.to(tl.int32) + cols[None, :]
    else:
        row_at = tl.load(offsets + row0 + step * row_step + rows, mask=row_inside, other=0)
        col_at = tl.load(offsets + col0 + step * col_step + cols, mask=col_inside, other=0)
        at = row_at[:, None] + col_at[None, :]
    # Every element is read once in a launch: do not let it displace the tables from L2.
    mask = row_inside[:, None] & col_inside[None, :]
    return tl.load(pointer + at, mask=mask, other=0.0, eviction_policy="evict_first")


@triton.jit
def _contribution(w, g, ELEMENT: tl.constexpr):
    """What one element adds: see `variants.Element`."""
    if ELEMENT == 0:
        value = w * g
    elif ELEMENT == 1:
        value = tl.abs(w * g)
    elif ELEMENT == 2:
        value = w * g * (w * g)
    elif ELEMENT == 3:
        value = tl.abs(w)
    else:
        value = w * w
    return value


@triton.jit
def _reduce_item(
    item, pointers, offsets, partials,
    KIND: tl.constexpr, ELEMENT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """One item: walk its tiles, write its partials. Loads refer to `workplan.Field`."""
    DENSE: tl.constexpr = KIND >= 16
    W: tl.constexpr = KIND % 4
    G: tl.constexpr = KIND // 4 % 4
    tensor = tl.load(item + 1)
    num_rows, num_cols = tl.load(item + 2).to(tl.int32), tl.load(item + 3).to(tl.int32)
    w_row, w_col, g_row, g_col = tl.load(item + 4), tl.load(item + 5), tl.load(item + 6), tl.load(item + 7)
    row_step, col_step = tl.load(item + 8).to(tl.int32), tl.load(item + 9).to(tl.int32)
    steps = tl.load(item + 10).to(tl.int32)
    tile_row_sums, row_sums = tl.load(item + 11).to(tl.int32), tl.load(item + 12).to(tl.int32)
    col_sums, elements = tl.load(item + 13).to(tl.int32), tl.load(item + 14).to(tl.int32)
    w_address, g_address = tl.load(pointers + 2 * tensor), tl.load(pointers + 2 * tensor + 1)
    rows, cols = tl.arange(0, ROWS), tl.arange(0, COLS)
    if DENSE:
        # The plan admits only tensors on 16-byte boundaries whose rows are multiples of 8 elements here,
        # which is what lets the compiler use 16-byte loads, and only pitches that keep offsets in a tile
        # within 32 bits. The hints must stand beside the loads: on a parameter of an inlined function they
        # are lost.
        num_cols, col_step = tl.multiple_of(num_cols, 8), tl.multiple_of(col_step, 8)
        w_row, w_col = tl.multiple_of(w_row, 8), tl.multiple_of(w_col, 8)
        g_row, g_col = tl.multiple_of(g_row, 8), tl.multiple_of(g_col, 8)
    total = tl.zeros((ROWS, COLS), tl.float32)
    w = _tile(w_address, offsets, w_row, w_col, rows, cols, num_rows, num_cols, 0, row_step, col_step, W, DENSE)
    if ELEMENT <= 2:
        g = _tile(g_address, offsets, g_row, g_col, rows, cols, num_rows, num_cols, 0, row_step, col_step, G, DENSE)
    else:
        g = w
    step = 0
    # `while`: Triton 3.6's interpreter cannot run range() over a loaded bound under numpy >= 2.4.
    while step < steps:
        # The next tile is under way while this one is summed. After the last there is none: all masked out.
        w_next = _tile(
            w_address, offsets, w_row, w_col, rows, cols, num_rows, num_cols, step + 1, row_step, col_step, W, DENSE
        )
        if ELEMENT <= 2:
            g_next = _tile(
                g_address, offsets, g_row, g_col, rows, cols, num_rows, num_cols, step + 1, row_step,
                col_step, G, DENSE,
            )  # fmt: skip
        else:
            g_next = w_next
        value = _contribution(w.to(tl.float32), g.to(tl.float32), ELEMENT)
        total += value
        row_inside = rows < num_rows - step * row_step
        if tile_row_sums >= 0:
            tl.store(partials + tile_row_sums + step * row_step + rows, tl.sum(value, 1), mask=row_inside)
        if elements >= 0:
            at = tl.multiple_of(elements, 16) + step * row_step * COLS
            mask = row_inside[:, None] & (cols < num_cols)[None, :]
            tl.store(partials + at + rows[:, None] * COLS + cols[None, :], value, mask=mask)
        w, g = w_next, g_next
        step += 1
    if col_sums >= 0:
        tl.store(partials + col_sums + cols, tl.sum(total, 0), mask=cols < num_cols)
    if row_sums >= 0:
        tl.store(partials + row_sums + rows, tl.sum(total, 1), mask=rows < num_rows)


@triton.jit
def _finish_block(
    block, indptr, index, partials, out, num_channels,
    FINAL: tl.constexpr, ACCUMULATE: tl.constexpr, CHANNELS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Scores of CHANNELS channels from their partials, in the order of the index lists."""
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < num_channels
    first = tl.load(indptr + channel, mask=inside, other=0)
    last = tl.load(indptr + channel + 1, mask=inside, other=0)
    lanes = tl.arange(0, LANES)
    total = tl.zeros((CHANNELS, LANES), tl.float32)
    longest = tl.max(last - first, 0)
    start = 0
    while start < longest:
        at = first[:, None] + start + lanes[None, :]
        listed = at < last[:, None]
        partial = tl.load(index + at, mask=listed, other=0)
        # Written by other SMs in this launch: read them where they meet, in L2.
        total += tl.load(partials + partial, mask=listed, other=0.0, cache_modifier=".cg")
        start += LANES
    score = tl.sum(total, 1)
    if FINAL == 1:
        score = tl.abs(score)
    elif FINAL == 2:
        score = score * score
    elif FINAL == 3:
        score = tl.sqrt_rn(score)
    score = score.to(out.dtype.element_ty)
    if ACCUMULATE:
        score += tl.load(out + channel, mask=inside, other=0.0)
    tl.store(out + channel, score, mask=inside)


@triton.jit(do_not_specialize=["num_items", "num_blocks", "num_channels"])
def saliency_kernel(
    pointers, items, offsets, partials, indptr, index, counters, out, num_items, num_blocks, num_channels,
    KINDS: tl.constexpr, FIELDS: tl.constexpr, ELEMENT: tl.constexpr, FINAL: tl.constexpr,
    ACCUMULATE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    CHANNELS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Grid: num_items + num_blocks programs. Counters are zero before and after."""
    ticket = tl.atomic_add(counters, 1, sem="relaxed")
    if ticket < num_items:
        item = items + ticket.to(tl.int64) * FIELDS
        kind = tl.load(item)
        for code in tl.static_range(32):
            # Nested: the outer `if` is decided by the compiler, the inner one by the item.
            if (KINDS >> code) & 1:  # noqa: SIM102
                if kind == code:
                    _reduce_item(item, pointers, offsets, partials, code, ELEMENT, ROWS, COLS)
        # All threads' partials before the one thread's release.
        tl.debug_barrier()
        tl.atomic_add(counters + 32, 1, sem="release")
    else:
        while tl.atomic_add(counters + 32, 0, sem="acquire") < num_items:
            pass
        tl.debug_barrier()
        _finish_block(
            ticket - num_items, indptr, index, partials, out, num_channels, FINAL, ACCUMULATE, CHANNELS, LANES
        )
        if tl.atomic_add(counters + 64, 1, sem="relaxed") == num_blocks - 1:
            # Every other program has drawn its ticket and passed its wait.
            tl.store(counters, 0)
            tl.store(counters + 32, 0)
            tl.store(counters + 64, 0)
