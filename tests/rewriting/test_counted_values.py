"""How much a forward finds by values, and goes by: no value is read into Python, and yet they decide."""

from __future__ import annotations

import pytest
import torch
from oracle import half_plan, randomized
from test_bad_models import unchanged
from torch import nn

import halp_fx


def _rows(self, h, found):
    for row in h[found]:
        h = h + self.deep(row)
    return h


def _positions(self, h, found):
    for i in found.nonzero().unbind():
        h = h + self.deep(h[i[0]])
    return h


def _experts(self, h, found):
    """A mixture of experts, each for the rows that are sent to it, and none for an expert without rows."""
    out = torch.zeros_like(h)
    for expert, rows in ((self.b, torch.where(~found)[0]), (self.deep, torch.where(found)[0])):
        if rows.numel():
            out = out.index_add(0, rows, expert(h[rows]))
    return out


COUNTED = {
    "numel": lambda self, h, found: self.deep(h) if found.nonzero().numel() else h,
    "len": lambda self, h, found: self.deep(h) if len(found.unique()) > 1 else h,
    "size": lambda self, h, found: self.deep(h) if torch.where(found)[0].size(0) else h,
    "shape": lambda self, h, found: self.deep(h) if found.argwhere().shape > (0, 1) else h,
    "rows": _rows,
    "positions": _positions,
    "experts": _experts,
}


class Counting(nn.Module):
    """A layer that runs if anything is found."""

    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.deep, self.last = (nn.Linear(*sizes) for sizes in ((3, 8), (8, 8), (8, 8), (8, 2)))
        self.kind = kind

    def forward(self, x):
        h = self.b(self.a(x).relu()).relu()
        return self.last(COUNTED[self.kind](self, h, x[:, 0] > 0))


@pytest.mark.parametrize("kind", COUNTED)
def test_how_much_is_found_by_values_decides(kind):
    """No value is read into Python, but a size that depends on values, or there is nothing to go through."""
    model = randomized(Counting(kind))
    none, some = -torch.ones(4, 3, dtype=torch.float64), torch.tensor([[1.0, 2, 3], [-1, -2, -3]], dtype=torch.float64)
    with unchanged(model):
        coupling = halp_fx.channel_groups(model, none)
    assert coupling.prunable == ()
    assert "deep" in coupling.frozen["a"]
    assert "test_counted_values.py:" in coupling.frozen["a"]
    coupling = halp_fx.channel_groups(model, [none, some])
    assert "a" in {g.name for g in coupling.prunable}, coupling.frozen
    small = halp_fx.rewrite(model, half_plan(coupling), [none, some], coupling=coupling).eval()
    twin = halp_fx.zero(model, half_plan(coupling), [none, some], coupling=coupling).eval()
    with torch.no_grad():
        for inputs in (none, some, torch.cat([none, some, some])):
            torch.testing.assert_close(small(inputs), twin(inputs))
            assert not torch.allclose(small(inputs), model.eval()(inputs))
