"""Memory-speed parts of halp_fx: channel saliency in one launch, and latency-table lookup.

Takes tensors, gives tensors. CUDA tensors go to the Triton kernels where Triton can be imported; everything
else goes to the PyTorch twins of `naive.py`, which define the results. Importing this module needs neither
CUDA nor Triton.

    layout = SegmentLayout.build(parameters, segments, num_channels)      # once
    channel_scores(layout, parameters, gradients, "taylor", out=scores)   # every step

    stack = TableStack.build([(in_widths, out_widths, times), ...])       # once
    lookup(stack, layer, cin, cout)                                       # times, in the unit of the tables
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from ..errors import LatencyError
from . import naive
from .layout import SegmentLayout
from .tables import TableStack
from .variants import Variant, resolve

_HAS_TRITON = find_spec("triton") is not None


def runs_on_triton(device: torch.device) -> bool:
    """Whether tensors on this device go to a Triton kernel (else: to its PyTorch twin)."""
    return _HAS_TRITON and device.type == "cuda"


def channel_scores(
    layout: SegmentLayout,
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None] | None,
    variant: str | Variant = "taylor",
    out: Tensor | None = None,
) -> Tensor:
    """Saliency of every channel of the network, from all its parameters at once.

    Args:
        layout: which slots belong to which channel.
        weights: the parameters, in the layout's order: float32, bfloat16, float16 or float64, mixed at will,
            with any strides, on one device. Those without a segment are not touched.
        grads: their gradients; None for a gradient that is missing (its parameter then counts as zero), or
            for all when the variant does not need them.
        variant: a name in `VARIANTS`. Channels without any element score 0.
        out: (num_channels,), float32 or float64: the step's scores are added to it in place. A step with a
            NaN spoils the channels it reaches, so a loop that must skip such steps scores into a fresh tensor
            first.

    Returns:
        `out`, or a new float32 tensor of shape (num_channels,). Sums are float32, in a fixed
        order: equal inputs give bitwise equal scores. float64 parameters are reduced in float64 by the twin
        and in float32 by the kernel.

    Raises:
        SaliencyError: unknown variant; tensors that do not fit the layout; missing gradients.
    """
    kind = resolve(variant)
    if layout.scored and runs_on_triton(weights[layout.scored[0]].device):
        from . import saliency

        return saliency.channel_scores(layout, weights, grads, kind, out)
    return naive.channel_scores(layout, weights, grads, kind, out)


def lookup(stack: TableStack, layer: Tensor, cin: Tensor, cout: Tensor) -> Tensor:
    """Times of many (layer, input width, output width) queries, by bilinear interpolation.

    Args:
        stack: the tables.
        layer: index of the table, any integer dtype and shape. An index out of range gives NaN.
        cin: input widths (whole numbers), of the same shape; beyond the grid they are clamped to its ends.
        cout: output widths, likewise.

    Returns:
        A tensor of the queries' shape and the stack's dtype, in the unit of the tables; exact on grid points.

    Raises:
        LatencyError: queries that are not integers, differ in shape, or are on another device than the stack.
    """
    for name, query in (("layer", layer), ("cin", cin), ("cout", cout)):
        if query.dtype.is_floating_point or query.dtype.is_complex or query.dtype is torch.bool:
            raise LatencyError(f"{name} must hold whole numbers, not {query.dtype}")
        if query.shape != layer.shape or query.device != stack.device:
            raise LatencyError(
                f"{name} has shape {tuple(query.shape)} on {query.device}; layer has {tuple(layer.shape)} "
                f"and the stack is on {stack.device}"
            )
    if layer.numel() and runs_on_triton(stack.device):
        from . import interpolate

        return interpolate.lookup(stack, layer, cin, cout)
    return naive.lookup(stack, layer, cin, cout)
