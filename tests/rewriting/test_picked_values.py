"""Values that are picked by a condition, and what is made with their number."""

import math

import pytest
import torch
from oracle import Net, half_plan, randomized
from test_bad_models import image
from test_values import assert_equal_values
from torch import nn
from torch.nn import functional as F

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


def heads_of(tokens, s):
    """Attention of two heads, as an attribute has it that no size leads to."""
    b, n, c = tokens.shape
    q, k, v = s.qkv(tokens).reshape(b, n, 3, s.heads, c // s.heads).permute(2, 0, 3, 1, 4)
    return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1)


def scaled(tokens, s):
    return s.qkv(tokens) / math.sqrt(tokens.shape[-1])


def in_two_parts(tokens, s):
    tokens = s.qkv(tokens)
    return tokens.view(*tokens.shape[:2], 2, -1).sum(2)


BEHIND = {"heads": heads_of, "scaled": scaled, "in two parts": in_two_parts}
PICKED = {
    "input": lambda s, x, y: y[:, (x.mean((0, 1)).flatten() > 0).nonzero()[:, 0]],
    "features": lambda s, x, y: y[:, (s.score(y)[0, :, 0] > 0).nonzero()[:, 0]],
    "mask": lambda s, x, y: y[:, s.score(y)[0, :, 0] > 0],
    "written": lambda s, x, y: torch.zeros_like(y).index_put((x.mean(1).flatten(1) > 0,), y[x.mean(1).flatten(1) > 0]),
}


@pytest.mark.parametrize("how", BEHIND)
@pytest.mark.parametrize("picked", PICKED)
def test_what_is_behind_values_that_were_picked_is_compared(picked, how):
    """Only how many there are may differ: two heads that were pruned to one were cut into two, and nobody saw it."""

    def forward(s, x):
        y = s.a(x).flatten(2).transpose(1, 2)
        return s.b(BEHIND[how](PICKED[picked](s, x, y), s)).mean(1)

    layers = {"qkv": nn.Linear(8, 24 if how == "heads" else 8), "b": nn.Linear(4 if how == "in two parts" else 8, 4)}
    if picked in ("features", "mask"):
        layers["score"] = nn.Linear(8, 1)
    model = randomized(Net(forward, a=nn.Conv2d(3, 8, 1), **layers))
    model.heads, inputs = 2, image()[:1]
    coupling = halp_fx.channel_groups(model, inputs)
    assert coupling.prunable
    assert_equal_values(model, inputs, coupling)


def test_a_mean_over_what_was_picked_divides_by_how_much_it_is():
    def forward(s, x):
        y = s.a(x).flatten(2).transpose(1, 2)[0]
        y = y[s.score(y)[:, 0] > level]
        counts.append(len(y))
        return s.b(y.sum(0) / max(len(y), 1)) + s.b(y / math.sqrt(len(y) + 0.0)).flatten().sum()

    model = randomized(Net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 4), score=nn.Linear(8, 1)))
    inputs, level, counts = image()[:1], 0.0, []
    with torch.no_grad():
        level = float(model.score(model.a(inputs).flatten(2).transpose(1, 2)).mean()) * 0.6
    coupling = halp_fx.channel_groups(model, inputs)
    assert {g.name for g in coupling.prunable} == {"a"}
    assert_equal_values(model, inputs, coupling)
    assert len(set(counts)) > 1


def test_sizes_and_numbers_that_are_values_of_what_was_picked():
    """Maps of boxes, written into a table of as many and resized to each box (Keypoint R-CNN)."""

    def forward(s, x):
        x = s.a(x).relu()
        scores = s.c(x)[0, 0].flatten()
        found = (scores > level).nonzero()[:, 0]
        rows = x.flatten(2)[0].T[found]
        maps = rows.new_zeros(len(found), rows.shape[1], 1, 1)
        maps[scores[found] > 0] = rows[scores[found] > 0][..., None, None]
        total = rows.new_zeros(1, rows.shape[1])
        runs.append([])
        for i in range(len(found)):
            size = int((4 * scores[found][i].abs()).ceil()) + 1
            runs[-1].append(size)
            total = total + F.interpolate(maps[i : i + 1], size=(size, size))[..., 0, 0] / size
        return s.b(total)

    model = randomized(Net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 4), c=nn.Conv2d(8, 1, 1)))
    inputs, level, runs = image()[:1], 0.0, []
    with torch.no_grad():
        level = float(model.c(model.a(inputs).relu()).mean())
    coupling = halp_fx.channel_groups(model, inputs)
    assert {g.name for g in coupling.prunable} == {"a"}, coupling.frozen
    plan = half_plan(coupling)
    small, twin = (make(model, plan, inputs, coupling=coupling).eval() for make in (halp_fx.rewrite, halp_fx.zero))
    with torch.no_grad():
        torch.testing.assert_close(small(inputs), twin(inputs))
    assert runs[-1] != runs[0]
