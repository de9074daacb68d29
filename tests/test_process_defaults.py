"""What the caller sets for the whole process, `torch.set_default_dtype` and `torch.set_default_device`, is for tensors
of theirs: what comes out does not depend on it."""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from torch import nn

import halp_fx


@contextmanager
def defaults(dtype=torch.float32, device="cpu"):
    """A device without memory stands for any on which the model does not lie: tensors that are made there do not meet
    those of the model."""
    before = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(before[0])
        torch.set_default_device(before[1])


OTHERS = {
    "float64, another device": {"dtype": torch.float64, "device": "meta"},
    "bfloat16": {"dtype": torch.bfloat16},
}


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.norm, self.b = (
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x):
        return x + self.b(self.norm(self.a(x)).relu())


class Net(nn.Module):
    """Convolutions, residual branches, a concat and attention."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 16, 3, stride=2), nn.Sequential(Block(16), Block(16))
        self.side, self.qkv, self.proj = nn.Conv2d(16, 8, 1), nn.Linear(24, 72), nn.Linear(24, 24)
        self.heads, self.head = 4, nn.Linear(24, 5)

    def forward(self, x):
        x = self.blocks(self.stem(x))
        x = torch.cat([x, self.side(x).relu()], 1).flatten(2).transpose(1, 2)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return self.head((x + self.proj(y)).mean(1))


@pytest.fixture
def made():
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    batches = [(torch.rand(16, 3, 16, 16, generator=draw), torch.randint(5, (16,), generator=draw)) for _ in range(3)]
    return Net().eval(), torch.rand(2, 3, 16, 16, generator=draw), batches


def _rewritten(model, x, _):
    coupling = halp_fx.channel_groups(model, x)
    plan = {g.name: [*range(g.size // 2)] for g in coupling.prunable}
    return {**halp_fx.rewrite(model, plan, x).state_dict(), "zeroed": halp_fx.zero(model, plan, x)(x).detach()}


def _pruned(model, x, batches, **options):
    return halp_fx.prune(model, 0.5, x, data=batches, latency="macs", progress=False, **options).state_dict()


def _trained(model, x, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    pruner = halp_fx.Pruner(model, 0.5, x, optimizer=optimizer, latency="macs", steps=2, interval=2)
    for images, labels in [*batches, *batches]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        pruner.step()
        optimizer.step()
    pruner.finish()
    return model.state_dict()


CALLS = {
    "rewrite": _rewritten,
    "prune": _pruned,
    "prune without data": lambda model, x, _: _pruned(model, x, None),
    "heal": lambda model, x, batches: _pruned(model, x, batches, heal=4),
    "train": _trained,
}


@pytest.mark.parametrize("call", CALLS)
def test_what_comes_out_is_the_same(made, call):
    model, x, batches = made
    expected = CALLS[call](deepcopy(model), x, batches)
    for setting in OTHERS.values():
        with defaults(**setting):
            found = CALLS[call](deepcopy(model), x, batches)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].device == tensor.device
            assert torch.equal(found[name], tensor), (name, setting)


def test_under_autocast_weights_that_were_written_to_are_read(made):
    """Its cache has weights as they were when the context first met them."""
    model, x, batches = made
    with torch.autocast("cpu", torch.bfloat16):
        small = halp_fx.prune(model, 0.5, x, data=batches, latency="macs", heal=4, progress=False)
        with torch.no_grad():
            assert torch.equal(small(x), deepcopy(small)(x))
        model.requires_grad_(True)(x)  # The cache keeps weights that are trained.
        pruner = halp_fx.Pruner(
            model, 0.5, x, optimizer=torch.optim.SGD(model.parameters(), 0.01), latency="macs", steps=1
        )
        for images, labels in batches:
            nn.functional.cross_entropy(model(images), labels).backward()
            pruner.step()
        pruner.finish()
        with torch.no_grad():
            assert torch.equal(model(x), deepcopy(model)(x))
