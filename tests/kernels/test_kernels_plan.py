"""The work plan: what the host promises the kernel, on real parameter sets, without running it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels_oracle import networks
from torchvision import models

from halp_fx.kernels import Segment, SegmentLayout
from halp_fx.kernels.workplan import Field, Tiling, build_plan


@settings(max_examples=40, deadline=None, derandomize=True)
@given(networks(), st.sampled_from([Tiling(), Tiling(rows=4, cols=8, items=6, max_steps=3, direct=64)]))
def test_items_cover_what_the_lists_name(network, tiling):
    layout, weights, grads = network
    plan = build_plan(layout, weights, grads, tiling)
    scored = [i for i in layout.scored if grads[i] is not None]
    area = plan.items[:, Field.ROWS] * plan.items[:, Field.COLS]
    for i in scored:
        assert area[plan.items[:, Field.TENSOR] == i].sum() == weights[i].numel(), "each element in one item"
    assert len(plan.indptr) == layout.num_channels + 1
    assert plan.indptr[-1] == len(plan.index)
    assert len(plan.index) == 0 or 0 <= plan.index.min() <= plan.index.max() < plan.num_partials
    assert plan.bytes_read == sum(t.numel() * t.element_size() for i in scored for t in (weights[i], grads[i]))


def test_vectorised_items_are_aligned():
    weights = [torch.randn(64, 64, 3, 3), torch.randn(64 * 36 + 1)[1:].view(64, 36), torch.randn(10, 147)]
    layout = SegmentLayout.build(weights, [Segment(i, 0, np.arange(w.shape[0])) for i, w in enumerate(weights)], 64)
    items = build_plan(layout, weights, weights).items
    dense = items[:, Field.KIND] >= 16
    assert set(items[dense, Field.TENSOR]) == {0}, "an odd address or row length must not be read 16 bytes at a time"
    assert not np.any(items[dense][:, [Field.W_ROW, Field.W_COL, Field.COL_STEP]] % 8)


def network_layout(name):
    """Every convolution and linear layer by rows and columns, every vector by its elements; meta tensors."""
    with torch.device("meta"):
        weights = list(getattr(models, name)().parameters())
    segments, channels = [], 0
    for i, weight in enumerate(weights):
        for dim in range(min(weight.dim(), 2)):
            segments.append(Segment(i, dim, channels + np.arange(weight.shape[dim])))
            channels += weight.shape[dim]
    return SegmentLayout.build(weights, segments, channels), weights


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "vgg16"])
def test_work_is_balanced_and_extra_traffic_is_small(name):
    layout, weights = network_layout(name)
    plan = build_plan(layout, weights, weights)
    area = plan.items[:, Field.ROWS] * plan.items[:, Field.COLS]
    assert 700 < len(plan.items) < 2500
    # About one wave of 700 programs: none may have much more to do than its share.
    assert area.max() < 1.1 * area.sum() / 700
    assert np.all(np.diff(area) <= 0), "the largest first"
    vector = plan.items[:, Field.KIND] >= 16
    assert area[vector].sum() > 0.999 * area.sum()
    # Partials are written once and read once, with a 4-byte index each.
    assert 4 * plan.num_partials + 8 * len(plan.index) < 0.06 * plan.bytes_read


def test_halp_fx_kernels_needs_no_triton():
    """The package imports and scores where Triton is missing."""
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest)\n"
        "import torch, numpy as np; from halp_fx import kernels as k\n"
        "layout = k.SegmentLayout.build([(2, 3)], [k.Segment(0, 0, np.arange(2))], 2)\n"
        "assert k.channel_scores(layout, [torch.ones(2, 3)], None, 'l1').tolist() == [3, 3]\n"
        "assert not k.runs_on_triton(torch.device('cuda'))\n"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
