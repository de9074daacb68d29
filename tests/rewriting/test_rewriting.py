"""rewrite against its oracle, the zeroed twin, on real networks; and what must survive a rewrite."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from oracle import (
    TORCHVISION,
    Net,
    assert_equals_twin,
    half_plan,
    random_plan,
    randomized,
    relative_error,
    torchvision_network,
)
from torch import nn
from torch.nn.utils import parametrizations

import halp_fx
from halp_fx import Plan, PlanError, RewriteError, TraceError
from halp_fx.rewriting.verification import verify
from halp_fx.tracing.forward import all_traces
from halp_fx.types import Channels


@pytest.mark.parametrize("name", TORCHVISION)
def test_equals_zeroed_twin(name):
    torch.manual_seed(0)
    model = randomized(torchvision_network(name))
    # 75 is the smallest side with which every one of these networks runs.
    inputs = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    coupling = halp_fx.channel_groups(model, inputs)
    for plan in (half_plan(coupling), random_plan(coupling, 1)):
        assert_equals_twin(model, plan, inputs, coupling)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", TORCHVISION)
def test_halving_every_group_leaves_little(name):
    """Freezing groups would pass the comparison with the twin: what is kept must be about a quarter."""
    model = torchvision_network(name)
    inputs = torch.randn(1, 3, 96, 96)
    coupling = halp_fx.channel_groups(model, inputs)
    assert all("output" in reason for reason in coupling.frozen.values()), coupling.frozen
    small = halp_fx.rewrite(model, half_plan(coupling), inputs, coupling=coupling)
    kept = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    assert kept < 0.55


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.bn(self.conv(x)).relu()).mean((2, 3)))


def plan_for(model, inputs):
    return half_plan(halp_fx.channel_groups(model, inputs))


def test_volumes_stay_channels_last():
    """Convolutions that are laid out otherwise than before run other operators."""
    layers = nn.Conv3d(3, 8, 3), nn.ReLU(), nn.Conv3d(8, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)
    model, inputs = nn.Sequential(*layers).to(memory_format=torch.channels_last_3d).double(), torch.rand(2, 3, 6, 6, 6)
    coupling = halp_fx.channel_groups(model, inputs.double())
    small = assert_equals_twin(model, half_plan(coupling), inputs.double(), coupling)
    assert small[2].weight.shape == (2, 4, 3, 3, 3)
    assert small[2].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_pointwise_layers_stay_channels_last():
    """Of 1 x 1 weights both formats have the same order of elements; the strides alone say which it is, and they decide
    about the format of what a layer makes of a contiguous image."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 6, 6)
    small = halp_fx.rewrite(model, plan_for(model, x), x)
    assert small[0].weight.shape == (4, 3, 1, 1)
    assert small[0].weight.stride() == (3, 1, 3, 3)
    assert small(x).stride() == model(x).stride()


def test_keeps_what_the_user_set():
    model = Residual().to(memory_format=torch.channels_last)
    model.train()
    model.bn.eval()
    model.bn.weight.requires_grad_(False)
    calls = []
    model.conv.register_forward_hook(lambda *_: calls.append(1))
    inputs = torch.randn(2, 3, 8, 8)
    small = halp_fx.rewrite(model, plan_for(model, inputs), inputs)
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert not small.bn.weight.requires_grad
    assert small.stem.weight.requires_grad
    assert small.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not small.conv.weight.is_contiguous()
    calls.clear()
    small(inputs)
    assert calls == [1]
    assert (small.conv.in_channels, small.conv.out_channels, small.bn.num_features) == (4, 4, 4)
    assert (small.head.in_features, small.head.out_features) == (4, 5)


def test_bfloat16_stays():
    model = Residual().bfloat16()
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    small = halp_fx.rewrite(model, plan_for(model, inputs), inputs)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert small(inputs).dtype is torch.bfloat16


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(6, 6, 3, padding=1)
            self.b = nn.Conv2d(6, 6, 3, padding=1)
            self.b.weight = self.a.weight
            self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.head(self.b(self.a(self.stem(x)).relu()))

    model = randomized(Tied())
    inputs = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    small = assert_equals_twin(model, half_plan(coupling), inputs, coupling)
    assert small.a.weight is small.b.weight


