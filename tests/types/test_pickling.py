"""Values between stages pickle: for spawned workers, and to be kept."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision
from oracle import half_plan
from torch import nn

import halp_fx
from halp_fx import InfeasibleError, MacsCost, TraceError

IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def models():
    class Local(nn.Module):
        """A class that no other process can import, and operators that are recorded whole."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.lstm, self.fc = (
                nn.Conv2d(3, 8, 3),
                nn.Conv2d(8, 8, 3, groups=2),
                nn.LSTM(8, 6),
                nn.Linear(6, 4),
            )
            self.register_buffer("order", torch.arange(8).flip(0))

        def forward(self, x):
            x = self.b(self.a(x).relu())[:, self.order].softmax(1).mean((2, 3))
            return self.fc(self.lstm(x[None])[0][-1])

    vit = torchvision.models.VisionTransformer(32, 16, 2, 2, 24, 48)
    return {"resnet18": torchvision.models.resnet18(), "local": Local(), "vit": vit}


@pytest.mark.parametrize("name", ["resnet18", "local", "vit"])
def test_coupling(name):
    model = models()[name].eval()
    coupling = halp_fx.channel_groups(model, IMAGE)
    assert coupling.graph.number_of_edges()
    for again in (pickle.loads(pickle.dumps(coupling)), copy.deepcopy(coupling)):
        assert str(again.traced.graph) == str(coupling.traced.graph)
        assert [(g.name, g.size, g.frozen) for g in again.groups] == [
            (g.name, g.size, g.frozen) for g in coupling.groups
        ]
        assert again.graph.number_of_edges() == coupling.graph.number_of_edges()
        assert MacsCost().total(again) == MacsCost().total(coupling)
        scores, other = halp_fx.score(model, coupling).scores, halp_fx.score(model, again).scores
        assert all((scores[g] == other[g]).all() for g in scores)
        plan = half_plan(coupling)
        small = halp_fx.rewrite(model, plan, IMAGE, coupling=again)
        torch.testing.assert_close(small(IMAGE), halp_fx.rewrite(model, plan, IMAGE, coupling=coupling)(IMAGE))
        twins = [halp_fx.zero(model, plan, IMAGE, coupling=c)(IMAGE) for c in (coupling, again)]
        torch.testing.assert_close(*twins)
        found = [[b.name for b in halp_fx.find_branches(c).removable] for c in (coupling, again)]
        assert found[0] == found[1]


def test_other_values():
    model = torchvision.models.resnet18().eval()
    coupling = halp_fx.channel_groups(model, IMAGE)
    saliency = halp_fx.score(model, coupling)
    again = pickle.loads(pickle.dumps(saliency))
    assert all((again.scores[g] == saliency.scores[g]).all() for g in saliency.scores)
    report = halp_fx.prune(model, 0.5, IMAGE, latency=MacsCost(), progress=False).halp
    assert pickle.loads(pickle.dumps(report)) == report
    plan = halp_fx.Plan({"conv1": [1, 2]}, ("layer1.0",))
    assert pickle.loads(pickle.dumps(plan)) == plan
    profile = halp_fx.profile(model, IMAGE, cost=MacsCost())
    assert str(pickle.loads(pickle.dumps(profile))) == str(profile)
    assert len(pickle.loads(pickle.dumps(halp_fx.find_branches(coupling))).removable) == 5


def test_errors():
    error = pickle.loads(pickle.dumps(InfeasibleError("too little", 3.0, ("a", "b"))))
    assert (str(error), error.minimum, error.groups) == ("too little", 3.0, ("a", "b"))
    error = pickle.loads(pickle.dumps(TraceError("fails", torch.fx.Graph())))
    assert (str(error), error.recorded, error.call) == ("fails", None, None)
    assert isinstance(error, halp_fx.ModelError)
