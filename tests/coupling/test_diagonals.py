"""A diagonal takes one element of each row: which one follows the columns that are left."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, equals_twin_closely, random_plan, randomized, relative_error
from torch import nn
from torch.nn import functional as F

import halp_fx


def gram(h, other):
    return torch.einsum("bcn,bdn->bcd", h.flatten(2), other.flatten(2))


def added(s, h):
    weight = s.mix.weight[..., 0].clone()
    weight.diagonal().add_(1.0)
    return F.conv1d(h, weight[..., None]).mean(2)


def written(s, h):
    weight = torch.zeros_like(s.mix.weight[..., 0])
    weight.diagonal().fill_(1.0)
    return F.conv1d(h, (weight + s.mix.weight[..., 0])[..., None]).mean(2)


def of_a_weight(s, h):
    return (h * s.mix.weight[..., 0].diagonal()[:, None]).mean(2)


def of_products(s, h):
    return torch.einsum("bcc->bc", gram(h, s.mix(h)))


def without_it(s, h):
    products = gram(h, s.mix(h))
    return products.pow(2).sum(2) - products.diagonal(0, 1, 2).pow(2)


def of_space(s, h):
    return torch.diagonal(h.unflatten(2, (4, 4)), 1, 2, 3).mean(-1)


def of_space_negative(s, h):
    return torch.diagonal(h.unflatten(2, (4, 4)), dim1=-1, dim2=-2).mean(-1)


def channels_by_places(s, h):
    return torch.diagonal(h[..., :8], 0, 1, 2)


def places_by_channels(s, h):
    return torch.diagonal(h[..., 1:9].transpose(1, 2), 0, 1, 2)


def beside_the_main_one(s, h):
    return F.pad(gram(h, s.mix(h)).diagonal(2, 1, 2), (0, 2))


FREE = [added, written, of_a_weight, of_products, without_it, of_space, of_space_negative]
FIXED = [channels_by_places, places_by_channels, beside_the_main_one]


def network(function):
    torch.manual_seed(0)
    model = Net(lambda s, x: s.head(function(s, s.stem(x).relu())), stem=nn.Conv1d(3, 8, 1), mix=nn.Conv1d(8, 8, 1))
    model.head = nn.Linear(8, 4)
    return randomized(model).eval(), torch.randn(2, 3, 16, dtype=torch.float64)


@pytest.mark.parametrize("function", FREE, ids=lambda f: f.__name__)
def test_rows_go_with_the_columns_that_they_meet(function):
    model, x = network(function)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable}["stem"] == 8
    for seed in range(3):
        _, twin = equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
        assert relative_error(twin(x), model(x)) > 1e-3


@pytest.mark.parametrize("function", FIXED, ids=lambda f: f.__name__)
def test_without_some_the_others_would_meet_others(function):
    model, x = network(function)
    assert "a row and a column meet" in halp_fx.channel_groups(model, x).frozen["stem"]
