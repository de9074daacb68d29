"""Operators that are given functions: `flex_attention`, `torch.cond`, `while_loop`. They are recorded, and run in the
twin, as the operators that they come to where nothing is compiled."""

from __future__ import annotations

import warnings

import pytest
import torch
from oracle import Net, equals_twin_closely, half_plan, random_plan, randomized
from torch import nn
from torch._higher_order_ops.while_loop import while_loop
from torch.nn import functional as F
from torch.nn.attention import flex_attention as flex

import halp_fx

DISABLED = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"


class Attention(nn.Module):
    """Flex attention: keys of fewer heads, a causal mask of blocks, and a table of relative positions."""

    def __init__(self, bias):
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 4)
        self.q, self.kv, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.table = nn.Parameter(torch.randn(31))
        self.bias = bias

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        q = self.q(x).view(b, n, 4, -1).transpose(1, 2)
        k, v = self.kv(x).view(b, n, 2, 2, -1).permute(2, 0, 3, 1, 4)
        mask = flex.create_block_mask(lambda b, h, i, j: i >= j, None, None, n, n, device=str(x.device))
        y = flex.flex_attention(q, k, v, self.bias(self), mask, scale=0.3, enable_gqa=True)
        return self.head((x + self.out(y.transpose(1, 2).reshape(b, n, -1))).mean(1))


BIASES = {
    "none": lambda m: None,
    "distance": lambda m: lambda score, b, h, i, j: score - (i - j).abs() * 0.1,
    "a parameter": lambda m: lambda score, b, h, i, j: score + m.table[i - j + 15],
}


@pytest.mark.parametrize("bias", BIASES)
def test_flex_attention(bias):
    torch.manual_seed(0)
    model, x = randomized(Attention(BIASES[bias])).eval(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coupling = halp_fx.channel_groups(model, x)
        assert {g.name: g.size for g in coupling.prunable} == {"patch": 16, "q": 4}
        with torch.no_grad():
            for plan in (half_plan(coupling), random_plan(coupling, 1)):
                equals_twin_closely(model, plan, x, coupling)
    assert not getattr(flex, DISABLED)
    assert "_validate_device" in flex._validate_device.__qualname__


OLDER = pytest.mark.xfail(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14),
    reason="such operators compile themselves within a mode there, so the zeroed twin cannot run them",
)


def network(function, **layers):
    torch.manual_seed(0)

    def forward(m, x):
        return m.head(function(m, m.stem(x)).mean((2, 3)))

    model = Net(forward, stem=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 4), **layers)
    return randomized(model).eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)


def test_branches_by_values():
    def either(m, x):
        return m.c(torch.cond(x[:1, :1].sum() * 0 > x.shape[0] - 3, m.a, m.b, (x,)))

    layers = {"a": nn.Conv2d(8, 12, 1), "b": nn.Conv2d(8, 12, 1), "c": nn.Conv2d(12, 8, 1)}
    model, x = network(either, **layers)
    coupling = halp_fx.channel_groups(model, x)
    assert "it may meet b" in coupling.frozen["a"]
    assert "which the example inputs do not reach" in coupling.frozen["a"]


@OLDER
def test_both_branches():
    def either(m, x):
        return m.c(torch.cond(x.mean() > 0, m.a, m.b, (x,)))

    layers = {"a": nn.Conv2d(8, 12, 1), "b": nn.Conv2d(8, 12, 1), "c": nn.Conv2d(12, 8, 1)}
    model, x = network(either, **layers)
    model.stem.bias.data.zero_()
    coupling = halp_fx.channel_groups(model, [x, -x])
    assert {g.name: g.size for g in coupling.prunable} == {"a": 12, "c": 8}
    plan = half_plan(coupling)
    small, twin = (f(model, plan, [x, -x], coupling=coupling) for f in (halp_fx.rewrite, halp_fx.zero))
    for y in (x, -x):
        with torch.no_grad():
            torch.testing.assert_close(small(y), twin(y), rtol=1e-9, atol=1e-9)


@OLDER
def test_loops():
    def steps(m, x):
        def body(i, y):
            z = m.a(y).movedim(1, -1)
            return i + 1, y + 0.1 * m.b(F.layer_norm(z, z.shape[-1:]).movedim(-1, 1))

        return while_loop(lambda i, y: i < 3, body, (torch.tensor(0), x))[1]

    model, x = network(steps, a=nn.Conv2d(8, 12, 1), b=nn.Conv2d(12, 8, 1))
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"stem": 8, "a": 12}
    with torch.no_grad():
        equals_twin_closely(model, half_plan(coupling), x, coupling)
