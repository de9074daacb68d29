"""Latency-table lookup in one Triton launch: per query two cell indices (L1) and one record (one memory
sector)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tables import LAYER_FIELDS, TableStack

BLOCK = 512
NUM_WARPS = 4


@triton.jit(do_not_specialize=["num_layers"])
def lookup_kernel(
    layer, cin, cout, records, cells, layers, out, num_queries, num_layers,
    LAYER_FIELDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program p answers queries p * BLOCK ... See `tables.py` for the record."""
    query = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    asked = query < num_queries
    # Queries and answers are touched once: keep L2 for the tables.
    which = tl.load(layer + query, mask=asked, other=-1, eviction_policy="evict_first").to(tl.int64)
    x = tl.load(cin + query, mask=asked, other=0, eviction_policy="evict_first").to(tl.int64)
    y = tl.load(cout + query, mask=asked, other=0, eviction_policy="evict_first").to(tl.int64)
    known = asked & (which >= 0) & (which < num_layers)
    info = layers + which * LAYER_FIELDS
    x = tl.maximum(x, tl.load(info, mask=known, other=0).to(tl.int64))
    x = tl.minimum(x, tl.load(info + 1, mask=known, other=0).to(tl.int64))
    y = tl.maximum(y, tl.load(info + 3, mask=known, other=0).to(tl.int64))
    y = tl.minimum(y, tl.load(info + 4, mask=known, other=0).to(tl.int64))
    column = tl.load(cells + x + tl.load(info + 2, mask=known, other=0), mask=known, other=0).to(tl.int64)
    row = tl.load(cells + y + tl.load(info + 5, mask=known, other=0), mask=known, other=0).to(tl.int64)
    first = tl.load(info + 6, mask=known, other=0)
    pitch = tl.load(info + 7, mask=known, other=0)
    record = records + (first + row * pitch + column) * 8
    fx = (x.to(out.dtype.element_ty) - tl.load(record, mask=known)) * tl.load(record + 1, mask=known)
    fy = (y.to(out.dtype.element_ty) - tl.load(record + 2, mask=known)) * tl.load(record + 3, mask=known)
    t00, t01 = tl.load(record + 4, mask=known), tl.load(record + 5, mask=known)
    t10, t11 = tl.load(record + 6, mask=known), tl.load(record + 7, mask=known)
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
            LAYER_FIELDS=LAYER_FIELDS, BLOCK=BLOCK, num_warps=NUM_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
    return out
