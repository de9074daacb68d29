"""Networks that run forward and not backward, or not on one sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import halp_fx


class Overwritten(nn.Module):
    """Writes over what its backward needs; with `alone`, where a batch has one sample."""

    def __init__(self, alone):
        super().__init__()
        self.alone = alone
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        y = self.a(x).exp()
        z = self.b(y)
        if not self.alone or len(x) == 1:
            y += 1.0
        return self.head(z.mean((2, 3)))


def data():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 3, 8, 8, generator=generator), torch.arange(4)) for _ in range(2)]


@pytest.mark.parametrize("options", [{}, {"loss_fn": nn.functional.cross_entropy}, {"importance": "fisher"}])
def test_a_backward_that_fails_is_told_by_its_batch(options):
    model, x = Overwritten(alone=False).eval(), torch.randn(1, 3, 8, 8)
    with pytest.raises(halp_fx.SaliencyError, match="the gradients of batch 0 of data cannot be computed: Runtime"):
        halp_fx.prune(model, 0.5, x, data=data(), latency="macs", progress=False, **options)


def test_a_backward_that_fails_on_one_sample_is_run_on_whole_batches():
    torch.manual_seed(0)
    model, x = Overwritten(alone=True).eval(), torch.randn(1, 3, 8, 8)
    small = halp_fx.prune(model, 0.5, x, data=data(), latency="macs", progress=False)
    assert small.a.out_channels < 16
