"""Forwards that catch errors of PyTorch: what they do when recorded, and pruned, is what they do when run."""

from __future__ import annotations

import pytest
import torch
from oracle import equals_twin_closely, half_plan, random_plan, randomized
from torch import nn

import halp_fx


class Trying(nn.Module):
    """Two layers, a function of the second one's output, and another layer for when that fails."""

    def __init__(self, function, caught=RuntimeError):
        super().__init__()
        self.function, self.caught = function, caught
        self.a, self.b, self.other = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        x = self.a(x).relu()
        try:
            x = self.function(self.b(x))
        except self.caught:
            x = self.other(x)
        return self.head(x.mean((2, 3)))


def _ones_elsewhere(x):
    """On tensors without values it fails: the ones have values."""
    return x + torch.ones(16)[:, None, None]


def _product(x):
    return (x.flatten(2).transpose(1, 2) @ torch.eye(16, dtype=x.dtype)).transpose(1, 2)[..., None]


@torch.jit.script
def _with_ones(x):
    return x + torch.ones(16)[:, None, None]


def _scripted(x):
    """What runs there is called by no function of Python."""
    return _with_ones(x)


def _swallowed(x):
    """With an error of its own that it goes on after."""
    try:
        return x * torch.linspace(1, 2, 16, dtype=x.dtype).view(1, 16, 1, 1)
    except RuntimeError:
        return x


def _tried_in_vain(x):
    """It fails in any case: the size is none of the example's."""
    try:
        return x.view(-1, 7)
    except RuntimeError:
        return x * 2


@pytest.mark.parametrize("function", [_ones_elsewhere, _product, _scripted, _swallowed])
@pytest.mark.parametrize("caught", [RuntimeError, Exception])
def test_errors_of_tensors_without_values_are_not_what_the_forward_catches(function, caught):
    model = randomized(Trying(function, caught).eval().double())
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert coupling.traced.unused == ("other.weight", "other.bias")
    assert [g.name for g in coupling.prunable] == ["a"]
    for plan in (half_plan(coupling), random_plan(coupling, 0)):
        equals_twin_closely(model, plan, x, coupling)


def _sizes(x):
    return x.view(x.shape[0], 16, -1, 1)


def _sums(x):
    return x.unflatten(1, (4, 4)).sum(1, keepdim=True).expand(-1, 4, -1, -1, -1).flatten(1, 2)


@pytest.mark.parametrize("function", [_sizes, _sums])
@pytest.mark.parametrize("caught", [RuntimeError, Exception, BaseException])
def test_a_trial_fails_where_an_operator_does_also_if_the_forward_goes_on(function, caught):
    """What it does then is none of what is asked for, and says nothing about the width that failed."""
    model = randomized(Trying(function, caught).eval().double())
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert [g.name for g in coupling.prunable] == ["a"]
    (reason,) = {g.frozen for g in coupling.groups if g.name == "b"}
    assert "a constant in the forward repeats its width" in reason
    assert "test_caught_errors.py" in reason
    equals_twin_closely(model, half_plan(coupling), x, coupling)


def test_what_the_forward_runs_instead_does_not_hide_where_it_failed():
    """The layer for then does not fit, which is not what is wrong."""

    class Beside(Trying):
        def forward(self, x):
            x = self.a(x)
            try:
                x = self.b(x).view(-1, 16, 4, 4)
            except self.caught:
                x = self.other(self.b(x))
            return self.head(x.mean((2, 3)))

    model, x = randomized(Beside(None, RuntimeError).eval().double()), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert [g.name for g in coupling.prunable] == ["a"]
    assert ["view at" in g.frozen for g in coupling.groups if g.name == "b"] == [True]
    equals_twin_closely(model, half_plan(coupling), x, coupling)


def test_a_loop_that_ends_with_an_error():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 2)
            self.blocks = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(2))

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                try:
                    x = block(x).reshape(-1, 16, 4, 4)
                except RuntimeError:
                    break
            return self.head(x.mean((2, 3)))

    model, x = randomized(Loop().eval().double()), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert "stem" in [g.name for g in coupling.prunable]
    equals_twin_closely(model, half_plan(coupling), x, coupling)


def test_an_error_that_the_forward_always_meets_is_part_of_it():
    model, x = randomized(Trying(_tried_in_vain).eval().double()), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert [g.name for g in coupling.prunable] == ["a", "b"]
    for plan in (half_plan(coupling), random_plan(coupling, 0)):
        equals_twin_closely(model, plan, x, coupling)


def test_an_error_that_nothing_catches_is_told_as_before():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.a(x).view(7, -1)

    with pytest.raises(halp_fx.TraceError, match="shape '\\[7, -1\\]' is invalid"):
        halp_fx.trace(Wrong(), torch.rand(1, 3, 4, 4))
