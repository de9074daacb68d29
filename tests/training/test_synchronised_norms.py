"""Batch norms that wait for other processes, in work that one process does alone."""

from __future__ import annotations

import pytest
import torch
from test_pruner import CALL, Both, batches, sgd
from test_rebind import X, network
from torch import nn
from torch.nn import functional as F

import halp_fx


def synchronised(model):
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def test_they_refuse_a_cpu(job):
    with pytest.raises(ValueError, match="expected input tensor to be on GPU"):
        synchronised(network()).train()(X)


def test_a_network_is_coupled_in_both_modes(job):
    """`Both` has a layer that train mode alone reaches."""
    found = [halp_fx.channel_groups(model.train(), X[:2]) for model in (Both(), synchronised(Both()))]
    shapes = [[(g.name, g.size, sorted(str(m.axis) for m in g.members)) for g in c.groups] for c in found]
    assert shapes[0] == shapes[1]
    assert found[0].frozen == found[1].frozen


def test_a_pruner_cuts_them(job):
    model = synchronised(Both()).train()
    optimizer = sgd(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:2], optimizer=optimizer, **CALL | {"steps": 1, "interval": 2})
    for x, y in batches(2):
        optimizer.zero_grad()
        F.cross_entropy(model.eval()(x), y).backward()
        pruner.step()
    assert pruner.finish().halp.met
    assert isinstance(model.norm, nn.SyncBatchNorm)
    assert "forward" not in vars(model.norm)


def test_prune_estimates_them_again_by_itself(job):
    data = [x for x, _ in batches(4, size=16)]
    small = halp_fx.prune(synchronised(network()), 0.5, X[:1], data=data, latency="macs", round_to=1, progress=False)
    plain = halp_fx.rewrite(network(), small.halp.plan, X[:1])
    assert small.halp.met
    assert not torch.equal(small[1].running_mean, plain[1].running_mean)
