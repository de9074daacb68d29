"""Attributes that stand for widths at several places, as numbers, in a tensor that the forward makes of them, or beside
the sizes of another tensor."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from oracle import Net, assert_equals_twin, equals_twin_closely, half_plan, random_plan, randomized
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx.training.shrinking import shrink


def checked(model, x, sizes, frozen=()):
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == sizes
    assert set(frozen) <= coupling.frozen.keys()
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
    return coupling


class Gated(nn.Module):
    """As the WaveNets of WaveGlow and VITS: a tensor with the width says where gates begin."""

    def __init__(self, width, layers, cut):
        super().__init__()
        self.width, self.cut = width, cut
        self.inner = nn.ModuleList(nn.Conv1d(width, 2 * width, 3, padding=1) for _ in range(layers))
        self.outer = nn.ModuleList(nn.Conv1d(width, 2 * width if i else width, 1) for i in reversed(range(layers)))
        self.condition = nn.Conv1d(4, 2 * width * layers, 1)

    def forward(self, x):
        out, given = torch.zeros_like(x), self.condition(x.mean(1, keepdim=True).expand(-1, 4, -1))
        where = self.cut(self.width)
        for i, (inner, outer) in enumerate(zip(self.inner[:-1], self.outer[:-1], strict=True)):
            y = outer(self.gate(inner(x), given, i, where))
            x, out = x + y[:, : self.width], out + y[:, self.width :]
        return out + self.outer[-1](self.gate(self.inner[-1](x), given, len(self.inner) - 1, where))

    def gate(self, x, given, i, where):
        start = i * 2 * self.width
        both = x + given[:, start : start + 2 * self.width]
        return both[:, : where[0]].tanh() * both[:, where[0] :].sigmoid()


CUTS = {
    "list": lambda n: [n],
    "tensor": lambda n: torch.IntTensor([n]),
    "tensor of two": lambda n: torch.tensor([n, 2 * n]),
    "number": lambda n: torch.tensor(n)[None],
    "long": lambda n: torch.IntTensor([n]).long(),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("layers", [2, 3])
def test_a_width_in_a_tensor_says_where_to_cut(cut, layers):
    torch.manual_seed(0)
    model = Net(lambda s, x: s.head(s.gated(s.stem(x)).mean(2)), stem=nn.Conv1d(3, 8, 1))
    model.gated, model.head = Gated(8, layers, CUTS[cut]), nn.Linear(8, 4)
    checked(randomized(model).eval(), torch.randn(2, 3, 6, dtype=torch.float64), {"stem": 8})


COMPUTES = {
    "scale": lambda h, n: h * n,
    "element": lambda h, n: h / n[0],
    "number": lambda h, n: h * int(n[0]),
    "branch": lambda h, n: h.sin() if n[0] > 4 else h,
    "sum": lambda h, n: h + (n + 1).sum(),
    "written": lambda h, n: h + n.double().mul_(2),
}


@pytest.mark.parametrize("name", COMPUTES)
def test_a_width_in_a_tensor_that_computes_freezes(name):
    torch.manual_seed(0)
    model = Net(lambda s, x: s.head(COMPUTES[name](s.stem(x).view(2, s.width, 6), torch.tensor([s.width])).mean(2)))
    model.stem, model.head, model.width = nn.Conv1d(3, 8, 1), nn.Linear(8, 4), 8
    coupling = halp_fx.channel_groups(randomized(model).eval(), torch.randn(2, 3, 6, dtype=torch.float64))
    assert "stem" in coupling.frozen


class Turned(nn.Module):
    """One bank of filters, turned four times: rows by an attribute, columns by the tensor before."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.outputs, self.weight = outputs, nn.Parameter(torch.randn(outputs, inputs, 4, 3, 3))

    def forward(self, x):
        n, c, turns, h, w = x.shape
        weight = torch.stack([self.weight.roll(k, 2).rot90(k, (3, 4)) for k in range(turns)], 1)
        y = F.conv2d(x.reshape(n, c * turns, h, w), weight.reshape(self.outputs * 4, c * turns, 3, 3), padding=1)
        return y.view(n, self.outputs, turns, h, w).relu()


def test_rows_by_an_attribute_and_columns_by_a_size_are_not_tied():
    def forward(s, x):
        x = s.stem(x)[:, :, None].expand(-1, -1, 4, -1, -1)
        return s.head(s.second(s.first(x)).amax(2).mean((2, 3)))

    torch.manual_seed(0)
    model = Net(forward, stem=nn.Conv2d(3, 4, 1), first=Turned(4, 6), second=Turned(6, 10), head=nn.Linear(10, 4))
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    checked(randomized(model).eval(), x, {"stem": 4, "first": 6, "second": 10})


