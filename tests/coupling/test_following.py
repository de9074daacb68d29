"""What repeats a width without being a tensor of it follows; what is made longer, or cut, follows what it meets."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, assert_equals_twin, half_plan, random_plan, randomized, relative_error
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import halp_fx
from halp_fx.coupling.propagation import propagate
from halp_fx.tracing.forward import trace


def image(function, outputs=8, width=8, **layers):
    """A convolution `a`, then `function(self, a(x))`, then a convolution `c`."""
    return Net(
        lambda s, x: s.c(function(s, s.a(x) + 0.5)), a=nn.Conv2d(3, width, 1), c=nn.Conv2d(outputs, 2, 1), **layers
    )


def tokens(function, **layers):
    """A linear layer `a` on the pixels as tokens, `function(self, a(x))`, a linear layer `c`."""
    return Net(
        lambda s, x: s.c(function(s, s.a(x.flatten(2).transpose(1, 2)))), a=nn.Linear(3, 8), c=nn.Linear(8, 2), **layers
    )


def pruned(model, shape=(2, 3, 4, 4)):
    """The coupling, and the model at half its widths, after comparing it and two others with their twins."""
    torch.manual_seed(0)
    randomized(model).eval()
    inputs = torch.randn(shape, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    for seed in (1, 2):
        plan = random_plan(coupling, seed)
        small = halp_fx.rewrite(model, plan, inputs, coupling=coupling)
        with torch.no_grad():
            twin = halp_fx.zero(model, plan, inputs, coupling=coupling)
            assert relative_error(small(inputs), twin(inputs)) <= 1e-9
    return coupling, assert_equals_twin(model, half_plan(coupling), inputs, coupling)


def sizes(coupling):
    return {g.name: g.size for g in coupling.prunable}


NORMS = {
    "batch": (lambda: nn.BatchNorm2d(8), "num_features", 4),
    "batch, no affine": (lambda: nn.BatchNorm2d(8, affine=False), "num_features", 4),
    "batch, nothing": (lambda: nn.BatchNorm2d(8, affine=False, track_running_stats=False), "num_features", 4),
    "instance": (lambda: nn.InstanceNorm2d(8), "num_features", 4),
    "instance, affine": (lambda: nn.InstanceNorm2d(8, affine=True), "num_features", 4),
    "instance, tracking": (lambda: nn.InstanceNorm2d(8, track_running_stats=True), "num_features", 4),
    "group": (lambda: nn.GroupNorm(2, 8), "num_channels", 4),
    "group, no affine": (lambda: nn.GroupNorm(2, 8, affine=False), "num_channels", 4),
    "group, positions": (lambda: nn.GroupNorm(2, 8), "num_groups", 2),
    "group, whole groups": (lambda: nn.GroupNorm(4, 8), "num_groups", 2),
    "group, one a channel": (lambda: nn.GroupNorm(8, 8), "num_groups", 4),
    "group, one a channel, width": (lambda: nn.GroupNorm(8, 8), "num_channels", 4),
}


@pytest.mark.parametrize("name", NORMS)
def test_widths_of_norms(name):
    build, attribute, expected = NORMS[name]
    coupling, small = pruned(image(lambda s, x: s.n(x), n=build()))
    assert set(sizes(coupling)) == {"a"}
    assert getattr(small.n, attribute) == expected
    with torch.no_grad():
        small.train()(torch.randn(2, 3, 4, 4, dtype=torch.float64))


ROWS = {
    "layer": lambda: nn.LayerNorm(8),
    "layer, no affine": lambda: nn.LayerNorm(8, elementwise_affine=False),
    "layer, no bias": lambda: nn.LayerNorm(8, bias=False),
    "rms": lambda: nn.RMSNorm(8),
    "rms, no affine": lambda: nn.RMSNorm(8, elementwise_affine=False),
}


@pytest.mark.parametrize("name", ROWS)
def test_normalized_shapes(name):
    coupling, small = pruned(tokens(lambda s, x: x + s.n(x), n=ROWS[name]()))
    assert sizes(coupling) == {"a": 8}
    assert small.n.normalized_shape == (4,)


def test_a_norm_of_something_else_keeps_its_shape():
    coupling, small = pruned(image(lambda s, x: s.n(x), n=nn.LayerNorm((4, 4), elementwise_affine=False)))
    assert sizes(coupling) == {"a": 8}
    assert small.n.normalized_shape == (4, 4)


class Literal(nn.Module):
    """Its shape is a literal, an attribute, or taken from the input."""

    def __init__(self, norm, shape=None):
        super().__init__()
        self.norm, self.shape = norm, shape

    def forward(self, x):
        return self.norm(x, self.shape or (8,))


@pytest.mark.parametrize("norm", [F.layer_norm, F.rms_norm], ids=["layer", "rms"])
def test_a_literal_shape_freezes_its_group_alone(norm):
    model = tokens(
        lambda s, x: s.l(x + s.f2(s.f1(x).relu())), l=Literal(norm), f1=nn.Linear(8, 12), f2=nn.Linear(12, 8)
    )
    coupling, _ = pruned(model)
    assert sizes(coupling) == {"f1": 12}
    assert "a constant in the forward" in coupling.frozen["a"]
    assert "test_following.py" in coupling.frozen["a"]


@pytest.mark.parametrize("norm", [F.layer_norm, F.rms_norm], ids=["layer", "rms"])
def test_an_attribute_with_the_shape_is_mended(norm):
    coupling, small = pruned(tokens(lambda s, x: s.l(x), l=Literal(norm, (8,))))
    assert sizes(coupling) == {"a": 8}
    assert small.l.shape == (4,)


@pytest.mark.parametrize("norm", [F.layer_norm, F.rms_norm], ids=["layer", "rms"])
def test_a_shape_from_the_input(norm):
    coupling, _ = pruned(tokens(lambda s, x: norm(x, x.shape[-1:])))
    assert sizes(coupling) == {"a": 8}


def test_adaptive_norm():
    """As DiT: scale and shift from a condition."""

    def forward(s, x):
        scale, shift = s.ad(s.y(torch.tensor([3])))[:, None].chunk(2, -1)
        return x + s.f2(s.f1(s.n(x) * (1 + scale) + shift).relu())

    layers = {"y": nn.Embedding(11, 6), "ad": nn.Linear(6, 16), "f1": nn.Linear(8, 12), "f2": nn.Linear(12, 8)}
    coupling, small = pruned(tokens(forward, n=nn.LayerNorm(8, elementwise_affine=False), **layers))
    assert sizes(coupling) == {"a": 8, "y": 6, "f1": 12}
    assert small.ad.out_features == 8


def test_widths_of_other_layers():
    model = tokens(
        lambda s, x: s.b(x, x.cos()) + s.e(torch.tensor([[0, 1]])), b=nn.Bilinear(8, 8, 8), e=nn.EmbeddingBag(5, 8)
    )
    _, small = pruned(model)
    assert (small.b.in1_features, small.b.in2_features, small.b.out_features) == (4, 4, 4)
    assert small.e.embedding_dim == 4


class Focal(nn.Module):
    """As FocalNet: queries, context and a gate for each level from one layer."""

    def __init__(self, levels, sizes_of):
        super().__init__()
        self.levels, self.sizes_of = levels, sizes_of
        self.f, self.h = nn.Conv2d(8, 16 + levels, 1), nn.Conv2d(8, 8, 1)
        self.deep = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(levels))

    def forward(self, x):
        q, context, gates = torch.split(self.f(x), self.sizes_of(x.shape[1], self.levels), 1)
        mixed = 0
        for level, layer in enumerate(self.deep):
            context = layer(context).sin()
            mixed = mixed + context * gates[:, level : level + 1]
        return q * self.h(mixed)


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_split_into_two_widths_and_a_number(levels):
    model = image(lambda s, x: s.m(x), m=Focal(levels, lambda c, n: (c, c, n)))
    coupling, small = pruned(model)
    assert sizes(coupling)["a"] == 8
    assert small.m.f.out_channels == 8 + levels
    assert small.m.deep[0].groups == 4


KERNELS = {
    "expanded": lambda s, x: F.conv2d(x, s.k.expand(x.shape[1], 1, 3, 3), groups=x.shape[1]),
    "repeated": lambda s, x: F.conv2d(x, s.k.repeat(x.shape[1], 1, 1, 1), groups=x.shape[1]),
    "normalised": lambda s, x: F.conv2d(x, (s.k / s.k.sum()).expand(x.shape[1], -1, -1, -1), groups=x.shape[1]),
    "transposed": lambda s, x: F.conv_transpose2d(x, s.k.expand(x.shape[1], 1, 3, 3), groups=x.shape[1]),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_buffer_expanded_to_the_channels(name):
    model = image(KERNELS[name])
    model.register_buffer("k", torch.rand(1, 1, 3, 3))
    coupling, _ = pruned(model)
    assert sizes(coupling) == {"a": 8}


def test_a_buffer_expanded_to_a_literal_freezes():
    model = image(lambda s, x: F.conv2d(x, s.k.expand(8, 1, 3, 3), groups=x.shape[1]))
    model.register_buffer("k", torch.rand(1, 1, 3, 3))
    coupling = halp_fx.channel_groups(model, torch.randn(1, 3, 4, 4))
    assert "expand" in coupling.frozen["a"]


class Conditional(nn.Module):
    """As CondConv: every image of a batch has a kernel of its own, run as the groups of one convolution."""

    def __init__(self, groups, outputs=8, kernel=1):
        super().__init__()
        self.groups, self.outputs, self.kernel, self.route = groups, outputs, kernel, nn.Linear(8, 3)
        self.weight = nn.Parameter(torch.randn(3, outputs * 8 // groups * kernel * kernel))

    def forward(self, x):
        b, c, h, w = x.shape
        kernels = self.route(x.mean((2, 3))).sigmoid() @ self.weight
        kernels = kernels.view(b * self.outputs, c // self.groups, self.kernel, self.kernel)
        x = F.conv2d(x.reshape(1, b * c, h, w), kernels, padding=self.kernel // 2, groups=self.groups * b)
        return x.view(b, self.outputs, h, w)


# What is free beside the router and the layer before: the wider side of the kernel, and all of a depthwise one.
CONDITIONAL = {
    "depthwise": (8, 8, 1, {"b": 8}),
    "square": (1, 8, 1, {"m": 8}),
    "square, 3 x 3": (1, 8, 3, {"m": 8}),
    "narrowing": (1, 6, 1, {"b": 8}),
    "narrowing, 3 x 3": (1, 6, 3, {"b": 8}),
    "widening": (1, 10, 1, {"m": 10}),
}


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("name", CONDITIONAL)
def test_the_batch_as_groups(name, batch):
    groups, outputs, kernel, free = CONDITIONAL[name]
    layers = {"b": nn.Conv2d(12, 8, 1), "m": Conditional(groups, outputs, kernel)}
    model = image(lambda s, x: s.m(s.b(x).relu()), outputs, width=12, **layers)
    coupling, small = pruned(model, (batch, 3, 4, 4))
    assert sizes(coupling) == {"a": 12, "m.route": 3} | free
    assert small.m.groups == max(groups // 2, 1)
    assert small.m.outputs == (outputs // 2 if "m" in free or groups > 1 else outputs)


def per_head(x, gain):
    """Tokens (N, T, C) by a gain for every head and position in it."""
    return (x.unflatten(-1, gain.shape) * gain).flatten(-2)


def test_a_gain_for_every_head_and_position():
    """Coupled along both sides, no channel could go: whole heads do."""
    coupling, small = pruned(tokens(lambda s, x: per_head(x, s.g), g=nn.Parameter(torch.rand(4, 2))))
    assert sizes(coupling) == {"a": 4}
    assert small.g.shape == (2, 2)


def test_rows_and_columns_of_a_flattened_matrix_stay_apart():
    """A row of one matrix does not go with a column of the other."""
    torch.manual_seed(0)
    model = image(lambda s, x: F.conv2d(x, (s.w.flatten() * s.v.flatten()).view(8, 8, 1, 1)))
    model.w, model.v = nn.Parameter(torch.rand(8, 8)), nn.Parameter(torch.rand(8, 8))
    coupling = halp_fx.channel_groups(model, torch.randn(1, 3, 4, 4))
    assert all(g.size == 8 for g in coupling.groups if g.name != "c")


IN_PLACE = {
    "cumsum_": lambda x: x.cumsum_(1),
    "renorm_": lambda x: x.renorm_(2, 0, 1.0),
    "cumprod_": lambda x: x.cos_().cumprod_(1),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_the_twin_runs_an_operator_that_writes_once(name):
    def forward(s, x):
        y = x.clone()
        IN_PLACE[name](y)
        return y

    coupling, _ = pruned(image(forward))
    assert sizes(coupling) == {"a": 8}


MOVES = {
    "pixel_shuffle": (nn.PixelShuffle(2), 4),
    "pixel_unshuffle": (nn.PixelUnshuffle(2), 64),
    "flip": (lambda x: x.flip(1), 16),
    "flip of space": (lambda x: x.flip(3), 16),
    "rot90": (lambda x: x.rot90(1, (2, 3)), 16),
    "roll": (lambda x: x.roll(1, 2), 16),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), 32),
    "channel_shuffle": (nn.ChannelShuffle(2), 16),
    "pad": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), 18),
    "index": (lambda x: x[:, :, torch.arange(5)], 16),
    "index_select": (lambda x: x.index_select(2, torch.arange(5)), 16),
    "reshape of the batch": (lambda x: x.reshape(len(x) * 2, -1, *x.shape[2:]), 8),
    "cat": (lambda x: torch.cat([x, x], 1), 32),
    "unfold": (lambda x: F.unfold(x, 2).unflatten(2, (11, 11)), 64),
}


@pytest.mark.parametrize("name", MOVES)
def test_labels_are_written_out_along_their_own_dimension_alone(name):
    function, outputs = MOVES[name]
    model = image(lambda s, x: function(x), outputs, width=16).eval()
    found = propagate(trace(model, torch.randn(32, 3, 12, 12)), (), {})
    # A plane of int32 labels of the whole activation would be 32 * 16 * 12 * 12 * 4 bytes = 288 KiB.
    largest = max(p.untyped_storage().nbytes() for planes in found.planes.values() for p in planes)
    assert largest <= 32 * 16 * 4


MAPS = ("matrix_exp", "cayley", "householder")


@pytest.mark.parametrize(
    "layer", [nn.Linear(8, 6), nn.Linear(8, 8), nn.Conv2d(8, 8, 3)], ids=["wide", "square", "conv"]
)
@pytest.mark.parametrize("way", [*MAPS, "spectral", "weight"])
def test_parametrisations_have_a_cost(way, layer):
    import copy

    layer = copy.deepcopy(layer)
    if way in MAPS:
        layer = parametrizations.orthogonal(layer, orthogonal_map=way)
    else:
        layer = (parametrizations.spectral_norm if way == "spectral" else parametrizations.weight_norm)(layer)
    outputs = layer.weight.shape[0]
    linear = isinstance(layer, nn.Linear)
    function = (lambda s, x: s.b(x.movedim(1, -1)).movedim(-1, 1)) if linear else (lambda s, x: s.b(x))
    model = image(function, outputs, b=layer).eval()
    coupling = halp_fx.channel_groups(model, torch.randn(2, 3, 4, 4))
    options = {g.name: tuple(range(1, g.size + 1)) for g in coupling.prunable}
    for cost in (halp_fx.MacsCost(), halp_fx.ParamsCost()):
        assert cost.total(coupling) > 0
        assert cost.tables(coupling, options)


def test_products_of_three_tensors_have_a_cost():
    model = tokens(lambda s, x: s.b(x, x.cos()), b=nn.Bilinear(8, 8, 8)).eval()
    coupling = halp_fx.channel_groups(model, torch.randn(2, 3, 4, 4))
    linear = 2 * 16 * 8 * (3 + 2)
    assert halp_fx.MacsCost().total(coupling) == linear + 2 * 16 * 8 * 8 * 8
