"""Every coupling keeps what is promised of it, and one that does not is named. Whole networks: `sweeping.checking`."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import Net
from test_coupling import ZOO
from torch import nn

import halp_fx
from halp_fx import HalpError
from halp_fx.coupling.checking import check_coupling
from halp_fx.types import AttributeEdit, Extent


@pytest.mark.parametrize("name", ZOO)
def test_couplings_hold(name):
    coupling = halp_fx.channel_groups(ZOO[name][0](), torch.randn(1, 3, 8, 8))
    check_coupling(coupling)
    check_coupling(pickle.loads(pickle.dumps(coupling)))
    plan = {g.name: range(max(1, g.size // 2)) for g in coupling.prunable}
    small = halp_fx.rewrite(ZOO[name][0](), plan, torch.randn(1, 3, 8, 8), coupling=coupling)
    check_coupling(halp_fx.channel_groups(small, torch.randn(1, 3, 8, 8), like=coupling))


def coupled():
    """Two groups, one norm over channels, and a weight that the forward computes."""
    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 6, 1), "c": nn.Conv2d(6, 4, 1), "norm": nn.GroupNorm(2, 8)}
    net = Net(lambda m, x: m.c(torch.conv2d(m.norm(m.a(x)), 2 * m.b.weight, m.b.bias).relu()), **layers)
    return halp_fx.channel_groups(net, torch.randn(1, 3, 4, 4))


def with_group(coupling, name, /, **fields):
    groups = (replace(g, **fields) if g.name == name else g for g in coupling.groups)
    return replace(coupling, groups=tuple(groups))


def with_slots(coupling, name, change):
    group = next(g for g in coupling.groups if g.name == name)
    first = replace(group.members[0], slots=change(group.members[0].slots.copy()))
    return with_group(coupling, name, members=(first, *group.members[1:]))


def with_shape(coupling, node, *extents):
    return replace(coupling, shapes={**coupling.shapes, node: extents})


def repeated(slots):
    slots[1] = slots[0]
    return slots


def with_weight(coupling, **fields):
    weight = coupling.computed[0]
    return replace(coupling, computed=(replace(weight, parts=(replace(weight.parts[0], **fields),)),))


WRONG = {
    "name": (lambda c: with_group(c, "b", name="a"), "two groups are called 'a'"),
    "axis": (lambda c: with_group(c, "b", members=2 * members_of(c, "b")), "twice"),
    "reason": (lambda c: with_group(c, "b", frozen=""), "frozen without a reason"),
    "size": (lambda c: with_group(c, "b", size=5), "for 5 channels"),
    "slots": (lambda c: with_slots(c, "b", lambda s: s + 1), "slots on b.weight.* that are not there"),
    "shared": (lambda c: with_slots(c, "b", repeated), "shares slots"),
    "swapped": (lambda c: with_slots(c, "b", lambda s: s[::-1]), "do not belong together"),
    "left out": (lambda c: with_group(c, "b", members=members_of(c, "b")[1:]), "in no group"),
    "no shape": (lambda c: replace(c, shapes={}), "has no shape"),
    "extent": (lambda c: with_shape(c, "relu", *map(Extent, (1, 6, 4, 5))), r"relu has shape \(1, 6, 4, 5\)"),
    "frozen": (
        lambda c: with_shape(c, "relu", Extent(1), Extent(2, (("c", 1),)), Extent(4), Extent(4)),
        "follows 'c', which cannot shrink",
    ),
    "edit": (lambda c: replace(c, edits=(AttributeEdit("a", "groups", Extent(0, (("a", 1),)), 3),)), "whole number"),
    "restricted": (lambda c: replace(c, groups=c.groups[:0], computed=(), shapes=fixed(c)), "restricted to channels"),
    "elsewhere": (lambda c: replace(c, restricted={"none": ()}), "none is restricted, which is no node"),
    "computed": (lambda c: with_weight(c, channels=np.arange(7)), "do not lie in"),
}


def members_of(coupling, name):
    return next(g.members for g in coupling.groups if g.name == name)


def fixed(coupling):
    widths = coupling.widths()
    return {name: tuple(Extent(e.at(widths)) for e in row) for name, row in coupling.shapes.items()}


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_coupling_is_named(name):
    coupling = coupled()
    check_coupling(coupling)
    change, message = WRONG[name]
    with pytest.raises(HalpError, match=message):
        check_coupling(change(coupling))
