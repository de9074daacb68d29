"""Stages that run the same lines with other numbers of heads: what is right for one need not be so for the others."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from oracle import assert_equals_twin, equals_twin_closely, half_plan, random_plan, randomized
from torch import nn
from torch.nn import functional as F

import halp_fx


class Scaled(nn.Module):
    """Attention that divides by the root of a head's width: whole heads go, or channels of the only one."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, self.heads, -1).transpose(1, 2)
        k, v = self.kv(x).reshape(b, n, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Across(nn.Module):
    """Channels attend to channels: any place of a head, or any head, can go. `parts` are mixed one by one before."""

    def __init__(self, width, heads, parts=1):
        super().__init__()
        self.heads, self.parts = heads, parts
        self.convs = nn.ModuleList(nn.Conv1d(n, n, 1, groups=n) for n in map(len, torch.arange(width).chunk(parts)))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        pieces = x.transpose(1, 2).chunk(self.parts, 1)
        x = torch.cat([conv(p) for conv, p in zip(self.convs, pieces, strict=True)], 1).transpose(1, 2)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        mixed = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1) @ v
        return self.proj(mixed.permute(0, 3, 1, 2).reshape(b, n, c))


class Factored(nn.Module):
    """`q @ (softmax(k)^T @ v)`, and a convolution of `v` that is split by heads."""

    def __init__(self, width, heads, splits):
        super().__init__()
        self.heads, self.scale = heads, 0.3
        self.splits = [n * width // heads for n in splits]
        self.convs = nn.ModuleList(nn.Conv1d(n, n, 1, groups=n) for n in self.splits)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = q @ (k.softmax(2).transpose(-1, -2) @ v)
        pieces = v.transpose(-1, -2).reshape(b, c, n).split(self.splits, 1)
        local = torch.cat([conv(p) for conv, p in zip(self.convs, pieces, strict=True)], 1)
        local = q * local.reshape(b, self.heads, c // self.heads, n).transpose(-1, -2)
        return self.proj((self.scale * mixed + local).transpose(1, 2).reshape(b, n, c))


class OneHead(nn.Module):
    """A single head over a part of the channels, whose queries and keys have a width of their own."""

    def __init__(self, width, part, each):
        super().__init__()
        self.dim, self.part, self.each, self.scale = width, part, each, each**-0.5
        self.qkv, self.proj = nn.Conv1d(part, 2 * each + part, 1), nn.Conv1d(width, width, 1)

    def forward(self, x):
        used, left = torch.split(x.transpose(1, 2), [self.part, self.dim - self.part], 1)
        q, k, v = torch.split(self.qkv(used), [self.each, self.each, self.part], 1)
        used = v @ ((q.transpose(-2, -1) @ k) * self.scale).softmax(-1).transpose(-2, -1)
        return self.proj(torch.cat([used, left], 1)).transpose(1, 2)


class Stages(nn.Module):
    """Residual blocks in stages: (width, block, block, ...)."""

    def __init__(self, *stages):
        super().__init__()
        widths = [3, *(width for width, *_ in stages)]
        self.steps = nn.ModuleList(nn.Conv1d(a, b, 1) for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(nn.ModuleList(blocks) for _, *blocks in stages)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[1:])
        self.head = nn.Linear(widths[-1], 5)

    def forward(self, x):
        for step, blocks, norm in zip(self.steps, self.blocks, self.norms, strict=True):
            x = step(x).transpose(1, 2)
            for block in blocks:
                x = x + block(norm(x))
            x = x.transpose(1, 2)
        return self.head(x.mean(2))


def pruned(*stages):
    """Widths of what can shrink, after random plans were compared with their twins."""
    torch.manual_seed(0)
    model = randomized(Stages(*stages)).eval()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
    assert_equals_twin(model, half_plan(coupling), x, coupling)
    return {g.name: g.size for g in coupling.prunable}, coupling


def test_a_stage_with_one_head_shrinks_by_its_channels_and_the_next_by_heads():
    found, coupling = pruned((8, Scaled(8, 1), Scaled(8, 1)), (12, Scaled(12, 3), Scaled(12, 3)), (16, Scaled(16, 4)))
    assert found == {"steps.0": 8, "steps.1": 3, "steps.2": 4}
    assert not [n for n in coupling.frozen if "steps" in n]


def test_a_stage_with_one_head_in_between():
    found, _ = pruned((12, Scaled(12, 3)), (8, Scaled(8, 1)), (16, Scaled(16, 4)))
    assert found == {"steps.0": 3, "steps.1": 8, "steps.2": 4}


def test_stages_are_not_tied_to_one_another():
    found, _ = pruned(*((12, Scaled(12, 3), Scaled(12, 3)) for _ in range(3)))
    assert found == {"steps.0": 3, "steps.1": 3, "steps.2": 3}


def test_heads_and_pieces_that_do_not_divide_are_tied_in_runs_that_divide_both():
    # Six channels, one in each of four pieces, and four heads: two runs of twelve.
    assert pruned((24, Across(24, 4, parts=4)))[0] == {"steps.0": 2}


def test_a_chunk_with_a_rest_keeps_its_proportions():
    # 8, 8 and 6; of the half 4, 4 and 3.
    assert pruned((22, Across(22, 2, parts=3)))[0] == {"steps.0": 2}


def test_positions_of_every_head_where_parts_have_several_heads():
    assert pruned((24, Factored(24, 4, (1, 1, 2))), (32, Factored(32, 4, (1, 3))))[0] == {"steps.0": 6, "steps.1": 8}


@pytest.mark.parametrize(("width", "part", "each", "units"), [(32, 12, 4, 4), (40, 20, 8, 4)])
def test_one_head_over_a_part_of_the_channels(width, part, each, units):
    found, _ = pruned((width, OneHead(width, part, each)), (28, OneHead(28, 8, 8)))
    assert found["steps.0"] == units
    assert found["steps.1"] > 1
