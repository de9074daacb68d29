"""Widths that the forward's own code compares before an operator runs: `if x.shape[1] != self.channels: raise`."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_equals_twin, equals_twin_closely, half_plan, random_plan, randomized
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


class Reduced(nn.Module):
    """Attention whose queries and keys have a width of their own, which the forward divides with `int` (RGT)."""

    def __init__(self, width=24, reduced=12, heads=4):
        super().__init__()
        self.num_heads, self.cr = heads, reduced
        self.q, self.k, self.v = nn.Linear(width, reduced), nn.Linear(width, reduced), nn.Linear(width, width)
        self.conv = nn.Conv2d(reduced, reduced, 3, padding=1, groups=reduced)
        self.down, self.proj = nn.Conv2d(width, reduced, 1), nn.Linear(width, width)
        self.again = nn.Linear(reduced, width)

    def forward(self, x, side):
        b, n, c = x.shape
        seen = self.down(x.transpose(1, 2).view(b, c, side, side))
        seen = self.conv(seen).view(b, self.cr, -1).transpose(1, 2)
        y = self.again(seen)
        q = self.q(x).reshape(b, n, self.num_heads, int(self.cr / self.num_heads)).transpose(1, 2)
        k = self.k(y).reshape(b, n, self.num_heads, int(self.cr / self.num_heads)).transpose(1, 2)
        v = self.v(y).reshape(b, n, self.num_heads, int(c / self.num_heads)).transpose(1, 2)
        return self.proj(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class Recursive(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 24, 1), nn.Linear(24, 2)
        self.a, self.b = Reduced(), Reduced()

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.a(x, 4)
        return self.head(x + self.b(x, 4))


def test_widths_that_the_forward_divides_with_int():
    model, x = randomized(Recursive()), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert list(coupling.frozen) == ["head"]
    plan = half_plan(coupling)
    small = assert_equals_twin(model, plan, x, coupling)
    assert (small.a.num_heads, small.a.cr) == (2, 6)
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
