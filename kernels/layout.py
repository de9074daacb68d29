"""Which slots of which parameters belong to which channel: the fixed part of a saliency reduction.

`SegmentLayout.build` takes shapes and segments and validates them once; `check` holds the tensors of one step
against it. What the GPU kernel derives from a layout (work items, index lists) lives in `workplan.py` and is
kept in the layout's cache, because it depends on strides and dtypes and those rarely change between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SaliencyError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """The slots along one dimension of one parameter, and the channel that each belongs to.

    Attributes:
        tensor: index of the parameter in the `weights` sequence.
        dim: dimension of that parameter.
        channels: int array of length `shape[dim]`; entry s is the channel of slot s, -1 where slot s is not
            scored. Several slots may share a channel (a flattened H*W, the two halves of a grouped axis).
    """

    tensor: int
    dim: int
    channels: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class SegmentLayout:
    """Segments of a whole network, validated, with int64 channel arrays.

    Attributes:
        shapes: shape of every parameter, in the order in which weights and grads will be passed.
        segments: as passed to `build`.
        num_channels: channels are numbered 0 .. num_channels - 1 over all groups.
        scored: indices of the parameters that have a segment.
    """

    shapes: tuple[tuple[int, ...], ...]
    segments: tuple[Segment, ...]
    num_channels: int
    scored: tuple[int, ...]
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def build(
        cls, tensors: Sequence[Tensor | Sequence[int]], segments: Sequence[Segment], num_channels: int
    ) -> SegmentLayout:
        """Checks segments against shapes.

        Args:
            tensors: every parameter, or its shape. Strides and dtypes are looked at step by step, so that a
                model may be cast or moved to channels_last without a new layout.
            segments: what is scored. Two segments of one parameter (its rows and its columns) are scored from
                one read of it. Overlapping segments each count: an element belongs to a channel once per
                segment.
            num_channels: length of the score vector.

        Raises:
            SaliencyError: a segment names a parameter, dimension or channel that does not exist, or its
                length is not that of the dimension.
        """
        shapes = tuple(tuple(t.shape) if isinstance(t, Tensor) else tuple(int(n) for n in t) for t in tensors)
        clean = tuple(_validated(i, s, shapes, num_channels) for i, s in enumerate(segments))
        return cls(shapes, clean, int(num_channels), tuple(sorted({s.tensor for s in clean})))

    def check(self, weights: Sequence[Tensor], grads: Sequence[Tensor | None] | None, needs_grad: bool) -> None:
        """Raises SaliencyError unless these tensors fit: count, shapes, dtypes, one device."""
        if len(weights) != len(self.shapes):
            raise SaliencyError(f"the layout has {len(self.shapes)} parameters, {len(weights)} were passed")
        if needs_grad and grads is None:
            raise SaliencyError("this variant multiplies by gradients: pass grads, or use 'l1' or 'l2'")
        if needs_grad and grads is not None and len(grads) != len(weights):
            raise SaliencyError(f"{len(weights)} weights but {len(grads)} gradients (None stands for a missing one)")
        device = weights[self.scored[0]].device if self.scored else None
        for i in self.scored:
            pair = (weights[i], grads[i]) if needs_grad and grads is not None else (weights[i],)
            for name, tensor in zip(("parameter", "gradient of parameter"), pair, strict=False):
                if tensor is None:
                    continue
                if tuple(tensor.shape) != self.shapes[i]:
                    raise SaliencyError(f"{name} {i} has shape {tuple(tensor.shape)}, the layout says {self.shapes[i]}")
                if tensor.dtype not in FLOATS or tensor.layout is not torch.strided:
                    raise SaliencyError(
                        f"{name} {i} is {tensor.dtype} ({tensor.layout}); float32, bfloat16, float16 and "
                        "float64 strided tensors can be scored: densify it, or leave it out of the segments"
                    )
                if tensor.device != device:
                    raise SaliencyError(f"{name} {i} is on {tensor.device}, another on {device}: score per device")

    def check_out(self, out: Tensor, device: torch.device) -> None:
        """Raises SaliencyError unless `out` is a contiguous (num_channels,) float32 or float64 tensor."""
        if tuple(out.shape) != (self.num_channels,) or not out.is_contiguous():
            raise SaliencyError(f"out must be contiguous and of shape ({self.num_channels},), not {tuple(out.shape)}")
        if out.dtype not in (torch.float32, torch.float64) or out.device != device:
            raise SaliencyError(f"out must be float32 or float64 on {device}, not {out.dtype} on {out.device}")


def _validated(number: int, segment: Segment, shapes: tuple[tuple[int, ...], ...], num_channels: int) -> Segment:
    where = f"segment {number} (parameter {segment.tensor}, dim {segment.dim})"
    if not 0 <= segment.tensor < len(shapes):
        raise SaliencyError(f"{where}: there are {len(shapes)} parameters")
    shape = shapes[segment.tensor]
    if not -len(shape) <= segment.dim < len(shape):
        raise SaliencyError(f"{where}: the parameter has shape {shape}")
    dim = segment.dim % len(shape)
    channels = np.asarray(segment.channels)
    if channels.shape != (shape[dim],) or not np.issubdtype(channels.dtype, np.integer):
        raise SaliencyError(
            f"{where}: channels must be {shape[dim]} integers for shape {shape}, "
            f"not {channels.dtype} of shape {channels.shape}"
        )
    if channels.size and (channels.min() < -1 or channels.max() >= num_channels):
        raise SaliencyError(
            f"{where}: channels run from {channels.min()} to {channels.max()}; legal are -1 .. {num_channels - 1}"
        )
    return Segment(int(segment.tensor), dim, channels.astype(np.int64))