def test_parametrized_weight():
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )
    model = randomized(model)
    inputs = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    small = halp_fx.rewrite(model, half_plan(coupling), inputs, coupling=coupling)
    # An operator without a rule freezes; what is not frozen must agree.
    twin = halp_fx.zero(model, half_plan(coupling), inputs, coupling=coupling)
    assert relative_error(small(inputs), twin(inputs)) <= 1e-5


def scaled(layer):
    """A layer whose weight is made by a hook before every forward, and is not there before the first (ProGAN)."""
    layer.weight_orig = nn.Parameter(layer.weight.detach())
    del layer.weight
    layer.register_forward_pre_hook(lambda m, _: setattr(m, "weight", m.weight_orig * 0.5))
    return layer


@pytest.mark.parametrize("ran", [False, True])
def test_weight_that_a_hook_makes(ran):
    layers = (scaled(nn.Conv2d(3, 8, 3)), nn.ReLU(), scaled(nn.Conv2d(8, 12, 3)), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(*layers, scaled(nn.Linear(48, 6)), nn.ReLU(), nn.Linear(6, 2)).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    if ran:
        with torch.no_grad():
            model(x)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"0": 8, "2": 12, "5": 6}
    halp_fx.rewrite(model, half_plan(coupling), x, coupling=coupling)
    assert hasattr(model[0], "weight") is ran
    small = assert_equals_twin(model, half_plan(coupling), x, coupling)
    assert (small[0].out_channels, small[2].in_channels, small[2].out_channels) == (4, 4, 6)
    assert (small[5].in_features, small[5].out_features) == (24, 3)


