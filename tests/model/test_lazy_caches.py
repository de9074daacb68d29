"""What a first forward makes and keeps, where the network was coupled before it."""

from __future__ import annotations

import pytest
import torch
from oracle import half_plan, randomized
from sweeping.checking import difference
from torch import nn

import halp_fx


class Lazy(nn.Module):
    """Makes its grid in the first forward, and keeps it: in an attribute that is None until then, in one that is not
    there or is its class's, in a buffer, or beside what it is for; or keeps a state from one forward to the next."""

    table = torch.empty(0)

    def __init__(self, kept):
        super().__init__()
        self.kept = kept
        if kept == "buffer":
            self.register_buffer("grid", None)
        elif kept not in ("missing", "class"):
            self.grid = None
        self.sides = None
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(10, 2, 1)

    def forward(self, x):
        y = self.a(x).relu()
        if self.kept == "state":
            y = y if self.grid is None else y + 0 * self.grid.mean(0)
            self.grid = y.detach()
        y = self.b(y).relu()
        return self.c(torch.cat([y, self.given(x)], 1)).mean((2, 3))

    def given(self, x):
        if self.kept == "state":
            return x[:, :2]
        if self.kept != "class":
            return self.made(x)
        if self.sides != x.shape[2:]:  # As the heads of YOLO.
            self.table, self.sides = self.made(x)[:1], x.shape[2:]
            self.grid = None
        return self.table.expand(len(x), -1, -1, -1)

    def made(self, x):
        if getattr(self, "grid", None) is None:
            sides = [torch.linspace(0, 1, n, dtype=x.dtype) for n in x.shape[2:]]
            grid = torch.stack(torch.meshgrid(*sides, indexing="ij"))[None]
            self.grid = (grid, x.shape[2:]) if self.kept == "tuple" else grid
        return (self.grid[0] if self.kept == "tuple" else self.grid).expand(len(x), -1, -1, -1)


@pytest.mark.parametrize("kept", ["None", "missing", "class", "buffer", "tuple", "state"])
def test_what_the_forward_keeps_after_the_network_was_coupled(kept):
    torch.manual_seed(0)
    model, x = randomized(Lazy(kept)).eval(), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    model(x)
    grid = model.grid
    small = halp_fx.rewrite(model, plan := half_plan(coupling), x, coupling=coupling)
    assert model.grid is grid
    assert difference(small(x), halp_fx.zero(model, plan, x, coupling=coupling)(x)) < 1e-9

    model = randomized(Lazy(kept)).float().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    pruner = halp_fx.Pruner(model, 0.5, x.float(), optimizer=optimizer, latency="macs", steps=2, interval=2)
    for _ in range(4):
        nn.functional.cross_entropy(model(torch.rand(4, 3, 6, 6)), torch.tensor([0, 1, 0, 1])).backward()
        pruner.step()
        optimizer.step()
    pruner.finish()
    assert model.halp.met
    model(torch.rand(4, 3, 6, 6))
