"""An optimizer goes on with the smaller network as if it had known no other."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import half_plan
from torch import nn
from torch.optim import swa_utils

import halp_fx
from halp_fx import TrainingError

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Block(), nn.Conv2d(8, 12, 1), nn.PReLU(12)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(12, 5)).double()


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "SGD foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "Adam fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.01),
}


def step(model, optimizer):
    optimizer.zero_grad()
    (model(X) * torch.arange(5, dtype=X.dtype)).square().mean().backward()
    optimizer.step()


def stepped(make):
    """A network after three steps, and its optimizer with two groups."""
    model = network().train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = make([{"params": matrices}, {"params": others, "lr": 0.003}])
    for _ in range(3):
        step(model, optimizer)
    return model, optimizer


def trained(make):
    """The same, and a plan that halves every group."""
    model, optimizer = stepped(make)
    coupling = halp_fx.channel_groups(model, X)
    return model, optimizer, coupling, half_plan(coupling)


def indices(model, plan, coupling):
    """What stays of each parameter, found in another way than by the code under test: where a network of which every
    parameter holds the numbers of its own places went."""
    places = copy.deepcopy(model)
    for parameter in places.parameters():
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
    small = halp_fx.rewrite(places, plan, X, coupling=coupling)
    return {name: p.detach().long() for name, p in small.named_parameters()}


def built_afresh(small, optimizer, model, plan, coupling, make):
    """The oracle: a new optimizer of a copy of the small network, with state picked element by element."""
    twin = copy.deepcopy(small)
    new, picks = dict(twin.named_parameters()), indices(model, plan, coupling)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    other = make([{"params": [new[n] for n in groups[0]]}, {"params": [new[n] for n in groups[1]], "lr": 0.003}])
    for parameter, state in optimizer.state.items():
        name = names[id(parameter)]
        other.state[new[name]] = {
            key: value.reshape(-1)[picks[name]].clone()
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.ndim
            else copy.deepcopy(value)
            for key, value in state.items()
        }
    return twin, other


def error(a, b):
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((x - y).detach().norm() / y.detach().norm()) for x, y in pairs)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_one_more_step_is_that_of_a_network_built_afresh(kind):
    make = OPTIMIZERS[kind]
    model, optimizer, coupling, plan = trained(make)
    small = halp_fx.rewrite(model, plan, X, coupling=coupling)
    twin, other = built_afresh(small, optimizer, model, plan, coupling, make)
    before = copy.deepcopy(small)
    assert halp_fx.rebind(optimizer, model, small, plan, X, coupling=coupling) is optimizer
    step(small, optimizer)
    step(twin, other)
    assert error(small, twin) <= 1e-12
    assert error(small, before) > 1e-4, "the step changed nothing: the comparison proves nothing"
    assert [len(g["params"]) for g in optimizer.param_groups] == [len(g["params"]) for g in other.param_groups]
    assert optimizer.param_groups[1]["lr"] == 0.003


def test_factored_moments_are_cut_along_what_they_have():
    make = lambda p: torch.optim.Adafactor(p, 0.01)  # noqa: E731
    model, optimizer, coupling, plan = trained(make)
    small = halp_fx.rewrite(model, plan, X, coupling=coupling)
    halp_fx.rebind(optimizer, model, small, plan, X, coupling=coupling)
    for parameter, state in optimizer.state.items():
        for key in ("row_var", "col_var", "variance"):
            if key in state:
                assert all(n in (m, 1) for n, m in zip(state[key].shape, parameter.shape, strict=True))
    step(small, optimizer)


def test_schedulers_and_the_state_dict_go_on():
    model, optimizer, coupling, plan = trained(OPTIMIZERS["AdamW"])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    small = halp_fx.rewrite(model, plan, X, coupling=coupling)
    halp_fx.rebind(optimizer, model, small, plan, X, coupling=coupling)
    step(small, optimizer)
    schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.005, 0.0015]
    saved = copy.deepcopy(optimizer.state_dict())
    matrices = [p for p in small.parameters() if p.ndim > 1]
    others = [p for p in small.parameters() if p.ndim <= 1]
    again = torch.optim.AdamW([{"params": matrices}, {"params": others}])
    again.load_state_dict(saved)
    assert {tuple(s["exp_avg"].shape) for s in again.state.values()} == {tuple(p.shape) for p in small.parameters()}


def test_options_for_graphs_on_a_gpu_stay():
    """Capturable optimizers run on a GPU only; their state is cut here as any other."""
    model, optimizer, coupling, plan = trained(OPTIMIZERS["Adam"])
    for group in optimizer.param_groups:
        group["capturable"] = True
    small = halp_fx.rewrite(model, plan, X, coupling=coupling)
    halp_fx.rebind(optimizer, model, small, plan, X, coupling=coupling)
    assert all(g["capturable"] for g in optimizer.param_groups)
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].shape == parameter.shape
        assert state["step"].item() == 3


def test_parameters_of_dropped_branches_leave():
    model = network()
    optimizer = torch.optim.SGD(list(model.named_parameters()), 0.1, momentum=0.9)
    step(model, optimizer)
    coupling = halp_fx.channel_groups(model, X)
    plan = halp_fx.Plan(half_plan(coupling).kept, [b.name for b in halp_fx.find_branches(coupling).removable])
    assert plan.dropped
    small = halp_fx.rewrite(model, plan, X, coupling=coupling)
    halp_fx.rebind(optimizer, model, small, plan, X, coupling=coupling)
    held = dict(zip(optimizer.param_groups[0]["param_names"], optimizer.param_groups[0]["params"], strict=True))
    assert {n: id(p) for n, p in held.items()} == {n: id(p) for n, p in small.named_parameters()}
    assert len(held) == len(optimizer.state) == len(list(model.parameters())) - 6
    step(small, optimizer)


def test_averages_are_cut_alike():
    model, optimizer, coupling, plan = trained(OPTIMIZERS["SGD"])
    ema = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5))
    step(model, optimizer)
    ema.update_parameters(model)
    want = halp_fx.rewrite(ema.module, plan, X, coupling=coupling)
    small = halp_fx.rewrite(model, plan, X, coupling=coupling)
    halp_fx.rebind(optimizer, model, small, plan, X, coupling=coupling, averages=[ema, ema])  # Cut once.
    assert error(ema.module, want) == 0
    step(small, optimizer)
    ema.update_parameters(small)
    assert torch.isfinite(ema(X)).all()


def test_timm_averages_are_cut_alike():
    timm_utils = pytest.importorskip("timm.utils")
    model, optimizer, coupling, plan = trained(OPTIMIZERS["SGD"])
    ema = timm_utils.ModelEmaV3(model, decay=0.5)
    small = halp_fx.rewrite(model, plan, X, coupling=coupling)
    halp_fx.rebind(optimizer, model, small, plan, X, coupling=coupling, averages=[ema])
    ema.update(small)
    assert [p.shape for p in ema.module.parameters()] == [p.shape for p in small.parameters()]


def held(optimizer):
    return [id(p) for group in optimizer.param_groups for p in group["params"]], {
        id(p): {k: id(v) for k, v in s.items()} for p, s in optimizer.state.items()
    }


class Coded(torch.Tensor):
    """Numbers in blocks of few bits, with operators of its own, as of 8-bit optimizers."""

    @staticmethod
    def __new__(cls, shape):
        return torch.Tensor._make_wrapper_subclass(cls, shape)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(f"{function} of blocks")


CANNOT = ["stale", "foreign state", "coded state", "foreign average", "own average", "LBFGS", "no optimizer"]


@pytest.mark.parametrize("case", [*CANNOT, "other plan"])
def test_what_cannot_follow_is_named_and_nothing_changes(case):
    model, optimizer, coupling, plan = trained(OPTIMIZERS["SGD"])
    small, averages, known = halp_fx.rewrite(model, plan, X, coupling=coupling), [], held(optimizer)
    if case == "stale":
        optimizer, message = (
            torch.optim.SGD(network().named_parameters(), 0.1),
            r"parameter 0 of group 0 \('0.weight'\)",
        )
    elif case == "foreign state":
        parameter = model[3].conv1.weight
        optimizer.state[parameter]["factor"] = torch.eye(8)
        known, message = held(optimizer), r"keeps 'factor' \(shape \(8, 8\)\) of 3.conv1.weight"
    elif case == "coded state":
        optimizer.state[model[3].conv1.weight]["momentum_buffer"] = Coded((8, 8, 3, 3))
        known, message = (
            held(optimizer),
            r"keeps 'momentum_buffer' \(a Coded of shape \(8, 8, 3, 3\)\) of 3.conv1.weight",
        )
    elif case == "own average":
        averages, message = [nn.DataParallel(model)], "the network in DataParallel is the model"
    elif case == "foreign average":
        averages, message = [swa_utils.AveragedModel(nn.Linear(2, 2))], "0.weight is missing there"
    elif case == "LBFGS":
        optimizer, message = torch.optim.LBFGS(model.parameters()), "LBFGS keeps its state for all"
    elif case == "no optimizer":
        optimizer, message = object(), "object is no torch.optim.Optimizer"
    else:
        small, message = copy.deepcopy(model), "0.weight should have shape"
    with pytest.raises(TrainingError, match=message):
        halp_fx.rebind(optimizer, model, small, plan, X, coupling=coupling, averages=averages)
    if case in ("foreign state", "coded state", "foreign average", "own average", "other plan"):
        assert held(optimizer) == known
    assert model[0].out_channels == 8


def test_rewrite_and_prune_take_the_optimizer_along():
    model, optimizer, _, plan = trained(OPTIMIZERS["Adam"])
    small = halp_fx.rewrite(model, plan, X, optimizer=optimizer)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in small.parameters()}
    step(small, optimizer)
    call = {"latency": "macs", "progress": False, "round_to": 1}
    smaller = halp_fx.prune(small, 0.6, X, optimizer=optimizer, **call)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in smaller.parameters()}
    assert all(s["exp_avg"].shape == p.shape for p, s in optimizer.state.items())
    step(smaller, optimizer)
    with pytest.raises(TrainingError, match="parameter 0 of group 0"):
        halp_fx.rewrite(model, plan, X, optimizer=optimizer)
    with pytest.raises(TrainingError, match="parameter 0 of group 0"):
        halp_fx.prune(model, 0.6, X, optimizer=optimizer, **call)
