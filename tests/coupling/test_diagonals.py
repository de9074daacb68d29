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


def householder(s, h):
    v = s.mix.weight[0, :, 0] / s.mix.weight[0, :, 0].norm()
    return F.conv1d(h, (torch.eye(len(v), dtype=h.dtype) - 2 * torch.outer(v, v))[..., None]).mean(2)


def near_the_unit_matrix(s, h):
    weight = torch.eye(h.shape[1], dtype=h.dtype) + 0.1 * s.mix.weight[..., 0]
    return torch.einsum("oc,bcn->bon", weight, h).mean(2)


def without_itself(s, h):
    products = gram(h, h) - 1e3 * torch.eye(h.shape[1], dtype=h.dtype)
    return (products.softmax(-1) @ h).mean(2)


def whitened(s, h):
    """Newton's iteration for the root of the inverse (IterNorm)."""
    rows = h - h.mean(2, keepdim=True)
    unit = torch.eye(h.shape[1], dtype=h.dtype)
    cov = torch.baddbmm(unit.expand(len(h), -1, -1), rows, rows.transpose(1, 2), beta=1e-3, alpha=1 / 16)
    cov = cov / cov.diagonal(0, 1, 2).sum(1)[:, None, None]
    root = unit
    for _ in range(3):
        root = 1.5 * root - 0.5 * root @ root @ root @ cov
    return (root @ rows).cos().mean(2)


def penalised(s, h):
    weight = s.mix.weight[..., 0]
    loss = (weight @ weight.t() - torch.eye(weight.shape[0], dtype=h.dtype)).pow(2).sum()
    return s.mix(h).mean(2) * (1 + 1e-3 * loss)


def scaled(s, h):
    return (torch.diag(s.mix.weight[0, :, 0]) @ h).mean(2)


def scaled_by_image(s, h):
    return (torch.diag_embed(s.mix(h).mean(2).sigmoid()) @ h).mean(2)


UNITS = (
    *(householder, near_the_unit_matrix, without_itself, whitened, penalised),
    *(scaled, scaled_by_image),
)


@pytest.mark.parametrize("function", UNITS, ids=lambda f: f.__name__)
def test_unit_matrices_and_diagonal_ones(function):
    """Their rows go with the columns, and are as many as the channels that they meet."""
    torch.manual_seed(0)
    layers = {"first": nn.Conv1d(3, 8, 1), "mix": nn.Conv1d(8, 8, 1, bias=False), "last": nn.Linear(8, 4)}
    model = randomized(Net(lambda s, x: s.last(function(s, s.first(x))), **layers)).eval()
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert "first" not in coupling.frozen, coupling.frozen
    for seed in range(4):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)


def test_unit_matrices_of_a_number_that_is_no_width():
    """The identity of a rotation, and classes as rows: they stay as they are."""

    def turned(s, x):
        turn = s.turn(x.mean(2)).view(-1, 3, 3) + torch.eye(3, dtype=x.dtype)
        rows = torch.eye(4, dtype=x.dtype)[s.last(s.first(turn @ x).relu().mean(2)).argmax(1)]
        return s.more(rows)

    torch.manual_seed(0)
    layers = {"turn": nn.Linear(3, 9), "first": nn.Conv1d(3, 8, 1), "last": nn.Linear(8, 4), "more": nn.Linear(4, 2)}
    model = randomized(Net(turned, **layers)).eval()
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"first": 8}
