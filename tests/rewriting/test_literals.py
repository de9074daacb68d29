"""Sizes that are literals in the nodes of a graph follow widths; the zeroed twin is the oracle."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from oracle import Net, half_plan, random_plan, randomized, relative_error
from torch import fx, nn
from torchvision.models.resnet import BasicBlock

import halp_fx
from halp_fx.rewriting.literals import lifted, lowered

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def conv(i, o):
    return nn.Conv2d(i, o, 3, padding=1)


def body(function):
    """conv to 8 channels, the function, and a linear layer on the mean over all positions."""

    def forward(self, x):
        return self.head(function(self, self.conv(x)))

    return forward


def swapped(parts):
    return torch.cat([parts[1].relu(), parts[0]], 1).mean((2, 3))


def added(parts):
    return (parts[0] + parts[1].mean(1, keepdim=True)).mean((2, 3))


LITERALS = {
    "view": lambda m, x: x.view(2, 8, -1).mean(2),
    "reshape": lambda m, x: torch.reshape(x, (2, 8, 64)).mean(2),
    "keyword": lambda m, x: torch.reshape(input=x, shape=(2, 8, 64)).mean(2),
    "flatten": lambda m, x: F.adaptive_avg_pool2d(x, 1).reshape(-1, 8),
    "split": lambda m, x: swapped(x.split([4, 4], 1)),
    "split of a concat": lambda m, x: added(torch.cat([x, m.other(x)], 1).split([8, 4], 1)),
    "split size": lambda m, x: swapped(x.split(4, 1)),
    "slice": lambda m, x: torch.cat([x[:, 0:4].relu(), x[:, 4:8]], 1).mean((2, 3)),
    "expand": lambda m, x: (x * m.scale.expand(2, 8, 1, 1)).mean((2, 3)),
    "repeat": lambda m, x: (x + torch.ones(1, 1, 8, 8, dtype=x.dtype).repeat(1, 8, 1, 1)).mean((2, 3)),
    "zeros": lambda m, x: (x + torch.zeros(1, 8, 1, 1, dtype=x.dtype)).mean((2, 3)),
    "new_ones": lambda m, x: (x + x.new_ones((1, 8, 8, 8))).mean((2, 3)),
    "layer_norm": lambda m, x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)).mean((1, 2)),
    "groups": lambda m, x: F.conv2d(x, m.weight, padding=1, groups=8).mean((2, 3)),
    "heads": lambda m, x: x.view(2, 4, 2, 64).softmax(-1).reshape(2, 8, 64).mean(2),
}


def network(name):
    torch.manual_seed(0)
    net = Net(body(LITERALS[name]), conv=conv(3, 8), other=conv(8, 4), head=nn.Linear(8, 5))
    net.scale, net.weight = nn.Parameter(torch.randn(1, 8, 1, 1)), nn.Parameter(torch.randn(8, 1, 3, 3))
    return randomized(net).eval()


def traced(model):
    # A leaf of the tracer would be `function`: it is called with proxies and runs through.
    return fx.symbolic_trace(model)


def exported(model):
    return torch.export.export(model, (X,)).module()


def equals_twin(model, plan, inputs, coupling):
    before, code = copy.deepcopy(model.state_dict()), model.code
    small = halp_fx.rewrite(model, plan, inputs, coupling=coupling)
    twin = halp_fx.zero(model, plan, inputs, coupling=coupling)
    with torch.no_grad():
        assert relative_error(small(inputs), twin(inputs)) < 1e-10
        assert relative_error(small(inputs), model(inputs)) > 1e-6
    assert isinstance(small, fx.GraphModule)
    small.graph.lint()
    assert [n.name for n in small.graph.nodes] == [n.name for n in model.graph.nodes]
    assert model.code == code
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    return small


@pytest.mark.parametrize("capture", [traced, exported], ids=["fx", "export"])
@pytest.mark.parametrize("name", LITERALS)
def test_a_literal_follows_its_width(name, capture):
    model = capture(network(name))
    coupling = halp_fx.channel_groups(model, X)
    assert [g for g in coupling.prunable if "conv" in g.name], coupling.frozen
    for plan in (half_plan(coupling), random_plan(coupling, 1)):
        small = equals_twin(model, plan, X, coupling)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_what_follows_no_width_stays():
    """Literals that equal a width and are none: 8 rows and 8 channels, and a factor of 8."""

    def forward(m, x):
        x = x.reshape(2, -1, 8, 8)[:, :, 0:8]
        return x.reshape(2, -1, 64 // 8, 8).add(x, alpha=8).mean((2, 3))

    model = randomized(traced(Net(body(forward), conv=conv(3, 8), head=nn.Linear(8, 5)))).eval()
    coupling = halp_fx.channel_groups(model, X)
    small = equals_twin(model, half_plan(coupling), X, coupling)
    assert small.conv.out_channels == 4
    assert "reshape(2, -1, 8, 8)" in small.code


def test_lifting_is_undone():
    model = traced(network("view"))
    raised = lifted(model)
    assert raised.sizes_of_view == (2, 8, -1)
    assert raised.conv.weight is model.conv.weight
    assert torch.equal(raised(X), model(X))
    assert lifted(raised) is raised
    assert lowered(raised).code == model.code
    eager = network("view")
    assert lifted(eager) is eager


def test_a_graph_inside_a_model():
    inner = traced(network("layer_norm"))
    model = nn.Sequential(conv(3, 3), inner, nn.Linear(5, 4)).double().eval()
    coupling = halp_fx.channel_groups(model, X)
    small = halp_fx.rewrite(model, half_plan(coupling), X, coupling=coupling)
    twin = halp_fx.zero(model, half_plan(coupling), X, coupling=coupling)
    assert small[1].conv.out_channels == 4
    assert relative_error(small(X), twin(X)) < 1e-10


def test_shapes_noted_before_are_forgotten():
    model = exported(network("view"))
    assert all("val" in n.meta for n in model.graph.nodes if n.op == "call_function")
    coupling = halp_fx.channel_groups(model, X)
    small = halp_fx.rewrite(model, half_plan(coupling), X, coupling=coupling)
    assert not any("val" in n.meta for n in small.graph.nodes)
    assert all("val" in n.meta for n in model.graph.nodes if n.op == "call_function")


def test_an_exported_network_stays_one():
    model = exported(network("view"))
    plan = half_plan(halp_fx.channel_groups(model, X))
    small = halp_fx.rewrite(model, plan, X)
    for net in (model, small):
        with pytest.raises(NotImplementedError):
            net.eval()
        with pytest.raises((AssertionError, RuntimeError)):
            net(X[:, :, :4])  # It checks its inputs.
    again = torch.export.export(small, (X,))
    assert relative_error(again.module()(X), small(X)) < 1e-12


NETWORKS = {
    "shuffle": (lambda: torchvision.models.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 64], num_classes=10), 40),
    "residual": (lambda: torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10), 40),
    "vit": (lambda: torchvision.models.VisionTransformer(16, 8, 2, 4, 64, 96, num_classes=10), 16),
}


@pytest.mark.parametrize(
    ("name", "capture"), [("residual", "export"), ("shuffle", "fx"), ("vit", "fx"), ("vit", "export")]
)
def test_captured_networks_equal_their_twins(name, capture):
    """And what the eager network can lose, the captured one can, too."""
    make, side = NETWORKS[name]
    inputs = torch.randn(2, 3, side, side, dtype=torch.float64)
    eager = randomized(make()).eval()
    model = fx.symbolic_trace(eager) if capture == "fx" else torch.export.export(eager, (inputs,)).module()
    coupling = halp_fx.channel_groups(model, inputs)
    small = equals_twin(model, half_plan(coupling), inputs, coupling)
    own = halp_fx.channel_groups(eager, inputs)
    assert set(coupling.frozen) <= set(own.frozen)
    least = halp_fx.rewrite(eager, half_plan(own), inputs, coupling=own)
    assert sum(p.numel() for p in small.parameters()) <= 1.01 * sum(p.numel() for p in least.parameters())


def test_a_literal_that_is_wrongly_taken_for_a_width_stays_after_a_trial():
    """A table of 8 rows beside 8 channels: `repeat` is given no shape, so the 8 is first taken to follow them."""

    def forward(m, x):
        rows = m.rows.repeat(8, 1).sum((0, 1))
        return x.mean((2, 3)) + rows

    net = Net(body(forward), conv=conv(3, 8), head=nn.Linear(8, 5))
    net.rows = nn.Parameter(torch.randn(3, 1))
    model = randomized(traced(net)).eval()
    coupling = halp_fx.channel_groups(model, X)
    small = equals_twin(model, half_plan(coupling), X, coupling)
    assert small.conv.out_channels == 4
    assert "repeat(8, 1)" in small.code