class Hypercomplex(nn.Module):
    """A sum of Kronecker products whose sizes are computed as tensors."""

    def __init__(self, width, n=2):
        super().__init__()
        self.rules = nn.Parameter(torch.randn(n, n, n))
        self.filters = nn.Parameter(torch.randn(n, width // n, width // n, 3))

    def forward(self, x):
        a, b = self.rules, self.filters
        size = torch.Size(torch.tensor(a.shape[-2:]) * torch.tensor(b.shape[1:3]))
        product = a[:, :, None, :, None, None] * b[:, None, :, None, :, :]
        return F.conv1d(x, product.reshape(len(a), *size, -1).sum(0), padding=1)


def test_a_size_that_is_computed_as_a_tensor():
    torch.manual_seed(0)
    model = Net(lambda s, x: s.head(s.mixed(s.stem(x).relu()).mean(2)), stem=nn.Conv1d(3, 8, 1))
    model.mixed, model.head = Hypercomplex(8), nn.Linear(8, 4)
    checked(randomized(model).eval(), torch.randn(2, 3, 6, dtype=torch.float64), {"stem": 4, "mixed": 4})


@dataclass
class Config:
    """What users build networks from, and read in forwards."""

    width: int = 16
    heads: int = 4
    part: int = 12
    names: tuple[str, ...] = ("a", "b")


class Frozen(SimpleNamespace):
    def __setattr__(self, name, value):
        raise AttributeError(name)


class Block(nn.Module):
    """Attention by the numbers of a configuration; all blocks have the same one."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.qkv, self.out = nn.Linear(config.width, 3 * config.width), nn.Linear(config.width, config.width)

    def forward(self, x):
        b, n, width = x.shape
        q, k, v = self.qkv(x).split(self.config.width, -1)
        heads = (t.view(b, n, self.config.heads, width // self.config.heads).transpose(1, 2) for t in (q, k, v))
        return x + self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(b, n, width))


class Configured(nn.Module):
    def __init__(self, config, sizes):
        super().__init__()
        self.given, self.sizes = config, sizes
        self.patch, self.blocks = nn.Conv2d(3, 16, 4, 4), nn.Sequential(Block(config), Block(config))
        self.mlp, self.a, self.b = nn.Linear(16, 20), nn.Linear(12, 4), nn.Linear(8, 4)

    def forward(self, x):
        x = self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1)
        a, b = self.mlp(x).relu().split([self.sizes["a"], self.sizes["rest"]], 1)
        return self.a(a) + self.b(b)


@pytest.mark.parametrize("kind", [Config, lambda: SimpleNamespace(**vars(Config())), lambda: Frozen(**vars(Config()))])
def test_numbers_in_objects_and_dictionaries(kind):
    """They follow widths as attributes do. The caller's objects, which other networks may have, stay as they are."""
    torch.manual_seed(0)
    config, sizes = kind(), {"a": 12, "rest": 8}
    before = dict(vars(config))
    model, x = randomized(Configured(config, sizes)).eval(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"patch": 4, "mlp": 4}
    edits = {str(edit) for edit in coupling.mended}
    assert edits == {"given.width", "given.heads", "sizes['a']", "sizes['rest']"}
    for seed in range(2):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
    small = assert_equals_twin(model, half_plan(coupling), x, coupling)
    assert small.given.heads == 2
    assert small.given is small.blocks[0].config is small.blocks[1].config
    assert (dict(vars(config)), sizes) == (before, {"a": 12, "rest": 8})
    assert model.given is config is model.blocks[1].config


def test_objects_that_a_network_in_training_shares():
    """The network shrinks in place, the object that it was made from does not."""
    config, sizes = Config(), {"a": 12, "rest": 8}
    torch.manual_seed(0)
    model, x = Configured(config, sizes), torch.randn(2, 3, 16, 16)
    other = Configured(config, sizes)
    coupling = halp_fx.channel_groups(model, x)
    undo = shrink(model, half_plan(coupling), coupling)
    assert (model.given.heads, model.sizes) == (2, {"a": 6, "rest": 4})
    assert model.given is model.blocks[0].config
    assert (config, sizes) == (Config(), {"a": 12, "rest": 8})
    assert model(x).shape == other(x).shape
    undo()
    assert model.given is config is model.blocks[1].config
    assert model.sizes is sizes
    assert model(x).shape == other(x).shape


class Resampled(nn.Module):
    """As the samplers of diffusers: they compare the channels that they get with the number that they were made for."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        assert x.shape[1] == self.channels
        return self.conv(x)


def test_an_attribute_follows_an_axis_of_several_groups():
    """Groups of a norm of two layers side by side tie some channels of the one with some of the other, so no axis has
    one group alone. The program fails before an operator whose weight it has not read."""

    def forward(m, x):
        y = m.first(x)
        z = m.second(m.sampler(y).relu())
        return m.last(m.norm(torch.cat((y, z), 1)).relu())

    torch.manual_seed(0)
    layers = {"first": nn.Conv2d(3, 8, 1), "sampler": Resampled(8), "second": nn.Conv2d(8, 16, 1)}
    model = Net(forward, **layers, norm=nn.GroupNorm(4, 24), last=nn.Conv2d(24, 5, 1))
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    coupling = checked(randomized(model).eval(), x, {"first": 2, "first:1": 4, "sampler.conv": 8})
    small = halp_fx.rewrite(model, half_plan(coupling), x, coupling=coupling)
    assert small.sampler.channels == small.sampler.conv.in_channels == 4
