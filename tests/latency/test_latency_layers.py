"""Layers: every operator that works is there, and replays at any widths with the shapes that the coupling states."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

from halp_fx.latency.fusion import fused_layers
from halp_fx.latency.layers import layers
from halp_fx.latency.layouts import channels_last as laid_out
from halp_fx.latency.runtimes import callable_for, units
from halp_fx.latency.templates import Size, TensorTemplate
from halp_fx.trials.trials import channel_groups
from halp_fx.types import TensorSpec


class Everything(nn.Module):
    """Residual, depthwise, grouped (both kinds), transposed, squeeze-excite, concat, norms, flatten, linear."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 1, groups=2)
        self.many_groups = nn.Conv2d(16, 32, 1, groups=8)
        self.squeeze, self.excite = nn.Conv2d(32, 6, 1), nn.Conv2d(6, 32, 1)
        self.up = nn.ConvTranspose2d(32, 12, 2, stride=2)
        self.norm = nn.GroupNorm(1, 12)
        self.side = nn.Conv2d(32, 10, 1)
        self.fc1, self.fc2 = nn.Linear(22 * 16, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.depthwise(x)
        x = self.many_groups(self.grouped(x))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = torch.cat([F.avg_pool2d(self.norm(self.up(x)), 2), self.side(x)], 1)
        return self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 4).flatten(1))))


def couple(channels_last=False):
    model, x = Everything().eval(), torch.rand(2, 3, 8, 8)
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return channel_groups(model, x)


def compiled(coupling):
    return units(coupling, "inductor")


def some_widths(coupling, seed):
    rng = random.Random(seed)
    return {g.name: g.size if g.frozen else rng.randint(1, g.size) for g in coupling.groups}


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("unit", [layers, fused_layers, compiled], ids=["operators", "fused", "compiled"])
def test_every_layer_replays_at_any_widths(unit, channels_last):
    coupling = couple(channels_last)
    found = unit(coupling)
    with torch.no_grad():
        for seed in range(3):
            widths = some_widths(coupling, seed)
            for layer in found:
                args, kwargs = layer.arguments(*layer.widths(widths))
                result = layer.function(*args, **kwargs)
                results = [result] if isinstance(result, torch.Tensor) else result
                shapes = [tuple(r.shape) for r in results if isinstance(r, torch.Tensor)]
                for template in layer.results:
                    assert template.shape(*layer.widths(widths)) in shapes, layer.name


class Grouped(nn.Module):
    """Whole groups that go: of norms, and of deformable convolutions with offsets of their own."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.many = nn.Conv2d(3, 16, 1), nn.GroupNorm(8, 16), nn.GroupNorm(16, 16)
        self.offset, self.deformed = nn.Conv2d(16, 18 * 8, 1), DeformConv2d(16, 16, 3, padding=1, groups=8)
        self.fc = nn.Linear(16, 2)

    def forward(self, x):
        x = self.many(self.norm(self.stem(x)))
        return self.fc(self.deformed(x, self.offset(x)).mean((2, 3)))


def test_layers_of_several_groups_replay_with_fewer():
    coupling = channel_groups(Grouped().eval(), torch.rand(2, 3, 6, 6))
    found = {layer.op: layer for layer in layers(coupling)}
    for kept in range(1, 9):
        widths = {g.name: kept for g in coupling.prunable}
        args, kwargs = found["native_group_norm"].arguments(*found["native_group_norm"].widths(widths))
        assert args[6] == args[4] == 2 * kept
        assert found["native_group_norm"].function(*args, **kwargs)[0].shape == (2, 2 * kept, 6, 6)
        args, kwargs = found["deform_conv2d"].arguments(*found["deform_conv2d"].widths(widths))
        assert list(args[11:13]) == [kept, kept]
        assert found["deform_conv2d"].function(*args, **kwargs).shape == (2, 2 * kept, 6, 6)


def test_dense_arguments_have_the_recorded_layout():
    coupling = couple(channels_last=True)
    convolution = next(x for x in layers(coupling) if x.op == "convolution")
    x, weight = convolution.arguments(*convolution.dense)[0][:2]
    assert x.shape == (2, 3, 8, 8)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_what_costs_nothing_is_left_out():
    ops = {layer.op for layer in layers(couple())}
    assert {"convolution", "native_batch_norm", "relu_", "add", "cat", "addmm", "mul", "mean"} <= ops
    assert not ops & {"view", "t", "empty", "_unsafe_view", "detach"}


def test_what_only_restates_strides_in_place_costs_nothing():
    """Pooling to one place does, where channels lie last."""

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(F.adaptive_avg_pool2d(self.conv(x), 1).squeeze_(-1).squeeze_(-1))

    model = Pooled().eval().to(memory_format=torch.channels_last)
    x = torch.rand(1, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    coupling = channel_groups(model, x)
    assert {"as_strided_", "squeeze_"} <= {
        node.target._opname for node in coupling.traced.graph.nodes if node.op == "call_function"
    }
    assert [layer.op for layer in layers(coupling)] == ["convolution", "mean", "addmm"]
    assert [layer.op for layer in compiled(coupling)] == ["convolution", "mean", "addmm"]


def test_widths_of_the_kinds_of_layers():
    by_module = {x.module: x for x in layers(couple()) if x.op in ("convolution", "addmm", "cat")}
    assert by_module["stem.0"].dense == (3, 16)
    assert by_module["stem.0"].inputs.terms == ()
    assert by_module["depthwise"].output is None
    assert by_module["side"].dense == (32, 10)
    assert by_module["fc2"].dense == (24, 5)
    # The flatten: 16 columns a channel, of both sides of the concat.
    assert dict(by_module["fc1"].inputs.terms) == {"up": 16, "side": 16}
    assert by_module[""].dense == (22, 0)


def test_equal_layers_have_equal_signatures_and_others_do_not():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 4, 1, stride=2)
            self.d = nn.Conv2d(12, 10, 1)

        def forward(self, x):
            x = self.b(self.a(x))
            return self.c(x).sum() + self.d(x).sum()

    keys = {x.module: x.key for x in layers(channel_groups(Twins(), torch.rand(1, 3, 4, 4))) if x.op == "convolution"}
    assert keys["b"] == keys["d"]
    assert len(set(keys.values())) == 3
    assert "float32[O,I,1,1]" in keys["b"]


def test_random_state_is_left_alone():
    layer = layers(couple())[0]
    before = torch.get_rng_state()
    layer.arguments(*layer.dense)
    assert torch.equal(torch.get_rng_state(), before)


def test_fused_units_compute_what_their_operators_do():
    coupling = couple()
    fused, single = fused_layers(coupling), layers(coupling)
    assert sum(len(x.nodes) for x in fused) == len(single)
    assert {n for x in fused for n in x.nodes} == {x.nodes[0] for x in single}
    unit = next(x for x in fused if x.op == "native_batch_norm+relu")
    args, _ = unit.arguments(5)
    x, gamma, beta, mean, var = args
    expected = F.relu(F.batch_norm(x, mean, var, gamma, beta))
    with torch.no_grad():
        assert torch.allclose(callable_for(unit, args, {}, "eager")(), expected, atol=1e-6)
    # The residual input has a second reader, so it does not join the unit of the addition.
    assert len({x.key for x in fused}) <= len(fused)


class Pooled(nn.Module):
    """Channels of one width in several layouts: of a convolution, pooled, cut in two, flattened, and as a matrix."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(8, 6)

    def forward(self, x):
        x = F.max_pool2d(self.first(x), 2)
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.second(right).relu()], 1) + 1
        return F.gelu(self.fc(x.flatten(2).transpose(1, 2)).unsqueeze(1))


