"""Latency-table lookup in one Triton launch: per query two cell indices (L1) and one record (one memory sector)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tables import TableStack

BLOCK = 256
NUM_WARPS = 8
"""One query per thread: then a record's fields stay in its thread, and nothing goes through shared memory."""


@triton.jit
def _four(address, known, BLOCK: tl.constexpr):
    """Four neighbours per query, by one 16-byte (or two 16-byte) loads; one scattered load each would cost
    four times the L1 look-ups, which is what bounds this kernel."""
    at = address[:, None] + tl.arange(0, 4)[None, :]
    pairs = tl.reshape(tl.load(at, mask=known[:, None], other=0), (BLOCK, 2, 2))
    even, odd = tl.split(pairs)
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit(do_not_specialize=["num_layers"])
def lookup_kernel(
    layer, cin, cout, records, cells, layers, out, num_queries, num_layers, BLOCK: tl.constexpr
):  # fmt: skip
    """Program p answers queries p * BLOCK ... See `tables.py` for the record."""
    query = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    asked = query < num_queries
    # Queries and answers are touched once: keep L2 for the tables.
    which = tl.load(layer + query, mask=asked, other=-1, eviction_policy="evict_first").to(tl.int64)
    x = tl.load(cin + query, mask=asked, other=0, eviction_policy="evict_first").to(tl.int64)
    y = tl.load(cout + query, mask=asked, other=0, eviction_policy="evict_first").to(tl.int64)
    known = asked & (which >= 0) & (which < num_layers)
    low_x, high_x, map_x, first = _four(layers + which * 8, known, BLOCK)
    low_y, high_y, map_y, pitch = _four(layers + which * 8 + 4, known, BLOCK)
    x = tl.minimum(tl.maximum(x, low_x.to(tl.int64)), high_x.to(tl.int64)).to(tl.int32)
    y = tl.minimum(tl.maximum(y, low_y.to(tl.int64)), high_y.to(tl.int64)).to(tl.int32)
    column = tl.load(cells + map_x + x, mask=known, other=0).to(tl.int32)
    row = tl.load(cells + map_y + y, mask=known, other=0).to(tl.int32)
    record = records + (first + row * pitch + column).to(tl.int64) * 8
    x0, per_dx, y0, per_dy = _four(record, known, BLOCK)
    t00, t01, t10, t11 = _four(record + 4, known, BLOCK)
    fx = (x.to(out.dtype.element_ty) - x0) * per_dx
    fy = (y.to(out.dtype.element_ty) - y0) * per_dy
    near, far = t00 + fx * (t01 - t00), t10 + fx * (t11 - t10)
    time = tl.where(known, near + fy * (far - near), float("nan"))
    tl.store(out + query, time, mask=asked)


@torch.no_grad()
def lookup(stack: TableStack, layer: Tensor, cin: Tensor, cout: Tensor) -> Tensor:
    """Interpolated times; see `halp_fx.kernels.lookup` for the contract."""
    queries = [q.contiguous() for q in (layer, cin, cout)]
    out = torch.empty(layer.shape, dtype=stack.records.dtype, device=stack.device)
    with torch.cuda.device_of(out):
        lookup_kernel[(triton.cdiv(layer.numel(), BLOCK),)](
            *queries, stack.records, stack.cells, stack.layers, out, layer.numel(), stack.num_layers,
            BLOCK=BLOCK, num_warps=NUM_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return out
