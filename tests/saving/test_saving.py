"""A pruned network that is saved and loaded is the same network, bit by bit."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from oracle import TORCHVISION, Net, leaves, random_plan
from sweeping.checking import randomize
from test_prune import Small
from torch import nn

import halp_fx
from halp_fx import CheckpointError, HalpError, ModelError, Plan
from halp_fx.rewriting.descent import origin_of
from halp_fx.saving import errors

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def image(side: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def small_resnet() -> nn.Module:
    blocks = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(blocks, [1, 2, 1, 1], num_classes=10).eval()


def pruned(model: nn.Module, x, **options) -> nn.Module:
    """By random plans: as unlike the first channels of each layer as can be."""
    return halp_fx.rewrite(model, random_plan(halp_fx.channel_groups(model, x)), x, **options)


def alive(make) -> nn.Module:
    """In eval mode, and with no layer at zero: behind one, nothing can be seen."""
    model = make().eval()
    randomize(model)
    return model


def assert_same(a: nn.Module, b: nn.Module, *inputs) -> None:
    assert type(a) is type(b)
    assert list(a.state_dict()) == list(b.state_dict())
    assert [m.training for m in a.modules()] == [m.training for m in b.modules()]
    for (name, one), (_, two) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert one.dtype == two.dtype, name
        assert one.stride() == two.stride(), name
        assert torch.equal(one, two), name
    grads = [[p.requires_grad for p in m.parameters()] for m in (a, b)]
    assert grads[0] == grads[1]
    with torch.no_grad():
        torch.manual_seed(1)
        one = leaves(copy.deepcopy(a)(*inputs))
        torch.manual_seed(1)
        two = leaves(copy.deepcopy(b)(*inputs))
    assert len(one) == len(two) > 0
    assert all(torch.equal(p, q) for p, q in zip(one, two, strict=True))


def detector():
    """Faster R-CNN in small."""
    backbone = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1))
    backbone.out_channels = 24
    anchors = torchvision.models.detection.anchor_utils.AnchorGenerator(((16, 32),), ((1.0,),))
    return torchvision.models.detection.FasterRCNN(
        backbone, 4, min_size=64, max_size=64, rpn_anchor_generator=anchors, box_score_thresh=0.0,
        rpn_post_nms_top_n_test=20, box_detections_per_img=10,
        box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], 3, 2),
    )  # fmt: skip


def vit():
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5
    )


NETWORKS = {
    **{
        name: (partial(torchvision.models.get_model, name, num_classes=10), lambda: (image(64),))
        for name in TORCHVISION
        if name != "vgg11_bn"  # 130 million parameters, and nothing that the others do not have.
    },
    "vit": (vit, lambda: (image(32),)),
    "swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=5),
        lambda: (image(32),),
    ),
    "detector": (detector, lambda: ([image(64)[0]],)),
    "timm efficientnet": (lambda: timm.create_model("efficientnet_lite0", num_classes=7), lambda: (image(32),)),
    "timm convnext": (lambda: timm.create_model("convnext_atto", num_classes=7), lambda: (image(32),)),
    "timm vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=7),
        lambda: (image(32),),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_gives_the_same_network(name, tmp_path):
    make, inputs = NETWORKS[name]
    model = alive(make)
    small = pruned(model, inputs())
    path = tmp_path / "small.safetensors"
    halp_fx.save(small, path)
    torch.manual_seed(7)  # Other weights: they must not matter.
    back = halp_fx.load(path, make)
    assert_same(small, back, *inputs())
    assert sum(p.numel() for p in back.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "vit", "timm convnext", "swin"])
def test_meta_weights_are_enough(name, tmp_path):
    make, inputs = NETWORKS[name]
    small = pruned(alive(make), inputs())
    halp_fx.save(small, tmp_path / "a")
    with torch.device("meta"):
        hollow = make()
    assert_same(small, halp_fx.load(tmp_path / "a", hollow), *inputs())
    assert all(t.is_meta for t in hollow.state_dict().values())


def test_a_report_and_the_plan_come_back(tmp_path):
    small = halp_fx.prune(small_resnet(), 0.5, X, latency="macs", progress=False)
    halp_fx.save(small, tmp_path / "a.safetensors")
    back = halp_fx.load(str(tmp_path / "a.safetensors"), small_resnet)
    assert_same(small, back, X)
    assert back.halp == small.halp
    assert back.halp.plan == origin_of(back).plans[0]
    assert origin_of(back) == origin_of(small)


def test_the_dense_network_stays_as_it_is(tmp_path):
    dense = small_resnet().train()
    small = pruned(dense, X)
    halp_fx.save(small, tmp_path / "a")
    before, draw = copy.deepcopy(dense), torch.get_rng_state()
    back = halp_fx.load(tmp_path / "a", dense, X)
    assert torch.equal(draw, torch.get_rng_state())
    assert_same(small, back, X)
    assert_same(before, dense, X)
    assert {id(p) for p in dense.parameters()}.isdisjoint({id(p) for p in back.parameters()})


def test_a_network_pruned_twice(tmp_path):
    dense = small_resnet()
    once = halp_fx.prune(dense, 0.7, X, latency="macs", progress=False)
    twice = halp_fx.prune(once, 0.7, X, latency="macs", branches=True, progress=False)
    thrice = pruned(twice, X)
    assert len(origin_of(thrice).plans) == 3
    assert origin_of(twice).plans == (once.halp.plan, twice.halp.plan)
    assert origin_of(thrice).dense == origin_of(once).dense
    assert not hasattr(thrice, "halp"), "the report was of another network"
    for small in (twice, thrice):
        halp_fx.save(small, tmp_path / "a")
        back = halp_fx.load(tmp_path / "a", small_resnet)
        assert_same(small, back, X)
        assert origin_of(back) == origin_of(small)
    halp_fx.save(back, tmp_path / "b")  # And what was loaded can be saved.
    assert_same(thrice, halp_fx.load(tmp_path / "b", dense), X)


def test_dropped_branches_in_several_steps(tmp_path):
    data = [(torch.rand(4, 3, 8, 8), torch.randint(0, 10, (4,)))]
    small = halp_fx.prune(
        small_resnet(), 0.87, X, latency="macs", branches=True, min_keep=0.95, steps=3, data=data, progress=False
    )
    assert small.halp.dropped
    assert len(origin_of(small).plans) == 1
    halp_fx.save(small, tmp_path / "a")
    assert_same(small, halp_fx.load(tmp_path / "a", small_resnet), X)


class Tied(nn.Module):
    """Two layers with one weight, one layer under two names, a buffer outside of the `state_dict`, a pass through
    an in-between dtype."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.a = nn.Conv2d(12, 12, 1, bias=False)
        self.b = nn.Conv2d(12, 12, 1, bias=False)
        self.b.weight = self.a.weight
        self.again = self.a
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)
        self.register_buffer("scale", torch.rand(1), persistent=False)

    def forward(self, x):
        y = self.stem(x)
        y = y + self.again(self.b(self.a(y).relu()).relu())
        return self.head(self.norm(y * self.scale).mean((2, 3)))


