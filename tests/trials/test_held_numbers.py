"""Widths that a module holds in named tuples, nested tuples, long lists, partial functions and objects in objects."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from oracle import equals_twin_closely, half_plan, random_plan, randomized
from torch import nn

import halp_fx
from halp_fx.model.holding import MAX_ELEMENTS, held, put
from halp_fx.rewriting.inplace import narrow


class Widths(NamedTuple):
    first: int = 8
    second: int = 12


@dataclass
class Stage:
    width: int


@dataclass
class Encoder:
    stages: list[Stage] = field(default_factory=lambda: [Stage(8), Stage(12)])


@dataclass
class Config:
    encoder: Encoder = field(default_factory=Encoder)


class Pieces(nn.Module):
    """The first layer's output is viewed by one number, and the second one's by another."""

    def __init__(self, widths, read):
        super().__init__()
        self.widths, self.read = widths, read
        self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Linear(12, 4)

    def forward(self, x):
        a, b = self.read(self.widths)
        x = self.first(x).view(len(x), a, -1).relu().unflatten(2, x.shape[2:])
        return self.head(self.second(x).view(len(x), b, -1).mean(2))


HELD = {
    "named tuple": (Widths(), lambda w: (w.first, w.second)),
    "named tuple, taken apart": (Widths(), lambda w: w),
    "tuple of tuples": (((3, 8), (8, 12)), lambda w: (w[0][1], w[1][1])),
    "list of lists": ([[3, 8], [8, 12]], lambda w: (w[0][1], w[1][1])),
    "long list": ([*range(50, 70), 8, 12], lambda w: (w[-2], w[-1])),
    "rows in a dictionary": ({"widths": (8, 12)}, lambda w: w["widths"]),
    "dictionaries in a dictionary": (
        {"a": {"width": 8}, "b": {"width": 12}},
        lambda w: (w["a"]["width"], w["b"]["width"]),
    ),
    "an ordered dictionary": (OrderedDict(a=8, b=12), lambda w: w.values()),
    "a partial function": (partial(lambda first, second: (first, second), 8, second=12), lambda w: w()),
    "numbers of numpy": (tuple(np.array([8, 12])), lambda w: w),
    "objects in objects": (Config(), lambda w: (s.width for s in w.encoder.stages)),
}


@pytest.mark.parametrize("name", HELD)
def test_numbers_in_containers_follow_widths(name):
    torch.manual_seed(0)
    widths, read = HELD[name]
    model, x = randomized(Pieces(copy.deepcopy(widths), read)).eval(), torch.randn(2, 3, 5, 7, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"first": 8, "second": 12}
    for plan in (half_plan(coupling), random_plan(coupling, 1), random_plan(coupling, 2)):
        small, _ = equals_twin_closely(model, plan, x, coupling)
        assert type(small.widths) is type(widths)
        assert tuple(read(small.widths)) == tuple(len(plan[name]) for name in ("first", "second"))
    assert tuple(read(model.widths)) == (8, 12)


class OfNumpy(nn.Module):
    """Layers whose numbers numpy has computed, and a view by one."""

    def __init__(self):
        super().__init__()
        self.width = width = np.int64(12)
        self.first, self.norm = nn.Conv2d(3, width, 1), nn.BatchNorm2d(width)
        self.groups, self.plain = nn.GroupNorm(np.int64(3), width), nn.InstanceNorm2d(width)
        self.last, self.head = nn.Conv2d(width, width, 1), nn.Linear(width, 4)

    def forward(self, x):
        x = self.groups(self.last(self.norm(self.first(x)).relu()))
        return self.head(self.plain(x).view(len(x), self.width, -1).relu().mean(2))


def test_numbers_of_numpy_are_numbers():
    torch.manual_seed(0)
    model, x = randomized(OfNumpy()).eval(), torch.randn(2, 3, 5, 7, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert len(coupling.prunable) == 2
    small, _ = equals_twin_closely(model, half_plan(coupling), x, coupling)
    assert small.norm.num_features == small.first.out_channels == 6
    assert small.width == small.plain.num_features == small.last.out_channels < model.width


class Shared(nn.Module):
    """One module holds the configuration, and another a part of it."""

    def __init__(self):
        super().__init__()
        self.config = Config()
        self.inner = Pieces(self.config.encoder, lambda e: (s.width for s in e.stages))

    def forward(self, x):
        return self.inner(x) * self.config.encoder.stages[0].width


def test_objects_that_modules_share_stay_shared():
    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(2, 3, 4, 4)
    model.inner.head.weight.data *= 2
    coupling = halp_fx.channel_groups(model, x, ignore=["inner.first"])
    small = halp_fx.rewrite(model, half_plan(coupling), x, coupling=coupling)
    assert small.inner.widths is small.config.encoder
    assert [s.width for s in small.config.encoder.stages] == [8, 6]
    assert [s.width for s in model.config.encoder.stages] == [8, 12]


def test_a_list_that_is_too_long_is_not_looked_at():
    model, x = Pieces([*range(MAX_ELEMENTS - 1), 8, 12], lambda w: w[-2:]).eval(), torch.randn(2, 3, 5, 7)
    assert not halp_fx.channel_groups(model, x).prunable


def test_what_a_path_leads_to_is_set_in_copies():
    class Holder(nn.Module):
        def __init__(self, table):
            super().__init__()
            self.table = table

    table = {"rows": ((1, 2), (3, Stage(4)))}
    one, other = Holder(table), Holder([table, 5])
    put((one, other), one, "table['rows'][1][0]", 7)
    assert one.table == {"rows": ((1, 2), (7, Stage(4)))} == other.table[0]
    assert other.table[0] is one.table
    put((one, other), one, "table['rows'][1][1].width", 8)
    assert held(one, "table['rows'][1][1].width") == 8 == held(other, "table[0]['rows'][1][1].width")
    assert table == {"rows": ((1, 2), (3, Stage(4)))}


class Heads(nn.Module):
    """As the layers of einops: the forward reads what is made of the sizes, which a copy makes again."""

    def __init__(self, **sizes):
        super().__init__()
        self.sizes = sizes
        self.made = tuple(sizes.items())

    def forward(self, x):
        return x.unflatten(-1, (dict(self.made)["heads"], -1)).transpose(1, 2)

    def __getstate__(self):
        return {"sizes": self.sizes}

    def __setstate__(self, state):
        self.__init__(**state["sizes"])


class Restored(nn.Module):
    """A copy keeps what it is given, and computes the number that the forward reads."""

    def __init__(self, **sizes):
        super().__init__()
        self.sizes = sizes
        self.__setstate__({})

    def forward(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def __setstate__(self, state):
        super().__setstate__(state)
        self.heads = self.sizes["heads"]


class Attending(nn.Module):
    """Heads with a gate each: their number has to follow."""

    def __init__(self, split):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(12, 24) for _ in range(3))
        self.gate, self.head = nn.Linear(12, 4), nn.Linear(24, 5)
        self.split = split(heads=4)
        self.split.register_forward_hook(lambda module, args, result: None)

    def forward(self, x):
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(2, 3)).softmax(-1) @ v
        mixed = mixed * self.gate(x).sigmoid().transpose(1, 2)[..., None]
        return self.head(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("split", [Heads, Restored])
def test_what_a_copy_makes_of_its_attributes_follows_them(split):
    torch.manual_seed(0)
    model, x = randomized(Attending(split)).eval(), torch.randn(2, 7, 12, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.size for g in coupling.prunable} == {4}
    plan = half_plan(coupling)
    small, _ = equals_twin_closely(model, plan, x, coupling)
    want = small(x)
    torch.testing.assert_close(copy.deepcopy(small)(x), want)
    hooks = len(model.split._forward_hooks)
    narrow(model, plan, coupling=coupling)
    torch.testing.assert_close(model(x), want)
    assert model.split.sizes == {"heads": 2}
    assert len(model.split._forward_hooks) == hooks
