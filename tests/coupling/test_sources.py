"""Parameters that no layer makes and a layer reads: channels of a learnt image, of planes of features."""

from __future__ import annotations

import pytest
import torch
from oracle import (
    Net,
    equals_twin_closely,
    half_plan,
    random_plan,
    randomized,
    relative_error,
)
from torch import nn
from torch.nn import functional as F

import halp_fx


class Generator(nn.Module):
    """From a learnt image, styled by what a layer computes."""

    def __init__(self):
        super().__init__()
        self.image = nn.Parameter(torch.randn(1, 8, 4, 4))
        self.conv, self.style, self.last = nn.Conv2d(8, 12, 3, padding=1), nn.Linear(5, 24), nn.Conv2d(12, 3, 1)

    def forward(self, z):
        gain, offset = self.style(z)[:, :, None, None].chunk(2, 1)
        x = self.conv(self.image.expand(len(z), -1, -1, -1)).relu()
        return self.last(F.instance_norm(x) * gain + offset)


class Planes(nn.Module):
    """Features of a point, from three planes that are sampled where its projections lie, side by side or as a sum."""

    def __init__(self, joined):
        super().__init__()
        self.joined = joined
        self.planes = nn.ParameterList(nn.Parameter(torch.randn(1, 6, 5, 5)) for _ in range(3))
        self.first, self.last = nn.Linear(18 if joined else 6, 8), nn.Linear(8, 4)

    def forward(self, points):
        sides = points[None, None, :, [0, 1]], points[None, None, :, [0, 2]], points[None, None, :, [1, 2]]
        rows = [F.grid_sample(p, s, align_corners=False)[0, :, 0].mT for p, s in zip(self.planes, sides, strict=True)]
        return self.last(self.first(torch.cat(rows, -1) if self.joined else sum(rows)).relu())


class Scaled(nn.Module):
    """What is read along with the input stays with it."""

    def __init__(self):
        super().__init__()
        self.gain, self.first, self.last = nn.Parameter(torch.randn(5)), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.first(x * self.gain).relu())


CASES = {
    "learnt image": (Generator, 5, {"image": 8, "style": 12}),
    "planes": (lambda: Planes(True), 3, {"planes": 6, "planes:1": 6, "planes:2": 6, "first": 8}),
    "a sum of planes": (lambda: Planes(False), 3, {"planes": 6, "first": 8}),
    "scaled input": (Scaled, 5, {"first": 6}),
}


@pytest.mark.parametrize("name", CASES)
def test_groups_and_twin(name):
    kind, width, groups = CASES[name]
    torch.manual_seed(0)
    model, x = randomized(kind()).eval(), torch.rand(7, width, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == groups
    with torch.no_grad():
        for plan in (half_plan(coupling), random_plan(coupling, 1)):
            _, twin = equals_twin_closely(model, plan, x, coupling)
        assert relative_error(twin(x), model(x)) > 1e-3


@pytest.mark.parametrize("name", ["learnt image", "planes"])
@pytest.mark.parametrize("importance", ["magnitude", "fisher"])
def test_channels_that_nothing_reads_go_first(name, importance):
    kind, width, groups = CASES[name]
    torch.manual_seed(0)
    model = kind().eval()
    first = next(iter(groups))
    with torch.no_grad():
        parameter = next(p for n, p in model.named_parameters() if n.startswith(first))
        parameter[:, 1::2] *= 1e-3
    data = [(torch.rand(7, width), torch.randn(model(torch.rand(7, width)).shape)) for _ in range(2)]
    given = (
        {"data": data, "loss": lambda model, batch: F.mse_loss(model(batch[0]), batch[1])}
        if importance == "fisher"
        else {}
    )
    small = halp_fx.prune(
        model, 0.6, torch.rand(7, width), latency="params", importance=importance, progress=False, **given
    )
    kept = small.halp.plan[first]
    assert len(kept) < groups[first]
    assert sum(c % 2 for c in kept) in (0, len(kept) - groups[first] // 2)


class Added(nn.Module):
    """A kernel is added to a constant that is an attribute of the layer and no buffer (the diverse branches' identity),
    and a mask of as many channels runs beside the image (partial convolutions)."""

    def __init__(self, width=8):
        super().__init__()
        self.stem, self.weight = nn.Conv2d(3, width, 3), nn.Parameter(torch.randn(width, width, 1, 1))
        self.identity = torch.eye(width)[:, :, None, None]
        self.ones = torch.ones(6, width, 3, 3)
        self.conv, self.head = nn.Conv2d(width, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = F.conv2d(self.stem(x), self.weight + self.identity.to(self.weight))
        seen = F.conv2d((x > 0).to(x), self.ones.to(x))
        return self.head(self.conv(x) / (seen + 1))


def test_constants_that_are_attributes_shrink_as_buffers_do():
    torch.manual_seed(0)
    model, x = randomized(Added()).eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = {name: getattr(model, name) for name in ("identity", "ones")}
    values = {name: value.clone() for name, value in before.items()}
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"stem": 8, "weight": 8, "ones": 6}
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
    small = halp_fx.rewrite(model, half_plan(coupling), x, coupling=coupling)
    assert (small.identity.shape, small.ones.shape) == ((4, 4, 1, 1), (3, 4, 3, 3))
    assert all(getattr(model, name) is value and torch.equal(value, values[name]) for name, value in before.items())
    assert small.state_dict().keys() == model.state_dict().keys()


def test_values_of_a_constant_among_the_attributes_are_known():
    """The strides of a detector: the forward reads them without values, and decides nothing by them."""

    def forward(s, x):
        y = s.a(x).relu()
        rows = [y.new_full((4, 1), s.strides[i], dtype=y.dtype) for i in range(2)]
        return s.head((y * s.gains[:, None, None]).mean((2, 3))) * torch.cat(rows).mean()

    model = Net(forward, a=nn.Conv2d(3, 8, 1), head=nn.Linear(8, 4), unreached=nn.Linear(3, 3))
    model.strides, model.gains = torch.tensor([8.0, 16.0]), torch.rand(8)
    model, x = randomized(model).eval(), torch.randn(2, 3, 4, 4).double()
    model.gains = model.gains.double()
    coupling = halp_fx.channel_groups(model, x)
    assert coupling.traced.on_meta
    assert {g.name: g.size for g in coupling.prunable} == {"a": 8}
    equals_twin_closely(model, half_plan(coupling), x, coupling)
    small = halp_fx.rewrite(model, half_plan(coupling), x, coupling=coupling)
    assert small.gains.shape == (4,)
    assert small.strides.tolist() == [8.0, 16.0]


def test_a_constant_that_the_forward_decides_by_keeps_its_channels():
    def forward(s, x):
        y = s.a(x).relu()
        return s.head((y * s.gains[:, None, None]).mean((2, 3)) * (2 if s.gains.sum() > 3 else 1))

    model = Net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 3, 1), head=nn.Linear(8, 4))
    model.gains = torch.rand(8).double() + 1
    model = randomized(model).eval()
    coupling = halp_fx.channel_groups(model, torch.randn(2, 3, 4, 4).double())
    assert "a" not in {g.name for g in coupling.prunable}
    assert any("read into Python" in reason for reason in coupling.frozen.values())
