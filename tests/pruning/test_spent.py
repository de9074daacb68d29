"""Steps that leave nothing that may go: every group went with a branch, or has a single channel left."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx import InfeasibleError

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = [(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)), torch.arange(8) % 5) for i in range(2)]


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Conv2d(width, 2 * width, 3, padding=1), nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x):
        return x + self.b(self.a(x).relu())


class Net(nn.Module):
    """All groups lie in branches, if the stem is to stay."""

    def __init__(self, blocks=1):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 5)
        self.blocks = nn.Sequential(*[Block(8) for _ in range(blocks)])

    def forward(self, x):
        return self.head(self.blocks(self.stem(x))).mean((2, 3))


def net(blocks=1):
    torch.manual_seed(0)
    return Net(blocks)


CALL = {"latency": "macs", "data": DATA, "ignore": ["stem"], "progress": False}
BARE = 3 * 8 * 9 * 64 + 8 * 5 * 25 * 16, 3 * 8 * 9 * 64 + 8 * 5 * 25 * 16 + 2 * 8 * 16 * 9 * 64
"""MACs without the block, and with it."""


def test_the_network_without_its_branches_is_the_answer():
    model, share = net(), BARE[0] / BARE[1]
    small = halp_fx.prune(model, 1.05 * share, X, **CALL)
    assert small.halp.dropped == ("blocks.0",)
    assert small.halp.measured == pytest.approx(share * small.halp.dense)
    assert small.halp.met
    assert "dropped" in small.halp.summary()
    torch.testing.assert_close(small(X), halp_fx.zero(model, small.halp.plan, X)(X))


@pytest.mark.parametrize("steps", [None, 1, 3])
def test_a_budget_below_it_is_out_of_reach(steps):
    with pytest.raises(InfeasibleError, match=r"the smallest .* takes .* of dense") as refused:
        halp_fx.prune(net(), 0.9 * BARE[0] / BARE[1], X, steps=steps, **CALL)
    assert refused.value.minimum == pytest.approx(BARE[0])


def test_no_branch_may_go_and_every_group_has_one_channel():
    with pytest.raises(InfeasibleError, match=r"Even with one channel in each group it would take"):
        halp_fx.prune(net(2), 0.1, X, branches=False, **CALL)


def test_further_budgets_are_refused_and_those_before_stay():
    share = BARE[0] / BARE[1]
    curve = halp_fx.pareto(net(), [0.9, 1.05 * share, 0.9 * share], X, **CALL)
    assert len(curve.points) == 2
    assert len(curve.refused) == 1


@pytest.mark.parametrize("near", [1.05, 0.9])
def test_training_between_goes_on_to_the_end(near):
    """Whatever is trained on the way, nothing is cut any more: the result, or the reason."""
    trained = []
    call = {**CALL, "steps": 4, "train_between": trained.append}
    budget = near * BARE[0] / BARE[1]
    if near > 1:
        assert halp_fx.prune(net(), budget, X, **call).halp.met
    else:
        with pytest.raises(InfeasibleError):
            halp_fx.prune(net(), budget, X, **call)


def test_a_training_loop_goes_on_to_the_end():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    call = {"latency": "macs", "ignore": ["stem"], "steps": 4, "interval": 1, "branches": True}
    pruner = halp_fx.Pruner(model, 1.05 * BARE[0] / BARE[1], X, optimizer=optimizer, **call)
    for images, labels in DATA * 4:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        pruner.step()
        optimizer.step()
    pruner.finish()
    assert model.halp.dropped == ("blocks.0",)
    assert model.halp.met
