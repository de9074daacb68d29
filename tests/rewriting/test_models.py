"""Real networks of every family against the zeroed twin, as `tools/sweep.py` does it for whole libraries."""

from __future__ import annotations

import copy
import os
import time

import pytest
import torch
from oracle import Net, assert_equals_twin, half_plan, randomized
from sweeping import tables
from sweeping.checking import check, compare, enliven, moving, randomize
from sweeping.libraries import LIBRARIES, Library
from sweeping.processes import child
from torch import nn

import halp_fx

# The largest share of parameters that may stay when every group loses half of its channels: freezing is no pass.
# About 0.25 where all is prunable, more where the classifier is large, or where attention ties the widths.
KEPT = {
    "alexnet": 0.3,
    "convnext_tiny": 0.3,
    "deeplabv3_mobilenet_v3_large": 0.3,
    "densenet121": 0.35,
    "efficientnet_b0": 0.4,
    "efficientnet_v2_s": 0.3,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 0.5,
    "fcn_resnet50": 0.3,
    "fcos_resnet50_fpn": 0.3,
    "googlenet": 0.4,
    "inception_v3": 0.35,
    "lraspp_mobilenet_v3_large": 0.3,
    "maskrcnn_resnet50_fpn": 0.6,
    "mc3_18": 0.3,
    "mnasnet0_5": 0.45,
    "mobilenet_v2": 0.4,
    "mobilenet_v3_large": 0.4,
    "mobilenet_v3_small": 0.45,
    "quantized_mobilenet_v2": 0.4,
    "quantized_resnet18": 0.3,
    "quantized_shufflenet_v2_x0_5": 0.5,
    "r2plus1d_18": 0.3,
    "r3d_18": 0.3,
    "raft_small": 0.7,
    "regnet_x_400mf": 0.35,
    "regnet_y_400mf": 0.35,
    "resnet18": 0.3,
    "resnet50": 0.3,
    "resnext50_32x4d": 0.35,
    "retinanet_resnet50_fpn": 0.3,
    "shufflenet_v2_x1_0": 0.45,
    "squeezenet1_1": 0.45,
    "ssd300_vgg16": 0.35,
    "ssdlite320_mobilenet_v3_large": 0.4,
    "swin_t": 0.85,
    "swin_v2_t": 0.85,
    "vgg11_bn": 0.3,
    "vit_b_16": 0.7,
    "wide_resnet50_2": 0.3,
    "maxvit_t": 1.0,
}


@pytest.mark.parametrize("name", sorted(KEPT))
def test_half_of_every_group(name):
    row = check("torchvision", name)
    assert row["result"] == "pass", row
    assert row["kept"] <= KEPT[name], row


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["zeros", "ones"])
@pytest.mark.parametrize("shape", [(), (4,), (4, 6), (2, 3, 1, 1)], ids=str)
def test_a_constant_parameter_of_any_rank_gets_values(shape, value):
    module = nn.Module()
    module.weight = nn.Parameter(torch.full(shape, value))
    module.register_buffer("steps", torch.tensor(3))
    randomize(module)
    assert (module.weight != value).all()
    assert module.weight.unique().numel() == module.weight.numel()
    assert module.steps == 3


def test_parameters_of_hardly_any_spread_get_values():
    module = nn.Linear(30, 30, bias=False)
    nn.init.normal_(module.weight, std=1e-10)
    randomize(module)
    assert module.weight.std() > 0.01


def test_parameters_that_were_drawn_stay_as_they_were():
    module = nn.Conv2d(3, 4, 3)
    before = module.weight.clone()
    randomize(module)
    assert torch.equal(module.weight, before)


def constant_head(**zeros):
    """A network whose head starts at zero, as torchvision's vision transformers do."""
    layers = {"conv": nn.Conv2d(3, 8, 3), "head": nn.Linear(8, 5), "aux": nn.Linear(8, 5)}
    net = Net(lambda m, x: [h(m.conv(x).relu().mean((2, 3))) for h in (m.head, m.aux)], **layers).double()
    for name in zeros:
        nn.init.zeros_(getattr(net, name).weight)
    return net


@pytest.mark.parametrize("zeros", [("head",), ("aux",), ("head", "aux")], ids="-".join)
def test_an_output_that_is_constant_fails_the_oracle(zeros):
    """Also when another output is not, and with a rewrite that is wrong: equal constants prove nothing."""
    x = torch.randn(1, 3, 6, 6, dtype=torch.double)
    net = constant_head(**dict.fromkeys(zeros))
    coupling = halp_fx.channel_groups(net, x)
    plan = half_plan(coupling)
    with pytest.raises(AssertionError, match="proves nothing"):
        assert_equals_twin(net, plan, x, coupling)
    small, twin = halp_fx.rewrite(net, plan, x, coupling=coupling), halp_fx.zero(net, plan, x, coupling=coupling)
    assert "nothing was compared" in compare(small, twin, net, x, (), moving(coupling, plan))[1]
    assert_equals_twin(randomized(net), plan, x, coupling)


