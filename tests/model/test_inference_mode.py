"""Callers in inference mode: PyTorch then runs other operators, and makes tensors that cannot be trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import halp_fx

X = torch.rand(2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def names(coupling):
    return [group.name for group in coupling.prunable]


def test_the_same_operators_and_groups_are_found():
    model = Net().eval()
    wanted, traced = names(halp_fx.channel_groups(model, X)), halp_fx.trace(model, X)
    with torch.inference_mode():
        assert names(halp_fx.channel_groups(model, X)) == wanted == ["conv"]
        assert str(halp_fx.trace(model, X).graph) == str(traced.graph)
        assert "conv" in halp_fx.explain(model, X)


@pytest.mark.parametrize("make", [halp_fx.rewrite, halp_fx.zero])
def test_what_is_made_can_be_trained(make):
    model, plan = Net().eval(), {"conv": (0, 2, 5)}
    wanted = make(model, plan, X)
    with torch.inference_mode():
        made = make(model, plan, X)
        torch.testing.assert_close(made(X), wanted(X))
    assert not any(p.is_inference() for p in (*made.parameters(), *made.buffers()))
    if make is halp_fx.rewrite:
        made.train()(X).sum().backward()


def test_a_profile():
    with torch.inference_mode():
        found = halp_fx.profile(Net(), X, cost=halp_fx.MacsCost(), progress=False)
    assert [group.name for group in found.groups if group.frozen is None] == ["conv"]