def test_tied_weights_stay_tied(tmp_path):
    small = pruned(Tied().eval(), X)
    halp_fx.save(small, tmp_path / "a")
    hollow = Tied().to("meta")
    loosened = Tied()
    loosened.b.weight = nn.Parameter(loosened.b.weight.detach().clone())
    for dense in (Tied, hollow, loosened):
        back = halp_fx.load(tmp_path / "a", dense, X)
        assert back.b.weight is back.a.weight
        assert back.again is back.a
        assert_same(small, back, X)
        assert torch.equal(back.scale, small.scale)


def test_dtypes_layout_modes_and_gradients(tmp_path):
    dense = small_resnet()
    small = pruned(dense, X).to(torch.bfloat16, memory_format=torch.channels_last)
    small.fc.float()
    first = next(small.parameters()).requires_grad_(False)
    small.train()
    next(m for m in small.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    halp_fx.save(small, tmp_path / "a")
    back = halp_fx.load(tmp_path / "a", small_resnet)
    names = dict(small.named_parameters())
    for name, parameter in back.named_parameters():
        assert parameter.dtype == names[name].dtype
        assert parameter.stride() == names[name].stride()
        assert parameter.requires_grad == (names[name] is not first)
        assert torch.equal(parameter, names[name])
    assert [m.training for m in back.modules()] == [m.training for m in small.modules()]
    assert {p.dtype for p in back.parameters()} == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize("later", [False, True], ids=["pruned in half", "made half since"])
@pytest.mark.parametrize("given", [None, torch.float32, torch.bfloat16], ids=str)
def test_half_precision_and_inputs_of_either(later, given, tmp_path):
    dense, x = small_resnet(), X
    if not later:
        dense, x = dense.bfloat16(), X.bfloat16()
    small = pruned(dense, x).bfloat16()
    halp_fx.save(small, tmp_path / "a")
    back = halp_fx.load(tmp_path / "a", small_resnet, None if given is None else X.to(given))
    assert_same(small, back, X.bfloat16())


def test_weights_of_the_dense_network_are_told_apart():
    dense = small_resnet()
    small = halp_fx.prune(dense, 0.5, X, latency="macs", progress=False)
    before = copy.deepcopy(small.state_dict())
    told = r"weights of the network before it was pruned: .* halp_fx\.load\(path"
    with pytest.raises(RuntimeError, match=told):
        small.load_state_dict(dense.state_dict())
    with pytest.raises(CheckpointError, match=told):
        nn.ModuleDict({"net": small}).load_state_dict({f"net.{k}": v for k, v in dense.state_dict().items()})
    with pytest.raises(CheckpointError, match=told):
        halp_fx.prune(small, 0.7, X, latency="macs", progress=False).load_state_dict(dense.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())
    with pytest.raises(RuntimeError) as caught:  # Of yet another network: no word of pruning.
        small.load_state_dict({k: torch.zeros(3, 3) for k in small.state_dict()})
    assert "halp_fx" not in str(caught.value)
    small.load_state_dict({k: v + 1 for k, v in before.items()})
    assert torch.equal(small.fc.bias, before["fc.bias"] + 1)


def test_a_pruned_network_is_copied_pickled_and_saved_as_any(tmp_path):
    small = halp_fx.prune(small_resnet(), 0.5, X, latency="macs", progress=False)
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert_same(small, twin, X)
        assert twin.halp == small.halp
        with pytest.raises(RuntimeError, match=r"halp_fx\.load"):
            twin.load_state_dict(small_resnet().state_dict())
        halp_fx.save(twin, tmp_path / "twin")
        assert_same(small, halp_fx.load(tmp_path / "twin", small_resnet), X)
    torch.save(small.state_dict(), tmp_path / "plain.pt")
    copy.deepcopy(small).load_state_dict(torch.load(tmp_path / "plain.pt", weights_only=True))


def test_a_network_that_was_compiled_in_place(tmp_path):
    small = pruned(small_resnet(), X)
    small.compile(backend="eager")
    halp_fx.save(small, tmp_path / "a")
    assert_same(small, halp_fx.load(tmp_path / "a", small_resnet), X)
    with pytest.raises(ModelError, match=r"wrapped by torch\.compile"):
        halp_fx.save(torch.compile(small, backend="eager"), tmp_path / "b")


def test_what_cannot_be_saved_is_refused(tmp_path):
    path = tmp_path / "a"
    path.write_text("as it was")
    with pytest.raises(CheckpointError, match=r"does not come from halp_fx\.prune"):
        halp_fx.save(small_resnet(), path)
    small = pruned(small_resnet(), X)

    class PassesOn(nn.Module):
        """Has the attributes of the network inside, as ultralytics' YOLO."""

        def __init__(self):
            super().__init__()
            self.model = small

        def __getattr__(self, name):
            return super().__getattr__(name) if name == "model" else getattr(self.model, name)

    for around, part in (
        (torch.optim.swa_utils.AveragedModel(small), "module"),
        (PassesOn(), "model"),
        (nn.ModuleDict({"student": nn.Sequential(small), "teacher": small_resnet()}), r"student\.0"),
    ):
        with pytest.raises(CheckpointError, match=f"Its part '{part}' does: save that"):
            halp_fx.save(around, path)
    small.fc = nn.Linear(small.fc.in_features, 3)
    with pytest.raises(CheckpointError, match=r"changed after it was pruned \(fc\.weight has shape \(3, "):
        halp_fx.save(small, path)

    class Stateful(Tied):
        def get_extra_state(self):
            return {"seen": 3}

        def set_extra_state(self, state):
            pass

    with pytest.raises(CheckpointError, match="extra state"):
        halp_fx.save(pruned(Stateful().eval(), X), path)
    assert path.read_text() == "as it was"


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    import safetensors.torch

    small = pruned(small_resnet(), X)
    path = tmp_path / "new" / "folder" / "a.safetensors"
    halp_fx.save(small, path)
    before = path.read_bytes()

    def full(tensors, filename, metadata):
        Path(filename).write_bytes(b"half of")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        halp_fx.save(small, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_another_network_is_refused(tmp_path):
    small = pruned(small_resnet(), X)
    path = tmp_path / "a"
    halp_fx.save(small, path)
    with pytest.raises(errors.OtherNetworkError, match=r"ResNet, which fits another network than this Small.*no conv1"):
        halp_fx.load(path, Small)
    with pytest.raises(errors.OtherNetworkError, match=r"one that was pruned|dense network that was pruned"):
        halp_fx.load(path, small)
    with pytest.raises(CheckpointError, match="returned a str"):
        halp_fx.load(path, lambda: "a network")

    class Elsewhere(type(small_resnet())):
        def forward(self, x):
            return self.fc(self.avgpool(self.layer1(self.conv1(x))).flatten(1)[:, :8].repeat(1, 4))

    other = small_resnet()
    other.__class__ = Elsewhere
    with pytest.raises(errors.OtherNetworkError, match="its plan cannot be applied"):
        halp_fx.load(path, other)
    with pytest.raises(HalpError, match="plan cannot be applied"):
        halp_fx.load(path, small_resnet, torch.rand(1, 7))


def test_a_plan_takes_newer_weights(tmp_path):
    """`rewrite` with the plan of a report, which a file may bring."""
    small = halp_fx.prune(small_resnet(), 0.5, X, latency="macs", progress=False)
    plan = Plan.from_json(small.halp.plan.to_json())
    torch.manual_seed(5)
    newer = halp_fx.rewrite(small_resnet(), plan, X)
    assert [p.shape for p in newer.parameters()] == [p.shape for p in small.parameters()]
    halp_fx.save(newer, tmp_path / "a")
    back = halp_fx.load(tmp_path / "a", small_resnet)
    assert_same(newer, back, X)
    assert not hasattr(back, "halp")


def test_inputs_of_every_form_are_remembered(tmp_path):
    def forward(m, given):
        return m.b(m.a(given["x"]).relu() * given["scale"][0]) + given["rows"][1].sum()

    net = Net(forward, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 4, 1)).eval()
    given = {"x": image(8), "scale": (torch.tensor([2]), None), "rows": [True, torch.tensor([True, False])]}
    small = pruned(net, (given, {}))
    halp_fx.save(small, tmp_path / "a")
    assert_same(small, halp_fx.load(tmp_path / "a", net), given)
