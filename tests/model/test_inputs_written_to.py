"""A forward that writes to its inputs, or puts others in their place, leaves the caller's as they were."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import halp_fx
from halp_fx.latency.runtimes import network_call


class Streams(nn.Module):
    """Replaces the streams in the list that it is given (SlowFast)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Linear(8, 3)

    def forward(self, given):
        given[0] = self.a(given[0]).relu()
        given[0] = self.b(given[0]).relu()
        return self.head(given[0].mean((2, 3)))


class Named(Streams):
    def forward(self, given):
        given["x"] = self.b(self.a(given["x"]).relu()).relu()
        return self.head(given["x"].mean((2, 3)))


class InPlace(Streams):
    """Scales the tensor itself."""

    def forward(self, given):
        return self.head(self.b(self.a(given.mul_(0.5)).relu()).relu().mean((2, 3)))


KINDS = {
    "list": (Streams, lambda x: [x]),
    "dict": (Named, lambda x: {"x": x}),
    "tensor": (InPlace, lambda x: x),
}


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def unchanged(now, before):
    pairs = zip(tree_leaves(now), tree_leaves(before), strict=True)
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_networks_that_change_their_inputs_are_timed(kind):
    make, of = KINDS[kind]
    model, inputs = make().eval(), of(torch.randn(2, 3, 12, 12))
    before = copy.deepcopy(inputs)
    call = network_call(model, (inputs,), {}, "eager")
    with torch.no_grad():
        first = call()
        assert kind == "tensor" or torch.equal(call(), first)
    assert unchanged(inputs, before)


@pytest.mark.parametrize("how", ["loss", "loss_fn", "neither"])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_as_they_were(kind, how):
    """And every use of a batch begins with what the caller passed: scores are those of the same batches again."""
    make, of = KINDS[kind]
    torch.manual_seed(0)
    model = make().eval()
    data = [((of(torch.randn(6, 3, 12, 12)),), torch.randint(3, (6,))) for _ in range(2)]
    given = {}
    if how == "loss":
        data, given = [(inputs[0], target) for inputs, target in data], {"loss": loss}
    elif how == "loss_fn":
        given = {"loss_fn": F.cross_entropy}
    before = copy.deepcopy(data)
    found = []
    for _ in range(2):
        small = halp_fx.prune(model, 0.6, (of(torch.randn(1, 3, 12, 12)),), latency="macs", data=data, **given)
        found.append(small.state_dict())
        assert unchanged(data, before)
    assert found[0]["a.weight"].shape != model.a.weight.shape
    assert unchanged(found[1], found[0])
