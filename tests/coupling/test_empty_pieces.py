"""Pieces without an element (what a rotary embedding leaves of a head as wide as itself, tokens that are left out)."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, assert_equals_twin, equals_twin_closely, half_plan, random_plan, randomized
from torch import nn

import halp_fx

ANGLES = torch.linspace(0.1, 2.0, 42, dtype=torch.float64).view(7, 6)


def turned(x, width):
    """`x` of (batch, heads, tokens, 6 positions): the first `width` of them are turned."""
    x, rest = x[..., :width], x[..., width:]
    swapped = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return torch.cat((x * ANGLES[:, :width].cos() + swapped * ANGLES[:, :width].sin(), rest), -1)


def attention(m, x):
    x = m.embed(x)
    q, k, v = (y.unflatten(-1, (m.heads, -1)).transpose(1, 2) for y in m.qkv(x).chunk(3, -1))
    q, k = (turned(y, m.width) for y in (q, k))
    mixed = (q @ k.transpose(2, 3)).softmax(-1) @ v
    return m.head(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("width", [6, 4])
def test_rotary_embeddings_of_all_positions(width):
    """Whole heads go, whether the embedding leaves positions as they are or none."""
    torch.manual_seed(0)
    layers = {"embed": nn.Linear(3, 16), "qkv": nn.Linear(16, 72), "head": nn.Linear(24, 5)}
    model, x = randomized(Net(attention, **layers)).eval(), torch.randn(2, 7, 3, dtype=torch.float64)
    model.heads, model.width = 4, width
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"embed": 16, "qkv": 4}
    equals_twin_closely(model, half_plan(coupling), x, coupling)
    assert_equals_twin(model, half_plan(coupling), x, coupling)


def test_rotary_embeddings_whose_positions_go():
    """Frequencies that the network has go with the positions, in all heads."""

    def forward(m, x):
        q, k, v = (y.unflatten(-1, (4, 6)).transpose(1, 2) for y in m.qkv(x).chunk(3, -1))
        q, k = (torch.cat((y[..., : len(m.scales)] * m.scales, y[..., len(m.scales) :]), -1) for y in (q, k))
        return m.head((q @ k.transpose(2, 3)).softmax(-1) @ v).mean(1)

    torch.manual_seed(0)
    model = Net(forward, qkv=nn.Linear(3, 72), head=nn.Linear(6, 5))
    model.register_buffer("scales", torch.linspace(0.5, 2, 6))
    model, x = randomized(model).eval(), torch.randn(2, 7, 3, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)


LEFT_OUT = {
    "in front": lambda m, x: torch.cat((m.a(x)[:, :0], m.a(x), m.b(x)), 1),
    "between": lambda m, x: torch.cat((m.b(x), m.a(x)[:, 3:3], m.a(x)), 1),
    "of several": lambda m, x: torch.cat((m.a(x)[:, 7:], m.b(x)[:, 7:], m.a(x)), 1),
    "split": lambda m, x: torch.cat((*m.a(x).split([7, 0], 1), m.b(x)), 1),
    "nothing at all": lambda m, x: m.a(x) + torch.cat((m.a(x)[:, :0], m.b(x)[:, :0]), 1).sum(1, keepdim=True),
    "of the old kind": lambda m, x: torch.cat((torch.empty(0, dtype=x.dtype), m.a(x) + m.b(x)), 1),
    "made": lambda m, x: torch.cat((x.new_zeros(2, 0, m.a(x).shape[-1]), m.a(x), m.b(x)), 1),
    "no images": lambda m, x: torch.cat((m.b(x)[:0], m.a(x)), 0),
    "channels": lambda m, x: torch.cat((m.a(x)[..., :0], m.a(x), m.b(x)), -1)[..., : m.last.in_features],
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_tokens_that_are_left_out(name):
    def forward(m, x):
        return m.last(LEFT_OUT[name](m, x))

    torch.manual_seed(0)
    wide = 24 if name == "channels" else 12
    layers = {"a": nn.Linear(3, 12), "b": nn.Linear(3, 12), "last": nn.Linear(wide, 5)}
    model, x = randomized(Net(forward, **layers)).eval(), torch.randn(2, 7, 3, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.size for g in coupling.prunable} == {12}
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)


def test_a_piece_that_a_narrower_network_fills_stays():
    """With its end given from behind, what the piece holds depends on the width."""

    def forward(m, x):
        y = m.a(x)
        return m.last(torch.cat((y, y[..., 4:-8]), -1))

    torch.manual_seed(0)
    model, x = randomized(Net(forward, a=nn.Linear(3, 12), last=nn.Linear(12, 5))).eval(), torch.randn(2, 3).double()
    coupling = halp_fx.channel_groups(model, x)
    for plan in (half_plan(coupling), random_plan(coupling, 1)):
        equals_twin_closely(model, plan, x, coupling)
