"""The scores of docs/saliency.md are run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx import MacsCost

PAGE = Path(halp_fx.__file__).resolve().parent.parent / "docs" / "saliency.md"
X, Y = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 10, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4),
    )  # fmt: skip
    with torch.no_grad():
        model[1].weight.uniform_(0.1, 2)
    return model.eval()


@pytest.fixture(scope="module")
def names():
    """What the example defines, its last line left away."""
    if not PAGE.exists():
        pytest.skip("installed without its documentation")
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "def lamp" in block
    )
    found = {}
    exec(compile(code.rpartition("small = ")[0], str(PAGE), "exec"), found)
    return found


def scored(names, which):
    return names[which]([(X, Y)], F.cross_entropy) if which == "hessian_diagonal" else names[which]


@pytest.mark.parametrize("which", ["random_scores", "lamp", "norm_scale", "hessian_diagonal"])
def test_prunes(names, which):
    small = halp_fx.prune(
        network(), 0.5, X[:1], importance=scored(names, which), latency=MacsCost(), round_to=1, progress=False,
        data=[(X, Y)],
    )  # fmt: skip
    assert small.halp.met
    assert small.halp.saliency == "custom"


def test_their_numbers(names):
    model = network()
    first, second = halp_fx.channel_groups(model, X[:1]).prunable
    norms = model[0].weight.detach().double().square().sum((1, 2, 3)).numpy()
    expected = [n / norms[norms >= n].sum() for n in norms]
    assert names["lamp"](first, model) == pytest.approx(expected)
    assert names["norm_scale"](first, model) == pytest.approx(model[1].weight.detach().numpy())
    assert names["norm_scale"](second, model) == pytest.approx(np.ones(10))
    F.cross_entropy(model(X), Y).backward()
    cost = (model[3].weight * model[3].weight.grad).detach().square().sum((1, 2, 3)) / 2
    assert scored(names, "hessian_diagonal")(second, model) == pytest.approx(cost.numpy())
    assert names["random_scores"](first).shape == (12,)
