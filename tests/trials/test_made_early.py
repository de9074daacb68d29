"""Tensors that a forward makes before an operator that has to be mended, and reads after it."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_equals_twin, half_plan, randomized
from torch import nn

import halp_fx

MADE = {
    "zeros": lambda x: x.new_zeros(len(x), 2, *x.shape[2:]),
    "no channels": lambda x: torch.empty(len(x), 0, *x.shape[2:], dtype=x.dtype),
    "numbers": lambda x: torch.arange(x.shape[-1], dtype=x.dtype).expand(len(x), 2, *x.shape[2:]),
}


class MadeEarly(nn.Module):
    """As encoders make the skip connection of a scale that they do not have; an attribute repeats a width."""

    def __init__(self, made):
        super().__init__()
        self.made, self.width = made, 12
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.last = nn.Conv2d(8 + made(torch.rand(1, 3, 6, 6)).shape[1], 2, 1)

    def forward(self, x):
        early = self.made(x)
        y = self.first(x).view(len(x), self.width, -1)
        y = self.second(y.sin().view(len(x), self.width, *x.shape[2:]))
        return self.last(torch.cat([y, early], 1))


@pytest.mark.parametrize("name", MADE)
def test_the_operator_that_fails_is_mended_and_not_what_was_made_before(name):
    model, x = randomized(MadeEarly(MADE[name])), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"first": 12, "second": 8}, coupling.frozen
    assert_equals_twin(model, half_plan(coupling), x, coupling)


def test_the_reason_names_the_operator_that_fails():
    """A number that no attribute holds cannot be mended."""

    class Fixed(MadeEarly):
        def forward(self, x):
            early = self.made(x)
            y = self.second(self.first(x).view(len(x), int("12"), *x.shape[2:]).sin())
            return self.last(torch.cat([y, early], 1))

    model, x = randomized(Fixed(MADE["zeros"])), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert "view" in coupling.frozen["first"]
    assert {g.name for g in coupling.prunable} == {"second"}
