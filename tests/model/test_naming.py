"""Parts of a model as callers name them: ignored modules, and layers in plans."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import halp_fx
from halp_fx import MacsCost, ModelError, Plan, PlanError

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).eval()
    return model, halp_fx.channel_groups(model, IMAGE)


DEEP = [f"layer{n}.{name}" for n in (3, 4) for name in ("0.conv1", "1.conv1", "0.conv2")]

IGNORED = {
    "name": (lambda m: ["layer1"], {"conv1", "layer1.0.conv1", "layer1.1.conv1"}),
    "a string alone": (lambda m: "layer1.0.conv1", {"conv1", "layer1.0.conv1"}),
    "pattern below": (lambda m: ["layer1.*"], {"conv1", "layer1.0.conv1", "layer1.1.conv1"}),
    "pattern anywhere": (lambda m: ["layer[34].*.conv1"], {"layer2.0.conv2", *DEEP}),
    "module": (lambda m: [m.layer2[1].conv1], {"layer2.0.conv2", "layer2.1.conv1"}),
    "a module alone": (lambda m: m.layer3[1], {"layer3.1.conv1", "layer3.0.conv2"}),
    "parameter": (lambda m: [m.layer2[0].bn1.weight], {"layer2.0.conv1"}),
    "buffer": (lambda m: [m.layer2[0].bn1.running_mean], {"layer2.0.conv1"}),
    "mixed": (lambda m: [m.layer1[0].conv1.weight, "layer2.?.conv1", m.layer3[0].bn1],
              {"conv1", "layer1.0.conv1", "layer2.0.conv1", "layer2.0.conv2", "layer2.1.conv1", "layer3.0.conv1"}),
    "nothing": (lambda m: (), set()),
}  # fmt: skip


@pytest.mark.parametrize("name", IGNORED)
def test_what_is_ignored_stays(resnet, name):
    model, dense = resnet
    make, expected = IGNORED[name]
    coupling = halp_fx.channel_groups(model, IMAGE, make(model))
    frozen = set(coupling.frozen) - set(dense.frozen)
    assert frozen == expected
    assert all("ignored" in coupling.frozen[group] for group in frozen)


def test_prune_takes_objects_and_patterns(resnet):
    model, _ = resnet
    kept = [model.layer1[0].conv1, "layer2.*.conv1"]
    small = halp_fx.prune(model, 0.6, IMAGE, latency=MacsCost(), ignore=kept, branches=True, progress=False)
    assert small.layer1[0].conv1.out_channels == 64
    assert small.layer2[0].conv1.out_channels == small.layer2[1].conv1.out_channels == 128


@pytest.mark.parametrize(
    ("ignore", "words"),
    [
        (["layer9"], r"'layer9'.*did you mean 'layer"),
        (["layer1.0.convl"], r"did you mean .*'layer1.0.conv1'"),
        (["layer7.*"], r"pattern 'layer7.\*' matches no"),
        ([nn.Conv2d(3, 3, 1)], "a Conv2d that is not part of this ResNet"),
        ([torch.zeros(3)], "a Tensor that is not part"),
        (["layer1.0.relu"], "has no parameters or buffers"),
        ([3], r"ignore holds 3 \(int\)"),
        (["layer1", None], "NoneType"),
    ],
)
def test_an_entry_that_matches_nothing_is_an_error(resnet, ignore, words):
    model, _ = resnet
    with pytest.raises(ModelError, match=words):
        halp_fx.channel_groups(model, IMAGE, ignore)
    with pytest.raises(ModelError, match=words):
        halp_fx.prune(model, 0.6, IMAGE, latency=MacsCost(), ignore=ignore, progress=False)


def test_the_model_itself_is_not_ignored(resnet):
    with pytest.raises(ModelError, match="nothing would be left"):
        halp_fx.channel_groups(resnet[0], IMAGE, [resnet[0]])


def test_a_plan_may_name_any_layer_of_a_group(resnet):
    model, coupling = resnet
    kept = list(range(0, 64, 2))
    want = halp_fx.rewrite(model, Plan({"conv1": kept}), IMAGE, coupling=coupling)
    for name in ("layer1.1.conv2", "layer1.0.conv2", "layer1.0.conv2.weight"):
        small = halp_fx.rewrite(model, {name: kept}, IMAGE, coupling=coupling)
        torch.testing.assert_close(small(IMAGE), want(IMAGE))
        torch.testing.assert_close(
            halp_fx.zero(model, {name: kept}, IMAGE, coupling=coupling)(IMAGE), want(IMAGE), rtol=1e-3, atol=1e-4
        )
    twice = halp_fx.rewrite(model, {"conv1": kept, "layer1.0.conv2": kept}, IMAGE, coupling=coupling)
    torch.testing.assert_close(twice(IMAGE), want(IMAGE))


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"conv1": [0, 1], "layer1.0.conv2": [0, 2]}, "'conv1' twice, as 'conv1' and 'layer1.0.conv2'"),
        ({"layer1.1.conv2": [0, 1], "layer1.0.conv2": [0]}, "'conv1' twice"),
        ({"layer1.0.conv7": [0]}, r"'layer1.0.conv7', which is no group and no layer.*'layer1.0.conv1'"),
        ({"layer1.0.conv2": [64]}, "64 output channels: index 64"),
        ({"layer1.0.relu": [0]}, "no group and no layer"),
    ],
)
def test_plans_that_do_not_fit(resnet, plan, words):
    model, coupling = resnet
    for apply in (halp_fx.rewrite, halp_fx.zero):
        with pytest.raises(PlanError, match=words):
            apply(model, plan, IMAGE, coupling=coupling)


class Shuffled(nn.Module):
    """The second convolution's outputs are added in reverse: its channels are the group's in another order. A third
    one's lie two by two in a channel."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(n, m, 1) for n, m in ((3, 6), (3, 6), (6, 4), (3, 12)))

    def forward(self, x):
        y = self.a(x) + self.b(x).flip(1)
        return self.c(y + self.d(x).unflatten(1, (-1, 2)).sum(2))


