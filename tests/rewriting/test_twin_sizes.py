"""The zeroed twin on inputs of other sizes than those of the example."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, half_plan, randomized, relative_error
from torch import nn

import halp_fx


def twins(function, **layers):
    """The pruned network and the zeroed twin of a convolution `a`, `function` of what it gives, and a layer `c`."""
    torch.manual_seed(0)
    model = randomized(Net(lambda s, x: s.c(function(s, s.a(x))), a=nn.Conv2d(3, 8, 1), **layers)).eval()
    x = images(2, 4)
    coupling = halp_fx.channel_groups(model, x)
    plan = half_plan(coupling)
    assert plan
    return tuple(f(model, plan, x, coupling=coupling) for f in (halp_fx.rewrite, halp_fx.zero))


def images(count, size):
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(count))


def test_statistic_over_channels_beside_other_sizes():
    small, twin = twins(lambda s, x: (x + 1).softmax(1), c=nn.Conv2d(8, 2, 1))
    for x in (images(2, 4), images(5, 7)):
        assert relative_error(small(x), twin(x)) <= 1e-9


@pytest.mark.parametrize("start", [0, 1])
def test_statistic_over_channels_in_a_row_with_others(start):
    """Where channels lie in a row with images, or with space, is known for the sizes of the example alone."""
    small, twin = twins(lambda s, x: (x + 1).square().flatten(start).mean(-1, keepdim=True), c=nn.Linear(1, 2))
    x = images(2, 4)
    assert relative_error(small(x), twin(x)) <= 1e-9
    with pytest.raises(halp_fx.TraceError, match=r"mean over channels that lie in dimension .* of a tensor of shape"):
        twin(images(3, 7))
