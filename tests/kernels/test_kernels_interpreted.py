"""Triton kernels against their twins, in Triton's interpreter on CPU tensors.

Triton decides at import whether its kernels are interpreted, for the whole process. So this file only runs
where TRITON_INTERPRET=1 was set before anything imported Triton: `test_kernels_interpreter.py` starts that
process. Tiles are small here, so that small tensors have many.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs its own process: run by test_kernels_interpreter.py", allow_module_level=True)
pytest.importorskip("triton")

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

from halp_fx.kernels import VARIANTS, Segment, SegmentLayout, TableStack, interpolate, naive, saliency
from halp_fx.kernels.workplan import Tiling

SMALL = Tiling(rows=4, cols=8, items=6, max_steps=3, direct=64)
MEDIUM = Tiling(rows=8, cols=32, items=20, max_steps=4, direct=200)
TILINGS = (SMALL, MEDIUM, Tiling(rows=8, cols=16, items=1, max_steps=4, direct=0), Tiling())


def launched(layout, weights, grads, variant, tiling, out, accumulate):
    """One launch into `out`, after poisoning every partial with NaN."""
    launch = saliency.prepare(layout, weights, grads, VARIANTS[variant], tiling)
    partials, counters = launch.tables[2], launch.tables[5]
    partials.fill_(torch.nan)
    launch.run(VARIANTS[variant], out, accumulate)
    assert counters.eq(0).all(), "the launch must leave its counters as it found them"
    return out


@settings(max_examples=30, deadline=None, derandomize=True)
@given(networks(), st.sampled_from(sorted(VARIANTS)), st.sampled_from(TILINGS))
def test_scores_equal_the_oracle_and_overwrite_nan(network, variant, tiling):
    layout, weights, grads = network
    if not layout.scored:
        return
    poisoned = torch.full((layout.num_channels,), torch.nan)
    scores = launched(layout, weights, grads, variant, tiling, poisoned, accumulate=False)
    assert_scores(scores, layout, weights, grads, variant)


def resnet_block(dtype=torch.float32, memory_format=torch.contiguous_format):
    """Parameters and layout of a bottleneck with a BatchNorm: rows, columns, both, vectors, flattened
    columns."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(24, 3, 7, 7), (24,), (24,), (16, 24, 1, 1), (16, 16, 3, 3), (24, 16, 1, 1), (40, 1, 3, 3), (10, 98)]
    tensors = [[torch.randn(s, generator=generator).to(dtype) for s in shapes] for _ in range(2)]
    weights, grads = (
        [t.contiguous(memory_format=memory_format) if t.dim() == 4 else t for t in part] for part in tensors
    )
    stage, inner = np.arange(24), 24 + np.arange(16)
    segments = [
        Segment(0, 0, stage), Segment(1, 0, stage), Segment(2, 0, stage), Segment(3, 1, stage),
        Segment(3, 0, inner), Segment(4, 0, inner), Segment(4, 1, inner), Segment(5, 1, inner),
        Segment(5, 0, stage), Segment(6, 0, 40 + np.arange(40)), Segment(7, 1, np.arange(98) // 49),
    ]  # fmt: skip
    return SegmentLayout.build(weights, segments, 80), weights, grads


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_block_equals_its_twin(dtype, memory_format):
    layout, weights, grads = resnet_block(dtype, memory_format)
    poisoned = torch.full((80,), torch.nan)
    scores = launched(layout, weights, grads, "taylor", MEDIUM, poisoned, accumulate=False)
    twin = naive.channel_scores(layout, weights, grads, VARIANTS["taylor"])
    torch.testing.assert_close(scores, twin, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_accumulation_adds_in_place(variant, dtype):
    layout, weights, grads = resnet_block()
    out = torch.full((80,), 3.0, dtype=dtype)
    result = saliency.channel_scores(layout, weights, grads, VARIANTS[variant], out=out)
    assert result is out
    assert_scores(out, layout, weights, grads, variant, before=3.0)


def test_two_runs_are_bitwise_equal():
    layout, weights, grads = resnet_block()
    runs = [saliency.channel_scores(layout, weights, grads, VARIANTS["taylor"], tiling=MEDIUM) for _ in range(2)]
    assert torch.equal(*runs)


def test_gradients_that_move_are_found_again():
    layout, weights, grads = resnet_block()
    for _ in range(2):
        grads = [2 * g for g in grads]
        scores = saliency.channel_scores(layout, weights, grads, VARIANTS["taylor"])
        assert_scores(scores, layout, weights, grads, "taylor")
    assert len(layout.cache) == 1, "the plan depends on strides, not on addresses"


def test_a_gradient_that_changes_its_strides_gets_a_plan_of_its_own():
    layout, weights, grads = resnet_block()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        grads = [g.contiguous(memory_format=memory_format) if g.dim() == 4 else g for g in grads]
        scores = saliency.channel_scores(layout, weights, grads, VARIANTS["taylor"])
        assert_scores(scores, layout, weights, grads, "taylor")
    assert len(layout.cache) == 2


@pytest.mark.parametrize("size", [(1,), (1, 1, 1, 1), (1, 2003), (2003,), (2003, 1), (130, 131)], ids=str)
def test_odd_sizes(size):
    generator = torch.Generator().manual_seed(1)
    weight, grad = (torch.randn(size, generator=generator) for _ in range(2))
    for dim in range(len(size)):
        layout = SegmentLayout.build([weight], [Segment(0, dim, np.arange(size[dim]) % 50)], 50)
        for tiling in (Tiling(), Tiling(rows=64, cols=128, direct=0, max_steps=2)):
            scores = saliency.channel_scores(layout, [weight], [grad], VARIANTS["taylor_abs"], tiling=tiling)
            assert_scores(scores, layout, [weight], [grad], "taylor_abs")


def test_all_gradients_missing_scores_zero():
    layout, weights, _ = resnet_block()
    scores = saliency.channel_scores(layout, weights, [None] * len(weights), VARIANTS["taylor"])
    assert torch.equal(scores, torch.zeros(80))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    points=st.sampled_from([2, 5, 300]),
    records=st.sampled_from([torch.float32, torch.float64]),
    queries=st.sampled_from([torch.int16, torch.int32, torch.int64]),
    number=st.integers(1, 1500),
)
def test_lookup_equals_numpy_and_twin(seed, points, records, queries, number):
    tables = random_tables(seed, points=points)
    stack = TableStack.build(tables, dtype=records)
    asked = random_queries(seed, tables, number, queries)
    times = interpolate.lookup(stack, *asked)
    tolerance = 1e-12 if records == torch.float64 else 3e-6
    np.testing.assert_allclose(times, oracle_times(tables, *asked), rtol=tolerance)
    torch.testing.assert_close(times, naive.lookup(stack, *asked), rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lookup_is_exact_on_grid_points(dtype):
    tables = random_tables(3)
    queries, times = grid_queries(tables)
    assert torch.equal(interpolate.lookup(TableStack.build(tables, dtype=dtype), *queries), times.to(dtype))


def test_lookup_overwrites_nan(monkeypatch):
    tables = random_tables(6)
    stack = TableStack.build(tables)
    queries, times = grid_queries(tables)
    monkeypatch.setattr(torch, "empty", lambda shape, **options: torch.full(tuple(shape), torch.nan, **options))
    assert torch.equal(interpolate.lookup(stack, *queries), times)
