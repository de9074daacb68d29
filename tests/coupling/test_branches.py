"""Residual branches that are dropped whole: what is found, what is refused, and what is left against its twin."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
import torchvision
from oracle import half_plan, randomized, relative_error
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx import MacsCost, ParamsCost, Plan, PlanError
from halp_fx.coupling.branches import without
from halp_fx.coupling.residual import find_branches
from halp_fx.rewriting.standins import Remainder, Silent
from halp_fx.trials.branches import tried

NETWORKS = {
    "resnet50": (64, 12, "layer1.1"),
    "mobilenet_v2": (64, 10, "features.3"),
    "efficientnet_b0": (64, 9, "features.2.1"),
    "convnext_tiny": (64, 18, "features.1.0"),
    "a small ViT": (32, 6, "encoder.layers.encoder_layer_0.mlp"),
}


def network(name, size):
    """Random, in float64, with nothing at its initial value (a ViT's head, a ConvNeXt's layer scale)."""
    torch.manual_seed(0)
    if name == "a small ViT":  # Layers of vit_b_16 repeat: it took as long as all others, and 4 GB.
        model = torchvision.models.VisionTransformer(size, 16, 3, 4, 64, 128, num_classes=10)
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=10)
    model = randomized(model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def assert_dropped_equals_twin(model, plan, inputs, coupling):
    small = halp_fx.rewrite(model, plan, inputs, coupling=coupling)
    twin = halp_fx.zero(model, plan, inputs, coupling=coupling)
    with torch.no_grad():
        got, want, dense = small(inputs), twin(inputs), model(inputs)
    assert relative_error(got, want) <= 1e-9
    assert relative_error(dense, want) > 1e-6, "the plan changed nothing: the comparison proves nothing"
    return small


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_twin_without_branches(name):
    size, count, one = NETWORKS[name]
    model, inputs = network(name, size), torch.randn(2, 3, size, size, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    branches = tried(model, coupling, inputs)
    names = tuple(b.name for b in branches.removable)
    assert len(names) == count
    assert one in names
    all_gone = assert_dropped_equals_twin(model, Plan({}, names), inputs, coupling)
    gone = {t for b in branches.removable for t in b.tensors}
    assert list(all_gone.state_dict()) == [k for k in model.state_dict() if k not in gone]
    assert type(all_gone) is type(model)
    some = Plan(half_plan(coupling).kept, names[::2])
    small = assert_dropped_equals_twin(model, some, inputs, coupling)
    small.train()
    small(inputs).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_bottlenecks_leave_only_their_last_activation():
    model, inputs = network("resnet50", 64), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    small = halp_fx.rewrite(model, Plan({}, ("layer3.2",)), inputs)
    left = small.layer3[2]
    assert [name for name, _ in left.named_children()] == ["relu"]
    assert not left.relu.inplace, "its input is in use elsewhere"
    assert model.layer3[2].relu.inplace
    assert isinstance(
        halp_fx.rewrite(network("mobilenet_v2", 64), Plan({}, ("features.3",)), inputs).features[3], nn.Identity
    )


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut; subclasses change what is done with them."""

    def __init__(self, width=8):
        super().__init__()
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def branch(self, x):
        return self.two(self.one(x).relu())

    def forward(self, x):
        return x + self.branch(x)


class Activated(Block):
    def forward(self, x):
        return F.leaky_relu(x + self.branch(x), 0.1).clamp(-1, 3)


class Written(Block):
    def forward(self, x):
        y = self.branch(x)
        y += x
        return y.relu_()


class IntoShortcut(Block):
    def forward(self, x):
        x += self.branch(x)
        return x


class Normed(Block):
    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(x + self.drop(self.branch(x))))


class EmptyShortcut(Block):
    """As ResNets for small images are written: a shortcut without layers is an empty `nn.Sequential`."""

    def __init__(self):
        super().__init__()
        self.shortcut = nn.Sequential()

    def forward(self, x):
        y = F.relu(self.one(x))
        return F.relu(self.two(y) + self.shortcut(x))


