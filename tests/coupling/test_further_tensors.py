"""Operators of several tensors: what lies in the further ones shrinks with what they are met by, or stays."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, half_plan, randomized, relative_error
from torch import nn
from torch.nn import functional as F

import halp_fx


def warped(s, x):
    """Sampled where a layer says."""
    return F.grid_sample(x, s.flow(x).tanh().permute(0, 2, 3, 1), align_corners=False)


def placed(s, x):
    """Sampled at places that lie along the channels of a layer."""
    grid = s.flow(x).tanh().flatten(2).unflatten(2, (18, 2))
    return s.over(F.grid_sample(x, grid, align_corners=False).transpose(1, 2)).transpose(1, 2)


def alike(s, x):
    """As large as a result of another layer."""
    return x.clone().resize_as_(s.flow(x))


def weighed(s, x):
    """A sum of rows, with weights that a layer gives."""
    rows = torch.arange(8).expand(len(x), -1)
    bags = F.embedding_bag(rows, s.rows, per_sample_weights=s.flow(x).mean((2, 3)), mode="sum")
    return x * bags[:, :, None, None]


def of_images(s, x):
    """Statistics of a batch in which the images are channels."""
    rows = x.flatten(0, 1)[:, None]
    return F.batch_norm(rows, None, None, training=True).unflatten(0, (len(x), -1))[:, :, 0] * x


def located(s, x):
    """Where the largest are, as numbers, among rows that lie along the channels."""
    values, places = F.adaptive_max_pool2d(x.permute(0, 2, 1, 3), (None, 1), return_indices=True)
    return x * (values + places.to(x.dtype)).permute(0, 2, 1, 3)


def statistics(norm):
    """A norm whose statistics the forward reads."""

    def function(s, x):
        y, mean, deviation = norm(x)
        return y * mean.sum() + deviation.sum()

    return function


def middle(s, x):
    """The median of all."""
    return x * x.nanmedian()


CASES = {
    "a flow of two channels": (warped, {"flow": nn.Conv2d(8, 2, 1)}, {"a": 8}),
    "places along channels": (placed, {"flow": nn.Conv2d(8, 6, 1), "over": nn.Conv2d(6, 6, 1)}, {"a": 8, "flow": 6}),
    "memory as large as another": (alike, {"flow": nn.Conv2d(8, 8, 1)}, {"a": 8}),
    "weights per sample": (weighed, {"flow": nn.Conv2d(8, 8, 1), "rows": nn.Parameter(torch.randn(8, 8))}, {"a": 8}),
    "statistics over parts in the batch": (of_images, {}, {"a": 8}),
    "statistics of layers": (statistics(lambda x: torch.native_layer_norm(x, x.shape[1:], None, None, 1e-5)), {}, {}),
    "statistics of groups": (
        statistics(lambda x: torch.native_group_norm(x, None, None, len(x), x.shape[1], 36, 2, 1e-5)),
        {},
        {},
    ),
    "statistics of batches": (
        statistics(lambda x: torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)),
        {},
        {},
    ),
    "median of all": (middle, {}, {}),
    "places of the largest": (located, {}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_equals_its_twin_or_stays(name):
    function, layers, groups = CASES[name]
    torch.manual_seed(0)
    model = Net(lambda s, x: s.c(function(s, s.a(x))), a=nn.Conv2d(3, 8, 1), c=nn.Conv2d(8, 2, 1), **layers)
    randomized(model).eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == groups, coupling.frozen
    plan = half_plan(coupling)
    small, twin = (f(model, plan, x, coupling=coupling) for f in (halp_fx.rewrite, halp_fx.zero))
    with torch.no_grad():
        assert relative_error(small(x), twin(x)) <= 1e-9


def across(kind, state=False, **given):
    """A layer makes steps of a sequence, or its images, in dimension 0; and a recurrent layer follows."""

    def forward(s, x):
        rows, last = s.r(s.a(x.movedim(0, -1)).movedim(-1, 0))
        last = last[0] if isinstance(last, tuple) else last
        return s.c(last.movedim(1, -1) if state else rows.movedim(0, -1))

    return Net(forward, a=nn.Linear(3, 8), r=kind(2, 2, **given), c=nn.Linear(8, 2))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("state", [False, True])
def test_recurrent_layers_where_channels_are_no_features(kind, state):
    """Steps of a sequence stay; of images that channels are laid into, any may go."""
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    coupling = halp_fx.channel_groups(randomized(across(kind)).eval(), x)
    assert "mixes what lies along this axis" in coupling.frozen["a"]
    model = randomized(across(kind, state, batch_first=True)).eval()
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"a": 8}, coupling.frozen
    plan = half_plan(coupling)
    small, twin = (f(model, plan, x, coupling=coupling) for f in (halp_fx.rewrite, halp_fx.zero))
    with torch.no_grad():
        assert relative_error(small(x), twin(x)) <= 1e-9


@pytest.mark.parametrize("given", [False, True])
def test_cell_that_compares_its_width_with_a_state(given):
    """One step of an `RNNCell`: nothing but a check couples what it makes with the state that it is given."""
    layers = {"a": nn.Linear(3, 8), "b": nn.Linear(3, 6), "r": nn.RNNCell(8, 6), "c": nn.Linear(6, 2)}
    model = randomized(Net(lambda s, x: s.c(s.r(s.a(x), s.b(x) if given else None)), **layers)).eval()
    x = torch.randn(4, 3, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert "a" in {g.name for g in coupling.prunable}
    plan = half_plan(coupling)
    small, twin = (f(model, plan, x, coupling=coupling) for f in (halp_fx.rewrite, halp_fx.zero))
    with torch.no_grad():
        assert relative_error(small(x), twin(x)) <= 1e-9
