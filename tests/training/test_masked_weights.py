"""Weights that are more than one layer's own, behind masks: tied ones, and those that a forward computes."""

from __future__ import annotations

import pytest
import torch
from test_pruner import CALL, WAYS, adam, batches, sgd, train
from test_rebind import X, network
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import halp_fx
from halp_fx import TrainingError

WORDS = torch.arange(24).reshape(4, 6) % 20

READ = {
    "a layer": lambda table, h: F.linear(h, table),
    "a product": lambda table, h: h @ table.T,
    "a sum": lambda table, h: torch.einsum("btc,vc->btv", h, table),
}


class Words(nn.Module):
    """What embeds its words also reads the stream in the end."""

    def __init__(self, read):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.read = nn.Embedding(20, 16), READ[read]
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, words):
        h = self.table(words)
        return self.read(self.table.weight, h + self.narrow(torch.relu(self.wide(h)))).mean(1)


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("way", ["mask", "soft"])
def test_tied_weights_are_masked_where_they_are_read(way, read):
    """Soft masks hide what reads a channel: of an embedding that is tied to the head, too. It was trained with channels
    that the cut then took away."""
    model = Words(read).double().train()
    optimizer = adam(model)
    pruner = halp_fx.Pruner(model, 0.5, WORDS, optimizer=optimizer, **CALL | WAYS[way])
    for _ in range(13):
        optimizer.zero_grad()
        F.cross_entropy(model(WORDS), torch.arange(4)).backward()
        pruner.step()
        optimizer.step()
    before = model(WORDS).detach()
    pruner.finish()
    torch.testing.assert_close(model(WORDS), before, rtol=1e-9, atol=1e-12)
    if way == "soft":
        assert model.table.embedding_dim < 16


class Unit(nn.Module):
    """Weights of length one for each channel, as some write it."""

    def forward(self, weight):
        return weight / weight.square().sum((1, 2, 3), keepdim=True).sqrt()


COMPUTED = {
    "weight norm": (parametrizations.weight_norm, ["mask"]),
    "weight norm, as it was": (nn.utils.weight_norm, ["mask"]),
    "unit": (lambda layer: parametrize.register_parametrization(layer, "weight", Unit(), unsafe=True), ["mask"]),
    "weight norm of what is read": (lambda layer: parametrizations.weight_norm(layer, dim=1), ["mask", "soft"]),
    "spectral norm": (parametrizations.spectral_norm, []),
}
"""What makes it of a layer, and the masks that it cannot stand."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", COMPUTED)
def test_weights_that_would_not_be_finite_behind_masks_are_refused(kind, way):
    """The norm of zeros, and a division by it: every gradient was NaN, and the learning rate was blamed."""
    model = network()
    made, refused = COMPUTED[kind]
    made(model[3].conv1)
    model.train()
    optimizer = sgd(model)
    if way in refused:
        with pytest.raises(TrainingError, match=r"computes of .*3\.conv1.* is not finite .*use mode='shrink'"):
            halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL | WAYS[way])
        return
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL | WAYS[way])
    train(model, optimizer, pruner, batches(13))
    before = model.eval()(X).detach()
    assert pruner.finish().halp.met
    if kind != "spectral norm":  # Its estimate takes another step in each evaluation of the weight.
        torch.testing.assert_close(model(X), before, rtol=1e-9, atol=1e-12)