def test_an_output_that_ignores_the_input_fails_the_sweep():
    x = torch.randn(1, 3, 6, 6, dtype=torch.double)
    net = Net(lambda m, x: m.head(m.conv(0 * x).sigmoid().mean((2, 3))), conv=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 5))
    coupling = halp_fx.channel_groups(randomized(net), x)
    plan = half_plan(coupling)
    small, twin = halp_fx.rewrite(net, plan, x, coupling=coupling), halp_fx.zero(net, plan, x, coupling=coupling)
    assert "depend on the inputs" in compare(small, twin, net, x, (), moving(coupling, plan))[1]


def test_a_wrong_early_layer_is_seen_behind_a_large_bias():
    x = torch.randn(1, 3, 6, 6, dtype=torch.double)
    net = Net(lambda m, x: m.head(m.conv(x).sigmoid().mean((2, 3))), conv=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 5))
    randomized(net).head.bias.data.fill_(1e7)
    coupling = halp_fx.channel_groups(net, x)
    plan = half_plan(coupling)
    small, twin = halp_fx.rewrite(net, plan, x, coupling=coupling), halp_fx.zero(net, plan, x, coupling=coupling)
    assert compare(small, twin, net, x, (), moving(coupling, plan))[0] < 1e-5
    small.conv.bias.data.add_(0.01)
    assert compare(small, twin, net, x, (), moving(coupling, plan))[0] > 1e-5


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False)], ids=["affine", "plain"])
def test_activations_do_not_die_away_from_norm_to_norm(norm):
    layers = {
        f"layer{i}": nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), copy.deepcopy(norm), nn.ReLU()) for i in range(9)
    }
    for layer in layers.values():
        nn.init.normal_(layer[0].weight, std=1e-3)
    net = nn.Sequential(*layers.values()).eval()
    x = torch.randn(2, 6, 8, 8)
    randomize(net)
    assert (net(x) - net(-x)).abs().max() < 1e-5
    running = net[0].register_forward_hook(lambda module, *call: calls.append(module))
    calls = []
    enliven(net, x)
    assert net[0] not in calls, "the model itself has run"
    running.remove()
    assert (net(x) - net(-x)).abs().max() > 0.1


def row(name, result="pass", **values):
    return {**dict.fromkeys(tables.FIELDS, ""), "model": name, "result": result, "kept": "0.3", "kind": "cnn", **values}


def test_a_table_that_was_cut_off_goes_on_where_it_was(tmp_path):
    path = tmp_path / "sweep.csv"
    tables.write(path, [row("a"), row("b", detail="a, comma; and a\nnew line")])
    tables.append(path, row("c", "fail"))
    with path.open("a") as file:
        file.write("d,pa")
    assert [r["model"] for r in tables.read(path)][:3] == ["a", "b", "c"]
    assert tables.read(path)[1]["detail"] == "a, comma; and a\nnew line"
    assert len(tables.read(path)) == 3
    assert tables.read(tmp_path / "none.csv") == []


def test_the_summary_counts_and_names():
    rows = [row("a", convs=9, trace_couple_s="9", rewrite_s="2"), row("b", "fail"), row("c", "other size")]
    text = tables.summary(rows)
    assert text.startswith("1 of 2 models pass; 1 of 1 with at least 8")
    assert "1 take more than 10 s to trace, couple and rewrite: a." in text
    assert text.endswith("Failed: b.")


def test_a_process_that_dies_or_hangs_is_a_row(monkeypatch):
    monkeypatch.setitem(
        LIBRARIES, "broken", Library(list, lambda name: os.kill(os.getpid(), 9), lambda name, model: None)
    )
    monkeypatch.setitem(LIBRARIES, "slow", Library(list, lambda name: time.sleep(60), lambda name, model: None))
    monkeypatch.setitem(LIBRARIES, "wrong", Library(list, lambda name: {}[name], lambda name, model: None))
    none = (0.0, float("inf"))
    assert "exit status -9" in child("broken", "x", none, 30)["detail"]
    assert "not done after" in child("slow", "x", none, 0.5)["detail"]
    assert "KeyError" in child("wrong", "x", none, 30)["detail"]
