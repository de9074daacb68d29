"""Latency-table lookup in one Triton launch: per query two places and one cell, each of one memory sector."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tables import TableStack

BLOCK = 256
NUM_WARPS = 8
"""One query per thread: then a cell's numbers stay in its thread, and nothing goes through shared memory."""


@triton.jit
def _place(places, which, width, widest, known):
    """Distance and share (see `tables.py`) of each query's width."""
    width = tl.minimum(tl.maximum(width, 0), widest.to(tl.int64))
    place = tl.load(places + which * (widest + 1) + width, mask=known, other=0)
    return place >> 32, place & 0xFFFFFFFF


@triton.jit
def _cell(at, known, BLOCK: tl.constexpr):
    """The four numbers of a cell in 16-byte loads, one of float32 or two of float64: four scattered ones would take
    as many look-ups, and a thread that loads more than 16 bytes at once gets them through shared memory."""
    if at.dtype.element_ty == tl.float64:
        pair = at[:, None] + tl.arange(0, 2)[None, :]
        time, by_x = tl.split(tl.load(pair, mask=known[:, None], other=0))
        by_y, by_xy = tl.split(tl.load(pair + 2, mask=known[:, None], other=0))
    else:
        numbers = tl.load(at[:, None] + tl.arange(0, 4)[None, :], mask=known[:, None], other=0)
        even, odd = tl.split(tl.reshape(numbers, (BLOCK, 2, 2)))
        time, by_y = tl.split(even)
        by_x, by_xy = tl.split(odd)
    return time, by_x, by_y, by_xy


@triton.jit(do_not_specialize=["num_layers", "widest_in", "widest_out"])
def lookup_kernel(
    layer, cin, cout, cells, inputs, outputs, out, num_queries, num_layers, widest_in, widest_out, BLOCK: tl.constexpr
):  # fmt: skip
    """Program p answers queries p * BLOCK ... What bounds it is the number of scattered loads: three."""
    query = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    asked = query < num_queries
    # Queries and answers are touched once: keep L2 for the tables.
    which = tl.load(layer + query, mask=asked, other=-1, eviction_policy="evict_first").to(tl.int64)
    x = tl.load(cin + query, mask=asked, other=0, eviction_policy="evict_first").to(tl.int64)
    y = tl.load(cout + query, mask=asked, other=0, eviction_policy="evict_first").to(tl.int64)
    known = asked & (which >= 0) & (which < num_layers)
    dx, column = _place(inputs, which, x, widest_in, known)
    dy, row = _place(outputs, which, y, widest_out, known)
    time, by_x, by_y, by_xy = _cell(cells + (column + row) * 4, known, BLOCK)
    dx, dy = dx.to(out.dtype.element_ty), dy.to(out.dtype.element_ty)
    time = time + dx * by_x + dy * (by_y + dx * by_xy)
    tl.store(out + query, tl.where(known, time, float("nan")), mask=asked)


@torch.no_grad()
def lookup(stack: TableStack, layer: Tensor, cin: Tensor, cout: Tensor) -> Tensor:
    """Interpolated times; see `halp_fx.kernels.lookup` for the contract."""
    queries = [q.contiguous() for q in (layer, cin, cout)]
    out = torch.empty(layer.shape, dtype=stack.cells.dtype, device=stack.device)
    with torch.cuda.device_of(out):
        lookup_kernel[(triton.cdiv(layer.numel(), BLOCK),)](
            *queries, stack.cells, stack.inputs, stack.outputs, out, layer.numel(), stack.num_layers,
            stack.inputs.shape[1] - 1, stack.outputs.shape[1] - 1,
            BLOCK=BLOCK, num_warps=NUM_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return out
