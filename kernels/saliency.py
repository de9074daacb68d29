"""Host side of the saliency kernel: plans cached per layout, addresses refreshed per step, one launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
from torch import Tensor

from .layout import SegmentLayout
from .reduction import saliency_kernel
from .variants import Variant
from .workplan import FIELDS, Tiling, WorkPlan, build_plan, signature

COUNTERS = 96
"""int32: ticket, items done, channel blocks done, each on a cache line of its own."""

FINISH_TILE = 1024
"""Partials that a finishing program gathers at once: 8 per thread, so that a few round trips suffice."""

NUM_WARPS = 4


@dataclass(slots=True, eq=False)
class Launch:
    """A plan's tables on the device, its workspace, and the addresses of the latest step.

    The workspace belongs to one layout: calls that share a layout must be ordered, on one stream or by events.
    """

    plan: WorkPlan
    tiling: Tiling
    num_channels: int
    lanes: int
    tables: tuple[Tensor, ...]
    pointers: Tensor
    addresses: list[int]

    @classmethod
    def of(cls, plan: WorkPlan, tiling: Tiling, layout: SegmentLayout, device: torch.device) -> Launch:
        arrays = (plan.items, plan.offsets, plan.indptr, plan.index)
        items, offsets, indptr, index = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays)
        partials = torch.empty(max(plan.num_partials, 1), dtype=torch.float32, device=device)
        counters = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
        pointers = torch.zeros(2 * len(layout.shapes), dtype=torch.int64, device=device)
        tables = (items, offsets, partials, indptr, index, counters)
        longest = int(np.diff(plan.indptr).max(initial=1))
        lanes = min(max(triton.next_power_of_2(longest) // 4, 16), 256)
        return cls(plan, tiling, layout.num_channels, lanes, tables, pointers, [])

    def point_at(self, weights: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Uploads the tensors' addresses, unless they are those of the last step (the usual case: the caching
        allocator hands the same blocks out again)."""
        pairs = zip(weights, grads, strict=True)
        addresses = [0 if t is None else t.data_ptr() for pair in pairs for t in pair]
        if addresses == self.addresses:
            return
        on_gpu = self.pointers.is_cuda
        # Pinned memory from PyTorch's host allocator is not reused before the copy is done.
        staged = torch.tensor(addresses, dtype=torch.int64, device="cpu", pin_memory=on_gpu)
        self.pointers.copy_(staged, non_blocking=on_gpu)
        self.addresses = addresses

    def run(self, variant: Variant, out: Tensor, accumulate: bool) -> None:
        """The launch. `out` has been checked."""
        channels = FINISH_TILE // self.lanes
        num_items, num_blocks = len(self.plan.items), triton.cdiv(self.num_channels, channels)
        saliency_kernel[(num_items + num_blocks,)](
            self.pointers, *self.tables, out, num_items, num_blocks, self.num_channels,
            KINDS=self.plan.kinds, FIELDS=FIELDS, ELEMENT=int(variant.element), FINAL=int(variant.final),
            ACCUMULATE=accumulate, ROWS=self.tiling.rows, COLS=self.tiling.cols,
            CHANNELS=channels, LANES=self.lanes, num_warps=NUM_WARPS, enable_fp_fusion=True,
        )  # fmt: skip


def prepare(
    layout: SegmentLayout,
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None] | None,
    variant: Variant,
    tiling: Tiling = Tiling(),  # noqa: B008 (frozen)
) -> Launch:
    """The launch for these tensors: from the layout's cache if such tensors were checked and planned before."""
    used = grads if variant.needs_grad else None
    key = (tiling, variant.needs_grad, signature(weights), None if used is None else signature(used))
    if key not in layout.cache:
        layout.check(weights, grads, variant.needs_grad)
        device = weights[layout.scored[0]].device
        layout.cache[key] = Launch.of(build_plan(layout, weights, used, tiling), tiling, layout, device)
    launch: Launch = layout.cache[key]
    launch.point_at(weights, weights if used is None else used)
    return launch


@torch.no_grad()
def channel_scores(
    layout: SegmentLayout,
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None] | None,
    variant: Variant,
    out: Tensor | None = None,
    tiling: Tiling = Tiling(),  # noqa: B008 (frozen)
) -> Tensor:
    """Scores of all channels; see `halp_fx.kernels.channel_scores` for the contract."""
    device = weights[layout.scored[0]].device
    if out is not None:
        layout.check_out(out, device)
    if layout.num_channels == 0:
        return torch.zeros(0, dtype=torch.float32, device=device) if out is None else out
    with torch.cuda.device_of(weights[layout.scored[0]]):
        launch = prepare(layout, weights, grads, variant, tiling)
        target = torch.empty(layout.num_channels, dtype=torch.float32, device=device) if out is None else out
        launch.run(variant, target, accumulate=out is not None)
    return target
