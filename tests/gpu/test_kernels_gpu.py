"""The Triton kernels on a GPU, against float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels_oracle import (
    assert_scores,
    grid_queries,
    networks,
    oracle_times,
    random_queries,
    random_tables,
)
from torchvision import models

from halp_fx import kernels
from halp_fx.kernels import VARIANTS, Segment, SegmentLayout, TableStack


def to_gpu(tensors):
    """Each tensor on the GPU with the strides and the misalignment it has here."""
    return [None if t is None else _like(t) for t in tensors]


def _like(tensor):
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    shift = tensor.data_ptr() // tensor.element_size() % 4
    storage = torch.full((extent + shift,), torch.nan, dtype=tensor.dtype, device="cuda")
    moved = storage.as_strided(tensor.shape, tensor.stride(), shift)
    # copy_ refuses to write to an expanded tensor: write its one copy.
    narrow = tuple(slice(0, 1) if s == 0 else slice(None) for s in tensor.stride())
    moved[narrow].copy_(tensor[narrow])
    return moved


@settings(max_examples=200, deadline=None)
@given(networks(), st.sampled_from(sorted(VARIANTS)))
def test_scores_equal_float64_oracle(network, variant):
    layout, weights, grads = network
    scores = kernels.channel_scores(layout, to_gpu(weights), to_gpu(grads), variant)
    assert_scores(scores, layout, weights, grads, variant)


def whole_network(name, dtype, memory_format):
    torch.manual_seed(0)
    model = getattr(models, name)().to("cuda", dtype).to(memory_format=memory_format)
    weights = [p.detach() for p in model.parameters()]
    grads = [torch.randn_like(w) for w in weights]
    segments, channels = [], 0
    for i, weight in enumerate(weights):
        for dim in range(min(weight.dim(), 2)):
            segments.append(Segment(i, dim, channels + np.arange(weight.shape[dim])))
            channels += weight.shape[dim]
    return SegmentLayout.build(weights, segments, channels), weights, grads


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["resnet50", "vgg16", "mobilenet_v2"])
def test_whole_networks(name, dtype, memory_format):
    layout, weights, grads = whole_network(name, dtype, memory_format)
    for variant in VARIANTS:
        scores = kernels.channel_scores(layout, weights, grads, variant)
        assert torch.equal(scores, kernels.channel_scores(layout, weights, grads, variant)), "bitwise"
        assert_whole(scores, layout, weights, grads, variant)


def assert_whole(scores, layout, weights, grads, variant):
    """As `assert_scores`, by torch reductions in float64: the loop over slots is too slow here."""
    kind = VARIANTS[variant]
    total = torch.zeros(layout.num_channels, dtype=torch.float64, device="cuda")
    size = torch.zeros_like(total)
    for segment in layout.segments:
        w, g = weights[segment.tensor].double(), grads[segment.tensor].double()
        value = kernels.naive.ELEMENTS[kind.element](w, g)
        others = [d for d in range(w.dim()) if d != segment.dim]
        channels = torch.from_numpy(segment.channels).cuda()
        total.index_add_(0, channels, value.sum(others) if others else value)
        size.index_add_(0, channels, value.abs().sum(others) if others else value.abs())
    expected = kernels.naive.FINALS[kind.final](total)
    slack = {"taylor_sum_squared": 2 * size**2, "l2": size.sqrt()}.get(variant, size)
    assert ((scores - expected).abs() <= 2e-6 * slack + 1e-30).all(), variant


@pytest.mark.parametrize("size", [1, 3, 127, 4097, 1_000_003, 10_000_019])
@pytest.mark.parametrize("dim", [0, 1])
def test_sizes_from_one_to_ten_million(size, dim):
    shape = (size, 1) if dim == 0 else (1, size)
    weight, grad = torch.randn(shape, device="cuda"), torch.randn(shape, device="cuda")
    for axis in (0, 1):
        channels = np.arange(shape[axis]) % 1000
        layout = SegmentLayout.build([weight], [Segment(0, axis, channels)], 1000)
        assert_whole(kernels.channel_scores(layout, [weight], [grad]), layout, [weight], [grad], "taylor")


def test_accumulation_overwrites_nothing_and_nan_is_overwritten():
    layout, weights, grads = whole_network("resnet50", torch.float32, torch.contiguous_format)
    out = torch.zeros(layout.num_channels, device="cuda")
    once = kernels.channel_scores(layout, weights, grads)
    for _ in range(3):
        kernels.channel_scores(layout, weights, grads, out=out)
    torch.testing.assert_close(out, 3 * once)
    launch = kernels.saliency.prepare(layout, weights, grads, VARIANTS["taylor"])
    launch.tables[2].fill_(torch.nan)
    poisoned = torch.full_like(out, torch.nan)
    launch.run(VARIANTS["taylor"], poisoned, accumulate=False)
    assert torch.equal(poisoned, once)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([2, 12, 300]),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([torch.int16, torch.int32, torch.int64]),
)
def test_lookup_equals_numpy(seed, points, records, queries):
    tables = random_tables(seed, points=points)
    stack = TableStack.build(tables, dtype=records, device="cuda")
    asked = random_queries(seed, tables, 999, queries)
    times = kernels.lookup(stack, *(q.cuda() for q in asked))
    tolerance = 1e-12 if records == torch.float64 else 3e-6
    np.testing.assert_allclose(times.cpu(), oracle_times(tables, *asked), rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lookup_is_exact_on_grid_points(dtype):
    tables = random_tables(3)
    queries, times = grid_queries(tables)
    stack = TableStack.build(tables, dtype=dtype, device="cuda")
    assert torch.equal(kernels.lookup(stack, *(q.cuda() for q in queries)).cpu(), times.to(dtype))
