"""What `load` takes, whatever surrounds it, and what it says where it cannot."""

from __future__ import annotations

import pytest
import torch
from oracle import Net
from test_saving import X, assert_same, image, pruned
from torch import nn

import halp_fx
from halp_fx import CheckpointError


class Plain(nn.Module):
    """With tensors in plain attributes: of a width, of none, one that is a buffer's, one that every forward makes."""

    def __init__(self, width=8):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3), nn.Linear(width, 5)
        self.scale, self.shift = torch.rand(width, 1, 1), torch.rand(5)
        self.register_buffer("gain", torch.rand(5))
        self.again = self.gain
        self.seen = None

    def forward(self, x):
        y = (self.stem(x) * self.scale).relu()
        self.seen = y.detach().mean((0, 2, 3))
        return self.head(y.mean((2, 3))) * self.again + self.shift


@pytest.mark.parametrize("hollow", [False, True], ids=["random", "meta"])
def test_tensors_in_attributes_come_back(hollow, tmp_path):
    small = pruned(Plain().eval(), X)
    small(X)
    halp_fx.save(small, tmp_path / "a")
    torch.manual_seed(5)  # Other values, which must not matter.
    with torch.device("meta" if hollow else "cpu"):
        dense = Plain()
    back = halp_fx.load(tmp_path / "a", dense)
    assert_same(small, back, X)
    for name in ("scale", "shift", "seen"):
        assert torch.equal(getattr(back, name), getattr(small, name)), name
    assert back.again is back.gain
    assert "scale" not in back.state_dict()


def test_in_inference_mode_and_under_other_defaults(tmp_path):
    halp_fx.save(small := pruned(Plain().eval(), X), tmp_path / "a")
    with torch.inference_mode():
        back = halp_fx.load(tmp_path / "a", Plain)
    assert_same(small, back, X)
    back(X).sum().backward()
    with torch.device("meta"):
        assert_same(small, halp_fx.load(tmp_path / "a", Plain), X)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        back = halp_fx.load(tmp_path / "a", Plain)
    finally:
        torch.set_default_dtype(before)
    assert_same(small, back, X)


class Sized(Plain):
    def __init__(self, width):
        super().__init__(width)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (Sized, r"Sized cannot be called without arguments \(.*'width'\): pass a function .*lambda: Sized\(\.\.\.\)"),
        (None, r"and no code: pass the dense network, or a function that makes it, too"),
        ("resnet18", "not a str"),
        (lambda: Sized, "returned a type"),
    ],
    ids=["arguments", "nothing", "a name", "a class"],
)
def test_what_makes_no_network_is_named(model, match, tmp_path):
    halp_fx.save(pruned(Sized(8).eval(), X), tmp_path / "a")
    with pytest.raises(CheckpointError, match=match):
        halp_fx.load(tmp_path / "a", model)


def test_an_error_of_the_function_is_its_own(tmp_path):
    halp_fx.save(pruned(Sized(8).eval(), X), tmp_path / "a")

    def make():
        raise TypeError("no weights here")

    with pytest.raises(TypeError, match=r"^no weights here$"):
        halp_fx.load(tmp_path / "a", make)


def test_what_was_folded_for_deployment_is_told(tmp_path):
    small = pruned(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)).eval(), image(8))
    small[0], small[1] = nn.utils.fuse_conv_bn_eval(small[0], small[1]), nn.Identity()
    with pytest.raises(CheckpointError, match=r"fold and quantise it after halp_fx\.load"):
        halp_fx.save(small, tmp_path / "a")


def test_whole_numbers_that_a_forward_decides_by_are_remembered(tmp_path):
    def forward(m, given):
        x, count, off = given
        return x if off.any() else m.b(m.a(x[:, : int(count)]).relu())

    net = Net(forward, a=nn.Conv2d(2, 8, 3), b=nn.Conv2d(8, 4, 1)).eval()
    given = (image(8), torch.tensor([2]), torch.tensor([[False]]))
    small = pruned(net, (given, {}))
    halp_fx.save(small, tmp_path / "a")
    assert_same(small, halp_fx.load(tmp_path / "a", net), given)