def order_of(layer):
    x = layer.args[0] if isinstance(layer.args[0], TensorTemplate) else layer.args[0][0]
    return x.order


def test_compiled_units_lie_channels_last_between_convolutions_and_weights_as_they_are():
    coupling = channel_groups(Pooled().eval(), torch.rand(2, 3, 8, 8))
    found = {x.op: x for x in compiled(coupling)}
    assert {op: order_of(x) for op, x in found.items() if op in ("convolution", "max_pool2d_with_indices", "cat")} == (
        dict.fromkeys(("convolution", "max_pool2d_with_indices", "cat"), (0, 2, 3, 1))
    )
    assert found["convolution"].args[1].order == (0, 1, 2, 3)
    assert order_of(found["gelu"]) == (0, 1, 2, 3), "a matrix with a dimension of 1 is no image"
    frozen = {x.op: x for x in units(coupling, "inductor-frozen")}
    assert frozen["convolution"].args[1].order == (0, 2, 3, 1)
    assert {order_of(x) for x in units(coupling, "eager") if x.op == "convolution"} == {(0, 1, 2, 3), (0, 1, 2, 3)}


def test_without_its_library_nothing_is_laid_out_anew(monkeypatch):
    coupling = channel_groups(Pooled().eval(), torch.rand(2, 3, 8, 8))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not laid_out(coupling)


def test_a_compiled_pool_does_not_say_where_it_found_what_nobody_asks():
    found = {x.op: x for x in compiled(channel_groups(Pooled().eval(), torch.rand(2, 3, 8, 8)))}
    pool = found["max_pool2d_with_indices"]
    args, kwargs = pool.arguments(5)
    with torch.no_grad():
        pooled = callable_for(pool, args, kwargs, "eager")()
    assert isinstance(pooled, torch.Tensor)
    assert torch.equal(pooled, F.max_pool2d(args[0], 2))


def test_template_keeps_expanded_dimensions_and_values():
    base = torch.arange(6.0).reshape(1, 6).expand(4, 6)
    template = TensorTemplate.of(TensorSpec.of(base), (Size(4), Size(0, "I", 1)))
    built = template.build(3, 0, torch.device("cpu"), torch.Generator())
    assert built.shape == (4, 3)
    assert built.stride(0) == 0
    assert template.bytes(3, 0) == 12
    index = torch.tensor([2, 0, 1])
    kept = TensorTemplate.of(TensorSpec.of(index), (Size(3),), value=index)
    assert torch.equal(kept.build(1, 1, torch.device("cpu"), torch.Generator()), index)


@pytest.mark.parametrize(
    ("size", "n", "expected"),
    [
        (Size(7), 3, 7),
        (Size(0, "I", 49), 3, 147),
        (Size(5, "I", 1, 2, 4), 10, 8),
        (Size(0, "I", 1, 8), 2, 1),
        (Size(0, "I", 2, 3), 10, 7),
    ],
)
def test_sizes(size, n, expected):
    assert size.at(n, 0) == expected


def test_autocast_is_part_of_what_is_traced():
    model, x = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)), torch.rand(1, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = layers(channel_groups(model, x))
    assert any(layer.op == "convolution" and "bfloat16" in layer.key for layer in found)
