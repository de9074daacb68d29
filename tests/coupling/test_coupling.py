"""couple: small networks that state the groups they expect."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from oracle import Net, assert_equals_twin, half_plan, random_plan, randomized
from torch import fx, nn
from torch.nn import functional as F

import halp_fx
import halp_fx.types
from halp_fx import ModelError
from halp_fx.coupling.algebra import Algebra, Call
from halp_fx.tracing.graph import keep
from halp_fx.types import Record


def conv(inputs, outputs, kernel=1, **kwargs):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **kwargs)


def shuffle(x, groups):
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def attention(s, x):
    """Heads of size 4, their number from a shape."""
    tokens = s.a(x).flatten(2).transpose(1, 2)
    q, k, v = s.qkv(tokens).unflatten(-1, (3, -1, 4)).permute(2, 0, 3, 1, 4)
    mixed = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
    return s.c(mixed.transpose(1, 2).flatten(2))


ZOO = {
    # name: (network, {group: size} of the groups that may shrink)
    "chain": (
        lambda: Net(lambda s, x: s.c(s.b(s.a(x)).relu()), a=conv(3, 8), b=conv(8, 6), c=conv(6, 2)),
        {"a": 8, "b": 6},
    ),
    "residual": (lambda: Net(lambda s, x: s.c(s.a(x) + s.b(x)), a=conv(3, 8), b=conv(3, 8), c=conv(8, 2)), {"a": 8}),
    "in place": (
        lambda: Net(
            lambda s, x: s.c(F.relu(s.a(x).add_(s.b(x)), inplace=True)), a=conv(3, 8), b=conv(3, 8), c=conv(8, 2)
        ),
        {"a": 8},
    ),
    "concat": (
        lambda: Net(lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], 1)), a=conv(3, 8), b=conv(3, 4), c=conv(12, 2)),
        {"a": 8, "b": 4},
    ),
    "concat with the input": (
        lambda: Net(lambda s, x: s.c(torch.cat([x, s.a(x)], 1)), a=conv(3, 8), c=conv(11, 2)),
        {"a": 8},
    ),
    "depthwise": (
        lambda: Net(lambda s, x: s.c(s.b(s.a(x))), a=conv(3, 8), b=conv(8, 8, 3, groups=8), c=conv(8, 2)),
        {"a": 8},
    ),
    "depth multiplier": (
        lambda: Net(lambda s, x: s.c(s.b(s.a(x))), a=conv(3, 4), b=conv(4, 12, 3, groups=4), c=conv(12, 2)),
        {"a": 4},
    ),
    "one output is not depthwise": (
        lambda: Net(lambda s, x: s.c(s.a(x) * s.b(x)), a=conv(3, 8), b=conv(3, 1), c=conv(8, 2)),
        {"a": 8},
    ),
    "grouped: whole groups": (
        lambda: Net(lambda s, x: s.c(s.b(s.a(x))), a=conv(3, 16), b=conv(16, 24, 3, groups=8), c=conv(24, 2)),
        {"a": 8},
    ),
    "grouped: positions": (
        lambda: Net(lambda s, x: s.c(s.b(s.a(x))), a=conv(3, 16), b=conv(16, 12, 3, groups=2), c=conv(12, 2)),
        {"a": 8, "b": 6},
    ),
    "squeeze and excite": (
        lambda: Net(
            lambda s, x: s.c((y := s.a(x)) * s.e(s.d(y.mean((2, 3), keepdim=True)).relu()).sigmoid()),
            a=conv(3, 8),
            d=conv(8, 4),
            e=conv(4, 8),
            c=conv(8, 2),
        ),
        {"a": 8, "d": 4},
    ),
    "channel shuffle": (
        lambda: Net(lambda s, x: s.c(shuffle(s.a(x), 4)), a=conv(3, 16), c=conv(16, 2)),
        {"a": 4},
    ),
    "chunk": (
        lambda: Net(lambda s, x: (lambda p, q: s.c(p * q.sigmoid()))(*s.a(x).chunk(2, 1)), a=conv(3, 16), c=conv(8, 2)),
        {"a": 8},
    ),
    "transposed": (
        lambda: Net(lambda s, x: s.c(s.b(s.a(x))), a=conv(3, 8), b=nn.ConvTranspose2d(8, 6, 2, 2), c=conv(6, 2)),
        {"a": 8, "b": 6},
    ),
    "transposed depthwise": (
        lambda: Net(
            lambda s, x: s.c(s.b(s.a(x))), a=conv(3, 8), b=nn.ConvTranspose2d(8, 8, 2, 2, groups=8), c=conv(8, 2)
        ),
        {"a": 8},
    ),
    "functional weight": (
        lambda: Net(lambda s, x: s.c(F.conv2d(x, s.w.weight, s.w.bias)), w=conv(3, 8), c=conv(8, 2)),
        {"w": 8},
    ),
    "called twice": (
        lambda: Net(lambda s, x: s.c(s.b(s.b(s.a(x)).relu())), a=conv(3, 8), b=conv(8, 8), c=conv(8, 2)),
        {"a": 8},
    ),
    "equal split": (
        lambda: Net(
            lambda s, x: (lambda y: s.c(torch.mul(*y.split(y.shape[1] // 2, 1))))(s.a(x)), a=conv(3, 16), c=conv(8, 2)
        ),
        {"a": 8},
    ),
    "layer norm": (
        lambda: Net(lambda s, x: s.c(s.n(s.a(x).mean((2, 3)))), a=conv(3, 8), n=nn.LayerNorm(8), c=nn.Linear(8, 2)),
        {"a": 8},
    ),
    "group norm": (
        lambda: Net(lambda s, x: s.c(s.n(s.a(x))), a=conv(3, 12), n=nn.GroupNorm(3, 12), c=conv(12, 2)),
        {"a": 4},
    ),
    "mean over channels": (
        lambda: Net(
            lambda s, x: (lambda y: s.c(y * y.mean(1, keepdim=True).sigmoid()))(s.a(x).cos()),
            a=conv(3, 8),
            c=conv(8, 2),
        ),
        {"a": 8},
    ),
    "softmax over channels": (
        lambda: Net(lambda s, x: s.c(s.a(x).softmax(1)), a=conv(3, 8), c=conv(8, 2)),
        {"a": 8},
    ),
    "unfold and fold": (
        lambda: Net(
            lambda s, x: s.c(F.fold(F.unfold(s.a(x), 3, padding=1), (8, 8), 3, padding=1)), a=conv(3, 8), c=conv(8, 2)
        ),
        {"a": 8},
    ),
    "pixel shuffle": (
        lambda: Net(lambda s, x: s.c(F.pixel_shuffle(s.a(x), 2)), a=conv(3, 16), c=conv(4, 2)),
        {"a": 4},
    ),
    "stack": (
        lambda: Net(lambda s, x: s.c(torch.stack([s.a(x), s.b(x)]).amax(0)), a=conv(3, 8), b=conv(3, 8), c=conv(8, 2)),
        {"a": 8},
    ),
    "linear on tokens": (
        lambda: Net(
            lambda s, x: s.c(F.gelu(s.b(s.a(x).flatten(2).transpose(1, 2)))),
            a=conv(3, 8),
            b=nn.Linear(8, 6),
            c=nn.Linear(6, 2),
        ),
        {"a": 8, "b": 6},
    ),
    "attention by hand": (
        lambda: Net(attention, a=conv(3, 12), qkv=nn.Linear(12, 24), c=nn.Linear(8, 2)),
        {"a": 12, "qkv": 2},
    ),
    "normalised by its length": (
        lambda: Net(lambda s, x: s.c(F.normalize(s.a(x))), a=conv(3, 8), c=conv(8, 2)),
        {"a": 8},
    ),
    "activated in place behind a view": (
        lambda: Net(
            lambda s, x: s.c(F.relu(s.b(s.a(x).flatten(2).transpose(1, 2)), inplace=True)),
            a=conv(3, 8),
            b=nn.Linear(8, 6),
            c=nn.Linear(6, 2),
        ),
        {"a": 8, "b": 6},
    ),
    "padding and pooling": (
        lambda: Net(lambda s, x: s.c(F.max_pool2d(F.pad(s.a(x), (1, 1, 1, 1)), 3, 1)), a=conv(3, 8), c=conv(8, 2)),
        {"a": 8},
    ),
    "upsampling": (
        lambda: Net(lambda s, x: s.c(F.interpolate(s.a(x), scale_factor=2)), a=conv(3, 8), c=conv(8, 2)),
        {"a": 8},
    ),
    "layer scale": (
        lambda: Net(
            lambda s, x: s.c(s.a(x) * s.n.weight.view(-1, 1, 1)), a=conv(3, 8), n=nn.BatchNorm2d(8), c=conv(8, 2)
        ),
        {"a": 8},
    ),
    "f(0) is not 0": (
        lambda: Net(lambda s, x: s.c(torch.cos(s.a(x))), a=conv(3, 8), c=conv(8, 2)),
        {"a": 8},
    ),
    "stem without norm": (
        lambda: Net(lambda s, x: s.c(s.b(s.a(x)).mean((2, 3))), a=conv(3, 8), b=nn.BatchNorm2d(8), c=nn.Linear(8, 2)),
        {"a": 8},
    ),
}


@pytest.mark.parametrize("name", ZOO)
def test_groups_and_twin(name):
    torch.manual_seed(0)
    build, expected = ZOO[name]
    model = randomized(build())
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    assert {g.name: g.size for g in coupling.prunable} == expected
    for seed in range(3):
        assert_equals_twin_eval(model, random_plan(coupling, seed), inputs, coupling)
    assert_equals_twin(model, half_plan(coupling), inputs, coupling) if name != "layer scale" else None


def assert_equals_twin_eval(model, plan, inputs, coupling):
    small = halp_fx.rewrite(model, plan, inputs, coupling=coupling).eval()
    twin = halp_fx.zero(model, plan, inputs, coupling=coupling).eval()
    torch.testing.assert_close(small(inputs), twin(inputs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ZOO)
def test_groups_partition_the_slots(name):
    """Invariant: no slot of an axis is in two groups, and every group reaches an axis once."""
    coupling = halp_fx.channel_groups(ZOO[name][0](), torch.randn(1, 3, 8, 8))
    seen: dict = {}
    for group in coupling.groups:
        assert len({m.axis for m in group.members}) == len(group.members)
        for member in group.members:
            assert member.slots.shape[0] == group.size
            slots = set(member.slots.reshape(-1).tolist())
            assert len(slots) == member.slots.size
            assert not slots & seen.setdefault(member.axis, set())
            seen[member.axis] |= slots


def test_dependency_graph():
    coupling = halp_fx.channel_groups(ZOO["residual"][0](), torch.randn(1, 3, 8, 8))
    graph = coupling.graph
    assert isinstance(graph, nx.MultiGraph)
    a, b = halp_fx.types.Axis("a.weight", 0), halp_fx.types.Axis("b.weight", 0)
    (edge,) = graph[a][b].values()
    assert (edge["op"], edge["kind"]) == ("add", "residual")
    assert "test_coupling" in edge["where"]
    np.testing.assert_array_equal(edge["slots"][0], edge["slots"][1])


def test_outputs_are_frozen_with_a_reason():
    coupling = halp_fx.channel_groups(ZOO["chain"][0](), torch.randn(1, 3, 8, 8))
    assert coupling.frozen == {"c": "reaches the model's output"}


def test_operator_without_a_rule_freezes_and_says_so():
    net = Net(lambda s, x: s.c(torch.linalg.pinv(s.a(x))), a=conv(3, 8), c=conv(8, 2))
    coupling = halp_fx.channel_groups(net, torch.randn(1, 3, 8, 8))
    assert "no rule for operator" in coupling.frozen["a"]
    assert "test_coupling.py" in coupling.frozen["a"]
    assert coupling.notes


def test_split_at_a_constant_freezes():
    net = Net(lambda s, x: s.c(s.a(x)[:, :4]), a=conv(3, 8), c=conv(4, 2))
    coupling = halp_fx.channel_groups(net, torch.randn(1, 3, 8, 8))
    assert "a constant in the forward repeats its width: slice at coupling/test_coupling.py" in coupling.frozen["a"]


def test_ignore():
    net = ZOO["chain"][0]()
    inputs = torch.randn(1, 3, 8, 8)
    assert set(halp_fx.channel_groups(net, inputs, ignore=["b"]).frozen) == {"a", "b", "c"}
    assert set(halp_fx.channel_groups(net, inputs, ignore=["b.bias"]).frozen) == {"b", "c"}
    with pytest.raises(ModelError, match="nothing_like_it"):
        halp_fx.channel_groups(net, inputs, ignore=["nothing_like_it"])


def test_auxiliary_heads_are_coupled():
    """Only the train-mode forward reaches them; left out, fine-tuning would break."""
    import torchvision

    model = torchvision.models.googlenet(weights=None, init_weights=False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    coupling = halp_fx.channel_groups(model, torch.randn(1, 3, 96, 96))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "running statistics moved"
    assert any(m.axis.tensor.startswith("aux1") for g in coupling.prunable for m in g.members)


@pytest.mark.parametrize("zeros", [False, True], ids=["all labelled", "some not"])
@pytest.mark.parametrize("lasting", [False, True], ids=["made by the forward", "parameters"])
def test_all_against_all_couples_as_pair_by_pair(lasting, zeros):
    """The mask of a windowed attention: ids[:, None, :] - ids[:, :, None], with many more pairs than labels."""
    algebra = Algebra()
    (plane,) = algebra.new_planes("ids", (640,), transient=not lasting)
    ids = plane[torch.randint(640, (5, 40), generator=torch.Generator().manual_seed(0))]
    if zeros:
        ids[2, 7] = 0
    a, b = ids[:, None, :].expand(5, 40, 40), ids[:, :, None].expand(5, 40, 40)
    call = Call(fx.Graph().call_function(torch.ops.aten.sub.Tensor), (), {}, ())
    keep(call.node, Record())
    algebra.couple(a, b, call, "elementwise")
    graph = nx.Graph()
    graph.add_nodes_from(range(641))
    graph.add_edges_from((int(x), int(y)) for x, y in zip(a.reshape(-1), b.reshape(-1), strict=True) if x and y)
    expected = {frozenset(c) for c in nx.connected_components(graph)}
    classes = algebra.classes()
    assert {frozenset(np.flatnonzero(classes == c).tolist()) for c in set(classes.tolist())} == expected
    assert bool(algebra.pins) == zeros
    pairs = sum(len(link.a) for link in algebra.links)
    assert pairs <= 2 * 5 * 40 if not lasting and not zeros else pairs > 2 * 5 * 40
