"""Modules that keep a number twice: copies are made from one, and the forward reads the other. Trials run on copies."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import equals_twin_closely, half_plan, randomized
from torch import nn

import halp_fx


class Split(nn.Module):
    """As einops' layers: what is copied and saved is the pattern, from which the rest is made."""

    def __init__(self, pattern, **lengths):
        super().__init__()
        self.pattern, self.lengths = pattern, lengths
        self._lengths = tuple(lengths.items())

    def forward(self, x):
        size = dict(self._lengths)["heads"]
        return x.view(*x.shape[:-1], size, x.shape[-1] // size).transpose(1, 2)

    def __getstate__(self):
        return {"pattern": self.pattern, "lengths": self.lengths}

    def __setstate__(self, state):
        self.__init__(state["pattern"], **state["lengths"])


class Attention(nn.Module):
    def __init__(self, heads=4, width=16, split=Split):
        super().__init__()
        self.first, self.qkv, self.out = nn.Linear(6, width), nn.Linear(width, 3 * width), nn.Linear(width, 3)
        self.split = split("b n (heads d) -> b heads n d", heads=heads)

    def forward(self, x):
        q, k, v = (self.split(part) for part in self.qkv(self.first(x)).chunk(3, -1))
        y = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


def einops_layer(*args, **kwargs):
    return pytest.importorskip("einops.layers.torch").Rearrange(*args, **kwargs)


@pytest.mark.parametrize("split", [Split, einops_layer], ids=["own", "einops"])
def test_both_follow_the_width(split):
    torch.manual_seed(0)
    model, x = randomized(Attention(split=split)).eval(), torch.randn(2, 5, 6, dtype=torch.float64)
    calls = []
    model.split.register_forward_hook(lambda *call: calls.append(1))
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"first": 16, "qkv": 4}
    small, _ = equals_twin_closely(model, half_plan(coupling), x, coupling)
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert len(small.split._forward_hooks) == 1
    calls.clear()
    torch.testing.assert_close(copy.deepcopy(small)(x), small(x))
    small(x)
    assert calls


def test_a_model_that_is_cut_in_place():
    torch.manual_seed(0)
    model, x = Attention(), torch.randn(8, 5, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = halp_fx.Pruner(model, {"macs": "50%"}, x, optimizer=optimizer, steps=1, interval=1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        pruner.step()
        optimizer.step()
    pruner.finish()
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))


def test_a_file_brings_both_back(tmp_path):
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(2, 5, 6)
    coupling = halp_fx.channel_groups(model, x)
    small = halp_fx.rewrite(model, half_plan(coupling), x, coupling=coupling)
    halp_fx.save(small, tmp_path / "small.safetensors")
    torch.testing.assert_close(halp_fx.load(tmp_path / "small.safetensors", Attention).eval()(x), small(x))
