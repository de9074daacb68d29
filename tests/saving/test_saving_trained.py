"""What a Pruner cut in place is saved as what `prune` returns, also half way, and so are its moving averages."""

from __future__ import annotations

import pytest
import torch
from test_pruner import CALL, batches, sgd, train
from test_rebind import X, network
from test_saving import assert_same

import halp_fx
from halp_fx import CheckpointError


@pytest.mark.parametrize("mode", ["shrink", "mask"])
def test_a_network_that_was_pruned_in_place(mode, tmp_path):
    model = network().train()
    optimizer = sgd(model)
    ema = torch.optim.swa_utils.AveragedModel(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, averages=[ema], mode=mode, **CALL)
    path = tmp_path / "small.safetensors"
    with pytest.raises(CheckpointError, match="does not come from"):
        halp_fx.save(model, path)
    train(model, optimizer, pruner, batches(5))
    if mode == "shrink":
        halp_fx.save(model, path)
        assert_same(model, halp_fx.load(path, network), X)
    train(model, optimizer, pruner, batches(8, seed=2))
    pruner.finish()
    halp_fx.save(model, path)
    back = halp_fx.load(path, network)
    assert_same(model, back, X)
    assert back.halp == model.halp
    halp_fx.save(ema.module, path)
    assert_same(ema.module, halp_fx.load(path, network), X)
    with pytest.raises(RuntimeError, match=r"halp_fx\.load"):
        model.load_state_dict(network().state_dict())


def test_a_budget_that_was_met(tmp_path):
    model = network().train()
    halp_fx.Pruner(model, 1.0, X[:1], **CALL).finish()
    halp_fx.save(model, tmp_path / "same")
    assert_same(model, halp_fx.load(tmp_path / "same", network), X)
