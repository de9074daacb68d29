"""A forward is recorded without values where it can be: what it asks about its device must be answered all the same."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, assert_equals_twin, half_plan, randomized
from torch import nn

import halp_fx
from halp_fx.tracing.calls import type_on

CPU = torch.device("cpu")


def shifted(h):
    return h.roll(1, 1)


def kind_of_device(s, h):
    return shifted(h) if h.device.type == "cpu" else h


def device(s, h):
    where = h.device
    return shifted(h) if where == CPU else h


def of_a_parameter(s, h):
    return h if next(s.parameters()).device != CPU else shifted(h)


def is_cpu(s, h):
    return shifted(h) if h.is_cpu else h


def not_without_values(s, h):
    return h if h.is_meta else shifted(h)


def index_of_device(s, h):
    return shifted(h) if h.get_device() == -1 and str(h.device) == "cpu" else h


def name_of_type(s, h):
    return shifted(h) if h.type() == "torch.DoubleTensor" and next(s.parameters()).type() == h.type() else h


ASKED = [kind_of_device, device, of_a_parameter, is_cpu, not_without_values, index_of_device, name_of_type]


def network(function):
    model = Net(lambda s, x: s.head(function(s, s.stem(x).relu()).mean((2, 3))), stem=nn.Conv2d(3, 8, 1))
    model.head = nn.Linear(8, 4)
    return randomized(model).eval(), torch.randn(2, 3, 5, 5, dtype=torch.float64)


@pytest.mark.parametrize("function", ASKED, ids=lambda f: f.__name__)
def test_the_path_of_the_device_that_the_model_is_on(function):
    """Recorded without values, they all left the channels as they are, and the pruned network shifted others."""
    model, x = network(function)
    coupling = halp_fx.channel_groups(model, x)
    assert coupling.traced.on_meta
    assert "roll" in coupling.frozen["stem"]


def has_memory(s, h):
    return shifted(h) if h.data_ptr() else h


def has_elements_in_memory(s, h):
    return shifted(h) if h.untyped_storage().device == CPU else h


@pytest.mark.parametrize("function", [has_memory, has_elements_in_memory], ids=lambda f: f.__name__)
def test_the_path_of_what_has_values_where_the_forward_asks_for_its_memory(function):
    """Without values it is told of none, which is no error."""
    model, x = network(function)
    coupling = halp_fx.channel_groups(model, x)
    assert not coupling.traced.on_meta
    assert "roll" in coupling.frozen["stem"]


def test_the_type_is_named_after_the_device_that_the_program_was_told():
    assert type_on(torch.device("cuda", 0), torch.float16) == "torch.cuda.HalfTensor"
    assert type_on(CPU, torch.int64) == torch.ones(1, dtype=torch.int64).type()


def dirac(s, h):
    """As PyTorch makes it, which leaves a tensor without values as it is."""
    return nn.functional.conv2d(h, nn.init.dirac_(torch.empty_like(s.mix.weight)) + s.mix.weight)


def test_an_identity_that_a_forward_makes_holds_its_channels():
    model, x = network(dirac)
    model.mix = nn.Conv2d(8, 8, 1)
    randomized(model)
    assert {"stem", "mix"} <= halp_fx.channel_groups(model, x).frozen.keys()


def made(h):
    where = h.device
    new = torch.zeros(h.shape, device=where) + torch.arange(h.shape[-1], device=where)
    return h + new + torch.ones(5).to(where) + h.new_ones(5, device=where) + torch.full((5,), 2.0, device=h.device)


def test_what_is_made_on_that_device_has_no_values_either():
    model, x = network(lambda s, h: made(h))
    coupling = halp_fx.channel_groups(model, x)
    assert coupling.traced.on_meta
    assert {g.name: g.size for g in coupling.prunable} == {"stem": 8}
    assert_equals_twin(model, half_plan(coupling), x, coupling)


def test_scripted_parts_still_get_values():
    model, x = network(lambda s, h: s.inner(h))
    model.inner = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 1).double()))
    coupling = halp_fx.channel_groups(model, x)
    assert not coupling.traced.on_meta
    assert "scripted" in coupling.frozen["stem"]


def told(s, h):
    """Attention as libraries write it: autocast of the device that a tensor is on, and a mask made there."""
    with torch.autocast(device_type=h.device.type, enabled=False):
        b, c, height, width = h.shape
        h = h.view(b, 2, c // 2, height * width).softmax(2)
        mask = torch.ones(height * width, device=h.device, dtype=h.dtype)
        assert mask.device == h.device
        return (h * mask).view(b, c, height, width)


def test_trials_tell_the_same_device():
    """Their networks have no values: they said "meta", which no autocast knows, and everything was frozen."""
    model, x = network(told)
    coupling = halp_fx.channel_groups(model, x)
    assert coupling.traced.on_meta
    assert "stem" not in coupling.frozen, coupling.frozen
    assert_equals_twin(model, half_plan(coupling), x, coupling)