class TwoInOne(Block):
    """Only silencing works here: the second branch must stay."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.norm, self.three = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1)
        self.first = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1))

    def forward(self, x):
        x = x + self.scale * self.first(self.norm(x))
        return x + self.three(x).sigmoid()


class ActivatesItsInput(Block):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.two(self.one(self.relu(x)))
        return x + y


class EarlyParameter(Block):
    """Parts of the branch are computed before the shortcut is first read."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x):
        scale = self.scale.exp()
        return x + scale * self.branch(x)


class Whole(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(*blocks)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def found(*blocks):
    model = Whole(*blocks).double().eval()
    coupling = halp_fx.channel_groups(model, IMAGE)
    return model, coupling, find_branches(coupling)


@pytest.mark.parametrize(
    "kind", [Block, Activated, Written, IntoShortcut, Normed, EmptyShortcut, TwoInOne, ActivatesItsInput]
)
def test_ways_to_write_a_residual_block(kind):
    torch.manual_seed(0)
    model, coupling, branches = found(kind(), kind())
    randomized(model).eval()
    names = tuple(b.name for b in branches.removable)
    assert len(names) == 2
    small = assert_dropped_equals_twin(model, Plan({}, names), IMAGE, coupling)
    assert_dropped_equals_twin(model, Plan(half_plan(coupling).kept, names[1:]), IMAGE, coupling)
    for copied in (copy.deepcopy(small), torch.compile(small, fullgraph=True)):
        with torch.no_grad():
            torch.testing.assert_close(copied(IMAGE), small(IMAGE))
    small.train()
    small(IMAGE).sum().backward()


def test_a_branch_may_begin_before_its_shortcut_is_read():
    torch.manual_seed(0)
    model, coupling, branches = found(nn.BatchNorm2d(8), EarlyParameter())
    assert [b.name for b in branches.removable] == ["blocks.1"]
    assert_dropped_equals_twin(randomized(model).eval(), Plan({}, ("blocks.1",)), IMAGE, coupling)


class WritesBehind(Whole):
    """What a block returned was a tensor of its own, and is written in place while its input is still in use."""

    def forward(self, x):
        early = self.stem(x)
        late = self.blocks[1](self.blocks[0](early))
        late.relu_()
        return self.head((early * late).mean((2, 3)))


class WritesInput(Whole):
    def forward(self, x):
        early = self.stem(x)
        late = self.blocks(early)
        early.relu_()
        return self.head((early * late).mean((2, 3)))


@pytest.mark.parametrize("kind", [WritesBehind, WritesInput])
def test_values_that_were_apart_stay_apart(kind):
    torch.manual_seed(0)
    model = randomized(kind(Block(), Block())).eval()
    coupling = halp_fx.channel_groups(model, IMAGE)
    for names in (("blocks.0",), ("blocks.1",), ("blocks.0", "blocks.1")):
        small = assert_dropped_equals_twin(model, Plan({}, names), IMAGE, coupling)
        if kind is WritesBehind:  # The other one does not train as it is either.
            small.train()(IMAGE).sum().backward()


class ActivatesBetween(Block):
    """Two branches in one module, and in one of them an operator that no child runs."""

    def __init__(self):
        super().__init__()
        self.three = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return F.relu(self.branch(x) + x) + self.three(x)


class DropsShortcut(Block):
    """In training the shortcut is not what the module was given."""

    def __init__(self):
        super().__init__()
        self.shortcut = nn.Sequential(nn.Dropout(0.5))

    def forward(self, x):
        return self.shortcut(x) + self.branch(x)


@pytest.mark.parametrize(
    ("kind", "why"),
    [(ActivatesBetween, "relu at .* runs between the modules"), (DropsShortcut, "does more than this branch")],
)
def test_what_no_child_runs_between_those_of_a_branch_keeps_it(kind, why):
    _, _, branches = found(kind())
    assert not [b for b in branches.removable if "blocks.0.one.weight" in b.tensors]
    (reason,) = (text for name, text in branches.refused.items() if name.endswith("add"))
    assert re.search(why, reason), reason


def test_what_follows_the_add_stays_trainable_and_keeps_its_mode():
    model, coupling, _ = found(Normed())
    small = halp_fx.rewrite(model.train(), Plan({}, ("blocks.0",)), IMAGE, coupling=coupling)
    assert isinstance(small.blocks[0], Remainder)
    assert [k for k in small.state_dict() if k.startswith("blocks")] == [
        k for k in model.state_dict() if k.startswith("blocks.0.norm")
    ]
    assert all(m.training for m in small.modules())
    with torch.no_grad():
        assert relative_error(small(IMAGE), small(IMAGE)) > 0, "the dropout after the add still works in training"


def test_silenced_branch_leaves_nothing_to_run():
    model, coupling, branches = found(TwoInOne())
    (branch,) = (b for b in branches.removable if "scale" not in b.tensors)
    assert branch.name == "blocks.0.first"
    small = halp_fx.rewrite(model, Plan({}, (branch.name,)), IMAGE, coupling=coupling)
    block = small.blocks[0]
    assert isinstance(block.norm, Silent)
    assert isinstance(block.first, Silent)
    assert (block.norm.zeros, block.first.zeros) == (False, True)
    assert not list(block.first.parameters())


class Peeks(Block):
    def forward(self, x):
        inner = self.one(x)
        return x + self.two(inner) * inner.mean()


def test_an_inner_value_that_is_read_twice_is_fine_inside():
    model, coupling, branches = found(Peeks())
    randomized(model).eval()
    assert [b.name for b in branches.removable] == ["blocks.0"]
    assert_dropped_equals_twin(model, Plan({}, ("blocks.0",)), IMAGE, coupling)


def test_unknown_branch_is_named():
    model, _, _ = found(Block())
    with pytest.raises(PlanError, match=r"blocks\.9.*blocks\.0"):
        halp_fx.rewrite(model, Plan({}, ("blocks.9",)), IMAGE)
    with pytest.raises(PlanError, match=r"blocks\.9"):
        halp_fx.zero(model, Plan({}, ("blocks.9",)), IMAGE)


def test_a_forward_that_needs_the_module_is_refused_by_trial():
    class Looks(Whole):
        def forward(self, x):
            assert self.blocks[0].one.weight.shape[0] > 0
            return super().forward(x)

    model = Looks(Block(), Block()).double().eval()
    branches = tried(model, halp_fx.channel_groups(model, IMAGE), IMAGE)
    assert [b.name for b in branches.removable] == ["blocks.1"]
    assert "trial" in branches.refused["blocks.0"]


def test_plan_in_json():
    plan = Plan({"a": [0, 2]}, ("z", "b"))
    assert plan.dropped == ("b", "z")
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(Plan({"a": [0]}).to_json()) == {"format": "halp_fx.plan/1", "kept": {"a": [0]}}
    assert json.loads(plan.to_json())["format"] == "halp_fx.plan/2"
    assert Plan.from_json('{"format": "halp_fx.plan/1", "kept": {"a": [0]}}') == Plan({"a": [0]})
    assert Plan({}, ("b",))
    assert not Plan()
    with pytest.raises(PlanError, match="branches"):
        Plan.from_json('{"format": "halp_fx.plan/2", "kept": {}, "dropped": "all"}')


def test_costs_without_a_branch_are_those_of_the_network_without_it():
    model, inputs = network("resnet50", 64), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    gone = find_branches(coupling).named(["layer1.2", "layer3.3"])
    left = without(coupling, gone)
    small = halp_fx.rewrite(model, Plan({}, ("layer1.2", "layer3.3")), inputs, coupling=coupling)
    again = halp_fx.channel_groups(small, inputs)
    for cost in (MacsCost(), ParamsCost(), halp_fx.MemoryCost()):
        assert cost.total(left) == cost.total(again)
    assert ParamsCost().total(left) == sum(p.numel() for p in small.parameters())
