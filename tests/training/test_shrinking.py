"""A model is cut in place: every reference to it, to its modules and to its parameters stays."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from oracle import half_plan
from test_rebind import OPTIMIZERS, X, built_afresh, error, network, step, trained
from torch import nn
from torch.optim import swa_utils

import halp_fx
from halp_fx import Plan, PlanError, TrainingError
from halp_fx.model.inputs import normalize_examples
from halp_fx.training.shrinking import shrink


def state(model):
    return {n: t.clone() for n, t in model.state_dict().items()}


def assert_same(a, b):
    assert list(a) == list(b)
    assert all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW foreach", "RMSprop"])
def test_the_step_after_is_that_of_a_network_built_afresh(kind):
    make = OPTIMIZERS[kind]
    model, optimizer, coupling, plan = trained(make)
    twin, other = built_afresh(
        halp_fx.rewrite(model, plan, X, coupling=coupling), optimizer, model, plan, coupling, make
    )
    parameters, modules = list(model.parameters()), list(model.modules())
    loss = model(X).sum()  # The graph of a step lives on.
    loss.backward()
    shrink(model, plan, coupling, normalize_examples(model, X), optimizer)
    assert [id(p) for p in parameters] == [id(p) for p in model.parameters()]
    assert modules == list(model.modules())
    assert_same(state(model), state(twin) | dict(model.named_buffers()))
    step(model, optimizer)
    step(twin, other)
    assert error(model, twin) <= 1e-12
    assert model[0].out_channels == 4
    assert model[3].bn1.num_features == 4


def test_gradients_are_cut_with_their_parameters():
    model, optimizer, coupling, plan = trained(OPTIMIZERS["SGD"])
    optimizer.zero_grad()
    model(X).square().sum().backward()
    grads = copy.deepcopy(model)
    for parameter, own in zip(grads.parameters(), model.parameters(), strict=True):
        parameter.data = own.grad.clone()
    want = halp_fx.rewrite(grads, plan, X, coupling=coupling)
    shrink(model, plan, coupling, None, optimizer)
    for parameter, grad in zip(model.parameters(), want.parameters(), strict=True):
        assert torch.equal(parameter.grad, grad)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
        self.second.weight = self.first.weight
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        return self.head(torch.cat([self.first(x), self.second(x)], 1).mean((2, 3)))


def test_tied_parameters_stay_tied():
    model = Tied().double()
    coupling = halp_fx.channel_groups(model, X)
    shrink(model, half_plan(coupling), coupling, normalize_examples(model, X))
    assert model.first.weight is model.second.weight
    assert model(X).shape == (4, 2)


def test_frozen_and_hooked_parameters_stay():
    model = network()
    model[0].weight.requires_grad_(False)
    seen = []
    model[3].register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    model[4].weight.register_hook(lambda grad: seen.append(tuple(grad.shape)))
    layer = model[3].conv1
    coupling = halp_fx.channel_groups(model, X)
    seen.clear()
    shrink(model, half_plan(coupling), coupling, normalize_examples(model, X))
    assert layer.weight.shape == (4, 4, 3, 3)
    assert not model[0].weight.requires_grad
    seen.clear()
    model(X).sum().backward()
    assert seen == [4, (6, 4, 1, 1)]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large", "densenet121", "shufflenet_v2_x1_0", "vit"])
def test_equals_the_rewritten_copy(name):
    if name == "vit":
        make = torchvision.models.VisionTransformer
        model = make(32, 8, 2, 4, 32, 64, num_classes=5).eval()
        x = torch.randn(2, 3, 32, 32)
    else:
        model, x = torchvision.models.get_model(name, weights=None, num_classes=5).eval(), torch.randn(2, 3, 64, 64)
    coupling = halp_fx.channel_groups(model, x)
    plan = half_plan(coupling)
    small = halp_fx.rewrite(model, plan, x, coupling=coupling)
    parameters = list(model.parameters())
    shrink(model, plan, coupling)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert_same(state(model), state(small))
    with torch.no_grad():
        assert torch.equal(model(x), small(x))
    for (_, a), (_, b) in zip(model.named_modules(), small.named_modules(), strict=True):
        assert a.extra_repr() == b.extra_repr()


def test_branches_go_in_place_and_come_back():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    step(model, optimizer)
    model.eval()
    coupling = halp_fx.channel_groups(model, X)
    plan = Plan(half_plan(coupling).kept, [b.name for b in halp_fx.find_branches(coupling).removable])
    small, before, out = halp_fx.rewrite(model, plan, X, coupling=coupling), state(model), model(X)
    undo = shrink(model, plan, coupling, normalize_examples(model, X), optimizer)
    assert torch.equal(model(X), small(X))
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
    undo()
    assert_same(state(model), before)
    assert torch.equal(model(X), out)
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
    step(model.train(), optimizer)


@pytest.mark.parametrize("case", ["plan", "optimizer", "average"])
def test_all_or_nothing(case, monkeypatch):
    model, optimizer, coupling, plan = trained(OPTIMIZERS["Adam"])
    ema = swa_utils.AveragedModel(model)
    model(X).sum().backward()
    before, averaged = state(model), state(ema)
    grads = [p.grad for p in model.parameters()]
    moments = [s["exp_avg"] for s in optimizer.state.values()]
    if case == "plan":
        plan, wanted = Plan({"0": (0, 99)}), PlanError
    elif case == "optimizer":
        optimizer.state[model[3].conv2.weight]["odd"], wanted = torch.zeros(7), TrainingError
    else:
        wanted = RuntimeError
        monkeypatch.setattr("halp_fx.training.averages.narrow", lambda *a, **k: 1 / 0)
        wanted = ZeroDivisionError
    with pytest.raises(wanted):
        shrink(model, plan, coupling, None, optimizer, [ema.module])
    assert_same(state(model), before)
    assert_same(state(ema), averaged)
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert all(s["exp_avg"] is m for s, m in zip(optimizer.state.values(), moments, strict=True))
    assert model[0].out_channels == 8
    step(model, optimizer)


def test_a_compiled_step_runs_on():
    """What was compiled for the wide network is compiled once more."""
    model, optimizer, coupling, plan = trained(OPTIMIZERS["SGD"])
    compiled_graphs = []
    compiled = torch.compile(model, backend=lambda graph, inputs: compiled_graphs.append(graph) or graph.forward)
    for _ in range(2):
        compiled(X)
    wide = len(compiled_graphs)
    shrink(model, plan, coupling, None, optimizer)
    for _ in range(3):
        got = compiled(X)
    assert len(compiled_graphs) == 2 * wide
    step(compiled, optimizer)
    model.eval()
    torch.testing.assert_close(compiled(X), model(X))
    assert got.shape == (4, 5)
