"""Hooks that reach what their model holds by other ways than the module that they are given."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_equals_twin, half_plan, randomized
from torch import nn

import halp_fx


class Kept:
    """As timm's `FeatureHooks`: an object with a hook that keeps what a layer has computed."""

    def __init__(self, layer):
        self.found = {}
        layer.register_forward_hook(self.keep)

    def keep(self, layer, args, output):
        self.found["a"] = output


def by_closure(model):
    found = model.found

    def keep(layer, args, output):
        found["a"] = output

    return keep


def by_two(model):
    keep = by_closure(model)
    return lambda *call: keep(*call)


def by_default(model):
    return lambda layer, args, output, found=model.found: found.__setitem__("a", output)


def by_keyword(model):
    def keep(layer, args, output, *, owner=model):
        owner.found["a"] = output

    return keep


def by_method(model):
    return model.keep


WAYS = {f.__name__: f for f in (by_closure, by_two, by_default, by_keyword, by_method)}


class Hooked(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 4)
        self.side = nn.Linear(8, 4)
        self.found = {}
        if way == "by_object":
            self.feature_hooks = Kept(self.a)
            self.found = self.feature_hooks.found
        else:
            self._hooks = [self.a.register_forward_hook(WAYS[way](self))]

    def keep(self, layer, args, output):
        self.found["a"] = output

    def forward(self, x):
        y = self.head(self.b(self.a(x).relu()).mean((2, 3)))
        return y + self.side(self.found.pop("a").mean((2, 3))) if self.found else y


@pytest.mark.parametrize("way", [*WAYS, "by_object"])
def test_what_a_hook_keeps_is_read_in_the_pruned_network(way):
    """A hook that kept it in the model that the network was copied from left the network without it, and the model with
    what was not its own."""
    torch.manual_seed(0)
    model, x = randomized(Hooked(way)).eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"a": 8, "b": 6}
    a = next(g for g in coupling.prunable if g.name == "a")
    assert {m.axis.tensor for m in a.members} >= {"side.weight"}
    small = assert_equals_twin(model, half_plan(coupling), x, coupling)
    assert not model.found
    without = small.head(small.b(torch.conv2d(x, small.a.weight, small.a.bias).relu()).mean((2, 3)))
    assert not torch.allclose(small(x), without)


def test_a_hook_that_closes_over_a_parameter():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 4)), torch.randn(2, 3, dtype=torch.float64)
    gain = nn.Parameter(torch.rand(8))
    model[0].register_parameter("gain", gain)
    model[0].register_forward_hook(lambda layer, args, output: output * gain)
    model = randomized(model).eval()
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"0": 8}, coupling.frozen
    assert_equals_twin(model, half_plan(coupling), x, coupling)


@pytest.mark.parametrize("value", [[1], 3, "ab", ("a",), {"a": 1}])
def test_whatever_a_module_calls_hooks(value):
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 4))
    model[0].my_hooks = value
    assert halp_fx.channel_groups(model, torch.randn(2, 3)).prunable
