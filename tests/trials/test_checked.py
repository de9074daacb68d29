"""Widths that the forward's own code compares before an operator runs: `if x.shape[1] != self.channels: raise`."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_equals_twin, half_plan, randomized
from torch import nn

import halp_fx


class Wrapped(nn.Module):
    """A layer with attributes that it does not read, as libraries wrap theirs."""

    def __init__(self, channels, out, **numbers):
        super().__init__()
        self.in_channels, self.out_channels = channels, out
        for name, value in numbers.items():
            setattr(self, name, value)
        self.conv = nn.Conv2d(channels, out, 1)

    def forward(self, x):
        return self.conv(x)


class Checking(nn.Module):
    def __init__(self, channels, out, check):
        super().__init__()
        self.num_channels, self.check = channels, check
        decoys = {"dim": channels, "width": channels, "planes": out, "hidden": out, "base": channels // 2}
        self.op = Wrapped(channels, out, **decoys)

    def forward(self, x):
        self.check(self, x)
        return self.op(x)


def _raises(module, x):
    if x.shape[1] != module.num_channels:
        raise ValueError(f"{x.shape[1]} channels, {module.num_channels} expected")


def _asserts(module, x):
    assert x.size(1) == module.num_channels


def _unpacks(module, x):
    n, c, *_ = x.shape
    assert (n, c) == (n, module.num_channels), "channels"


def _torch_checks(module, x):
    torch._assert(x.shape[1] == module.num_channels, "channels")


class Checked(nn.Module):
    def __init__(self, check):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(32, 2, 1)
        self.a, self.b, self.c = Checking(12, 16, check), Checking(16, 24, check), Checking(24, 32, check)

    def forward(self, x):
        return self.head(self.c(self.b(self.a(self.stem(x)).relu()).relu()).relu())


@pytest.mark.parametrize("check", [_raises, _asserts, _unpacks, _torch_checks])
def test_an_attribute_that_a_check_reads_follows_the_width_that_it_is_compared_with(check):
    model, x = randomized(Checked(check)), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert [g.size for g in coupling.prunable] == [12, 16, 24, 32], coupling.frozen
    plan = half_plan(coupling)
    assert_equals_twin(model, plan, x, coupling)
    small = halp_fx.rewrite(model, plan, x)
    assert [m.num_channels for m in (small.a, small.b, small.c)] == [6, 8, 12]


def test_a_check_against_a_number_holds_the_width_that_it_is_of_and_no_other():
    class Fixed(Checked):
        def forward(self, x):
            y = self.a(self.stem(x)).relu()
            if y.shape[1] != 16:
                raise ValueError("16 channels")
            return self.head(self.c(self.b(y).relu()).relu())

    model, x = randomized(Fixed(lambda module, x: None)), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert [g.size for g in coupling.prunable] == [12, 24, 32], coupling.frozen
    assert_equals_twin(model, half_plan(coupling), x, coupling)


def test_widths_that_are_compared_with_each_other_are_tied():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(16, 2, 1)

        def forward(self, x):
            q, k = self.q(x), self.k(x)
            if q.shape != k.shape:
                raise ValueError("queries and keys")
            return self.head(torch.cat([q, k], 1).relu())

    model, x = randomized(Two()), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert [g.size for g in coupling.prunable] == [8], coupling.frozen
    assert {m.axis.tensor for m in coupling.prunable[0].members} >= {"q.weight", "k.weight"}
    assert_equals_twin(model, half_plan(coupling), x, coupling)
