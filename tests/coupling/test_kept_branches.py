"""Residual branches that cannot be dropped, and the words that say why."""

from __future__ import annotations

import re

import pytest
import torch
from test_branches import IMAGE, Block, Whole
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx import Plan, RewriteError
from halp_fx.coupling.residual import find_branches
from halp_fx.trials.branches import tried


class SharesWeights(Whole):
    def forward(self, x):
        x = self.blocks(self.stem(x))
        return self.head(self.blocks[0].one(x).mean((2, 3)))


class ReadsMore(Whole):
    def forward(self, x):
        x = self.stem(x)
        gate = x.mean((2, 3), keepdim=True).sigmoid()
        return self.head((x + self.blocks[0].one(x) * gate).mean((2, 3)) * gate.mean())


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8, 8, 1, 1))
        self.other = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = x + F.conv2d(x, self.weight)
        return x + self.other(x)


class OutOfZero(Block):
    def __init__(self):
        super().__init__()
        self.three = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = x + self.branch(x).sigmoid()
        return x + self.three(x)


class Projected(Block):
    def forward(self, x):
        return self.one(x) + self.two(x).relu()


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.after = Block(), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return x + self.after(self.inner(x))


class Wrapped(nn.Module):
    """The module that runs the branch runs the shortcut's work, too."""

    def __init__(self):
        super().__init__()
        self.both = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1))

    def forward(self, x):
        return x + self.both(x)


def hooked():
    block = Block()
    block.one.register_forward_hook(lambda *_: None)
    return block


REFUSED = {
    "shares weights": (SharesWeights(Block()), "shares blocks.0.one"),
    "reads more": (ReadsMore(Block()), "from outside"),
    "functional": (Whole(Functional()), "no module runs the branch"),
    "made of zeros": (Whole(OutOfZero()), "sigmoid"),
    "projected": (Whole(Projected()), "neither summand"),
    "nested": (Whole(Nested()), "contains the branch 'blocks.0.inner'"),
    "in-place in front": (Whole(Wrapped()), "does other work"),
    "hooks": (Whole(hooked()), "has hooks"),
    "called twice": (Whole(*[Block()] * 2), "shares"),
    "torch's layer": (
        nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
        "fused path",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(name):
    model, words = REFUSED[name]
    inputs = torch.randn(2, 5, 4) if name == "torch's layer" else IMAGE
    model = model.to(inputs.dtype).eval()
    branches = find_branches(halp_fx.channel_groups(model, inputs))
    reasons = " | ".join(branches.refused.values())
    assert words in reasons, (reasons, [b.name for b in branches.removable])
    assert not {"blocks.0", "1"} & {b.name for b in branches.removable}


def test_tied_to_what_the_forward_does_not_reach():
    model = Whole(Block()).double().eval()
    model.spare = model.blocks[0].two
    coupling = halp_fx.channel_groups(model, IMAGE)
    branches = tried(model, coupling, IMAGE)
    assert not branches.removable
    assert "spare" in branches.refused["blocks.0"]
    with pytest.raises(RewriteError, match="spare"):
        halp_fx.rewrite(model, Plan({}, ("blocks.0",)), IMAGE, coupling=coupling)


class Beside(nn.Module):
    """`conv(x) + other(x)`: the other summand is no plain shortcut."""

    def __init__(self, other):
        super().__init__()
        self.a, self.b, self.c, self.side = (nn.Conv2d(n, m, 1) for n, m in ((3, 8), (8, 8), (8, 4), (8, 8)))
        self.other = other

    def forward(self, x):
        x = self.a(x)
        return self.c(self.b(x.relu()) + self.other(self, x))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda self, x: x.abs(), r"the shortcut is computed, too \(abs at .*test_kept_branches.py:\d+\)"),
        (lambda self, x: x.sigmoid() * 2, r"computed, too \(mul at .*, sigmoid at .*\)"),
        (lambda self, x: self.side(x), r"both have layers of their own \(b; side\)"),
    ],
    ids=["abs", "two operators", "layers"],
)
def test_reason_says_what_the_other_summand_is(other, words):
    refused = halp_fx.find_branches(halp_fx.channel_groups(Beside(other), torch.randn(1, 3, 8, 8))).refused
    assert len(refused) == 1
    assert re.search(words, next(iter(refused.values())))