def test_flatten_covers_space():
    model = randomized(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)))
    inputs = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    (group,) = coupling.prunable
    assert {m.slots.shape for m in group.members} == {(6, 1), (6, 36)}
    assert assert_equals_twin(model, half_plan(coupling), inputs, coupling)[3].in_features == 3 * 36


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"nowhere": [0]}, "nowhere"),
        ({"stem": [0, 99]}, "out of range"),
        ({"head": [0]}, "may not shrink"),
    ],
    ids=["unknown", "range", "frozen"],
)
def test_plan_that_does_not_fit(plan, words):
    model = Residual()
    with pytest.raises(PlanError, match=words):
        halp_fx.rewrite(model, Plan(plan), torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize("kept", [[], [1, 1], [2, 1], [-1, 0]], ids=["empty", "twice", "order", "negative"])
def test_malformed_plan(kept):
    with pytest.raises(PlanError, match="stem"):
        Plan({"stem": kept})


def test_plan_survives_json():
    plan = Plan({"a": (0, 2, 5), "b": (1,)})
    assert Plan.from_json(plan.to_json()) == plan
    for text in ("", "[]", '{"format": "other", "kept": {}}', '{"format": "halp_fx.plan/1", "kept": {"a": [0.5]}}'):
        with pytest.raises(PlanError):
            Plan.from_json(text)


@pytest.mark.parametrize("made_for", [[], {"a": 3}, {"a": [3, 6]}, {"a": [0, 6, 1]}, {"a": ["x", 6, 1]}], ids=str)
def test_plan_remembers_the_channels_that_it_was_made_for(made_for):
    known = Plan({"a": (0, 2)}, made_for={"a": Channels(3, 6, 77)})
    again = Plan.from_json(known.to_json())
    assert again.made_for == known.made_for
    assert again == Plan({"a": (0, 2)}), "it is what is kept that makes a plan"
    assert "made_for" not in Plan({"a": (0, 2)}).to_json(), "an older halp_fx reads it as before"
    with pytest.raises(PlanError):
        Plan.from_json(json.dumps({**json.loads(known.to_json()), "made_for": made_for}))


class Constant(nn.Module):
    """Depends on a width in a way that no shape error shows: with half the channels, `parts` changes."""

    def __init__(self, inner, parts):
        super().__init__()
        self.inner, self.parts = inner, parts
        self.a, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        parts = self.a(x).view(x.shape[0], self.parts, self.inner, *x.shape[2:])
        return self.head(parts[:, 0] + parts[:, 1])


@pytest.mark.parametrize(("inner", "parts"), [(4, -1), (4, 2)], ids=["runs but differs", "does not run"])
def test_constant_in_the_forward_is_never_a_wrong_network(inner, parts):
    model = Constant(inner, parts)
    inputs = torch.randn(1, 3, 4, 4)
    untried = halp_fx.couple(halp_fx.trace(model, inputs))
    with pytest.raises(RewriteError, match="constant in the forward") as caught:
        halp_fx.rewrite(model, {"a": [0, 2]}, inputs, coupling=untried)
    assert caught.value.groups == ("a",)
    coupling = halp_fx.channel_groups(randomized(model), inputs.double())
    assert [str(edit) for edit in coupling.mended] == ["inner"]
    assert_equals_twin(model, Plan({"a": [0, 2]}), inputs.double(), coupling)


def test_what_verify_finds_is_what_rewrite_raises():
    inputs = torch.randn(1, 3, 4, 4)
    for parts in (-1, 2):
        model = Constant(4, parts)
        free = halp_fx.couple(halp_fx.trace(model, inputs))
        plan = Plan({"a": [0, 2]})
        small = halp_fx.rewrite(model, plan, inputs, coupling=free, check=False)
        found = verify(small, plan, free, inputs)
        with pytest.raises(RewriteError) as caught:
            halp_fx.rewrite(model, plan, inputs, coupling=free)
        error = caught.value
        assert str(error) == found.message
        assert (error.groups, error.place, error.node) == (found.groups, found.place, found.node)
        assert found.message.startswith(found.short)
        assert type(caught.value.__cause__) is type(found.cause)
        assert (found.groups, found.view) == (("a",), 0)
        with pytest.raises(dataclasses.FrozenInstanceError):
            found.view = 1
    assert verify(halp_fx.rewrite(model, {}, inputs, coupling=free), Plan(), free, inputs) is None


def test_a_mismatch_says_which_forward_differs():
    class Training(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.a(x)
            return self.b(x.reshape(2, 8, 4, 4) if self.training else x)

    model, inputs = Training(), torch.randn(2, 3, 4, 4)
    traces = all_traces(model, inputs)
    free = halp_fx.couple(traces.first, further=traces.further)
    plan = Plan({"a": [0, 2]})
    with pytest.raises(RewriteError, match="does not run") as caught:
        halp_fx.rewrite(model, plan, inputs, coupling=free)
    small = halp_fx.rewrite(model, plan, inputs, coupling=free, check=False)
    assert verify(small, plan, free, inputs).view == 1
    assert isinstance(caught.value.__cause__, TraceError)


def test_shape_that_follows_the_width():
    model = randomized(Constant(-1, 2))
    inputs = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    assert_equals_twin(model, Plan({"a": [0, 2]}), inputs, coupling)


@pytest.mark.filterwarnings("ignore:Using torch.cross")
def test_dimension_that_is_found_by_its_length():
    """`torch.cross` takes the first dimension of length 3: with three channels left, another one."""
    model = randomized(
        Net(
            lambda s, x: s.c(torch.cross(s.a(x), s.b(x)).mT),
            a=nn.Conv1d(4, 8, 1),
            b=nn.Conv1d(4, 8, 1),
            c=nn.Linear(8, 2),
        )
    )
    inputs = torch.randn(2, 4, 3, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    assert_equals_twin(model, half_plan(coupling), inputs, coupling)
    (group,) = coupling.prunable
    with pytest.raises(halp_fx.RewriteError, match=r"cross .* computes with \[1\], not \[2\]"):
        halp_fx.rewrite(model, halp_fx.Plan({group.name: [0, 2, 5]}), inputs, coupling=coupling)


def test_tensor_that_is_read_in_another_order_is_named():
    """`multi_dot` multiplies in the order that takes the fewest steps, which depends on widths."""
    shapes = {"p": (2, 3), "q": (3, 4)}
    model = randomized(
        Net(
            lambda s, x: s.c(torch.linalg.multi_dot([s.p, s.q, s.a(x)])),
            a=nn.Linear(3, 5),
            c=nn.Linear(5, 2),
            **{name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()},
        )
    )
    inputs = torch.randn(4, 3, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    with pytest.raises(halp_fx.RewriteError, match=r"after pruning, \S+ is read or run where \S+ was"):
        halp_fx.rewrite(model, halp_fx.Plan({"a": [0, 1]}), inputs, coupling=coupling)
