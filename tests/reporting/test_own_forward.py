"""What a model does in its own forward, and what it holds itself, has a name in tables, reports and messages."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx.reporting.page import page

X = torch.rand(1, 3, 8, 8)


class Own(nn.Module):
    """A network that computes in its own forward, with a parameter of its own, and with an add that has to stay."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(width))
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x))
        x = x + torch.sigmoid(self.second(x))
        return self.head((x * self.gain[:, None, None]).mean((2, 3)))


class Bare(nn.Module):
    """A network whose weights are all its own."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(16, 3)), nn.Parameter(torch.randn(2, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.relu(F.linear(x, self.up)), self.down)


def test_layers_of_a_profile_are_named():
    profile = halp_fx.profile(Own(), X, latency="macs", progress=False)
    names = [layer.name for layer in profile.layers]
    assert {"forward/mean", "forward/relu", "forward/sigmoid", "first/convolution"} <= set(names)
    assert not re.search(r"(?m)^/", str(profile))


def test_a_model_that_is_one_layer():
    (layer,) = halp_fx.profile(nn.Conv2d(3, 8, 3), X, latency="macs", progress=False).layers
    assert layer.name == "forward/convolution"


@pytest.mark.parametrize(("model", "inputs"), [(Own(), X), (Bare(), torch.rand(1, 3))], ids=["Own", "Bare"])
def test_a_page_has_no_empty_name(model, inputs):
    report = halp_fx.prune(model, 0.6, inputs, latency="macs", progress=False).halp
    text = page(report)
    assert "the model itself" in text
    assert not re.search(r'class="name"[^>]*>(</|/)', text)
    assert all(all(group.layers) for group in report.groups)


def test_an_add_that_stays_says_where():
    said = halp_fx.explain(Own(), example_inputs=X)
    assert "forward/add" in said
    assert "''" not in said


class Checks(nn.Module):
    """One whose forward goes another way when it is narrower."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 12), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.head(x.relu() if x.shape[1] == 12 else x.sigmoid())


def test_messages_leave_out_a_module_without_a_name():
    model, x = Checks(), torch.rand(2, 4)
    with pytest.raises(halp_fx.RewriteError, match=r"relu ran \(reporting/test_own_forward.py:\d+\): the forward"):
        halp_fx.rewrite(model, halp_fx.Plan({"first": range(6)}), x, coupling=halp_fx.couple(halp_fx.trace(model, x)))