def test_a_layer_speaks_of_its_own_outputs():
    model = Shuffled()
    coupling = halp_fx.channel_groups(model, IMAGE)
    small = halp_fx.rewrite(model, {"b": [0, 1]}, IMAGE, coupling=coupling)
    torch.testing.assert_close(small.b.weight, model.b.weight[:2])
    torch.testing.assert_close(small.a.weight, model.a.weight[4:])
    small = halp_fx.rewrite(model, {"d": [2, 3, 6, 7]}, IMAGE, coupling=coupling)
    torch.testing.assert_close(small.d.weight, model.d.weight[[2, 3, 6, 7]])
    with pytest.raises(PlanError, match=r"a part of a channel of group 'a'.*\[2 3\]"):
        halp_fx.rewrite(model, {"d": [0, 1, 2]}, IMAGE, coupling=coupling)


class Sharing(nn.Module):
    """One convolution under three names, and a weight under two."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.two = self.one
        self.stage = nn.Sequential(self.one, nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.tied = nn.Conv2d(8, 8, 1)
        self.tied.weight = self.stage[2].weight

    def forward(self, x):
        return self.last(self.tied(self.stage(self.two(self.stem(x).relu())).relu()))


@pytest.mark.parametrize("entry", ["two", "two.weight", "tw*", "stage.0", "stage", "s*.0*", lambda m: m.stage])
def test_what_a_model_has_under_several_names_is_ignored_by_each(entry):
    model, image = Sharing(), torch.rand(1, 3, 4, 4)
    ignore = entry(model) if callable(entry) else entry
    free = {g.name for g in halp_fx.channel_groups(model, image, ignore=ignore).prunable}
    held = {g.name for g in halp_fx.channel_groups(model, image, ignore="one").prunable}
    assert "one" not in free
    if entry in ("two", "two.weight", "tw*", "stage.0"):
        assert free == held


@pytest.mark.parametrize("entry", ["tied", "tied.weight", "stage.2", "stage"])
def test_tied_weights_are_ignored_by_each_name(entry):
    model, image = Sharing(), torch.rand(1, 3, 4, 4)
    groups = halp_fx.channel_groups(model, image, ignore=entry).groups
    held = {m.axis.tensor for g in groups if g.frozen for m in g.members}
    assert "stage.2.weight" in held
