"""Values that are picked by a condition, and what is made with their number."""

import pytest
import torch
from oracle import Net, half_plan, randomized
from test_bad_models import image
from test_values import assert_equal_values
from torch import nn

import halp_fx


def written(rows, table):
    """Into a table of as many rows, through a view of it."""
    table[0, : rows.shape[0]] = rows
    return table


PADDED = {
    "zeros": lambda rows: written(rows, torch.zeros(1, rows.shape[0], 2, dtype=rows.dtype)),
    "zeros on the rows' device": lambda rows: written(
        rows, torch.zeros(1, rows.shape[0], 2, dtype=rows.dtype, device=rows.device)
    ),
    "new_zeros": lambda rows: written(rows, rows.new_zeros(1, rows.shape[0] + 3, 2)),
    "a view": lambda rows: written(rows, torch.zeros(2 * rows.shape[0], dtype=rows.dtype).view(1, -1, 2)),
    "expanded": lambda rows: rows + torch.zeros(1, 1, dtype=rows.dtype).expand(rows.shape[0], 2),
    "a mask": lambda rows: torch.zeros(1, rows.shape[0], dtype=rows.dtype, device=rows.device).select(0, 0).fill_(1),
}


@pytest.mark.parametrize("kind", PADDED)
def test_tables_that_are_as_long_as_values_picked(kind):
    """Key points, padded to as many as there are: what is made with that number is no more compared than they are."""

    def points(self, x):
        x = self.a(x).relu()
        found = (self.c(x)[0, 0] - level).gt(0).nonzero().to(x.dtype)
        counts.append(found.shape[0])
        return self.b(x).mean((2, 3)) + PADDED[kind](found).sum()

    model = randomized(Net(points, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1), c=nn.Conv2d(8, 1, 1)))
    inputs, level, counts = image(), 0.0, []
    with torch.no_grad():
        level = float(model.c(model.a(inputs).relu()).mean()) * 0.6
    coupling = halp_fx.channel_groups(model, inputs)
    assert {g.name for g in coupling.prunable} == {"a"}
    assert_equal_values(model, inputs, coupling)
    assert len(set(counts)) > 1


def test_a_wrong_view_behind_values_is_named():
    """It is not put down to how many rows were picked, though a view of these has another shape, too."""

    def points(self, x):
        x = self.a(x).relu()
        rows = (self.c(x)[0, 0] - level).gt(0).nonzero().to(x.dtype).view(-1, 2)
        counts.append(rows.shape[0])
        return x.view(len(x), 8, -1).mean(1).sum(1) + rows.sum()

    model = randomized(Net(points, a=nn.Conv2d(3, 8, 1), c=nn.Conv2d(8, 1, 1)))
    inputs, level, counts = image(), 0.0, []
    with torch.no_grad():
        level = float(model.c(model.a(inputs).relu()).mean()) * 0.6
    free = halp_fx.couple(halp_fx.trace(model, inputs))
    assert {g.name for g in free.prunable} == {"a"}
    with pytest.raises(halp_fx.RewriteError, match=r"view .* should give shape \(2, 4, 64\), but gave \(2, 8, 32\)"):
        halp_fx.rewrite(model, half_plan(free), inputs, coupling=free)
    assert len(set(counts)) > 1
