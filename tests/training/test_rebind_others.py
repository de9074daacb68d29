"""Optimizers beyond PyTorch's plain ones go on with the smaller network, or are refused by name."""

from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch
from oracle import half_plan
from test_rebind import X, built_afresh, error, indices, network, step, stepped
from torch.nn import functional as F

import halp_fx
from halp_fx import TrainingError

COUPLING = halp_fx.channel_groups(network(), X)
HALF = half_plan(COUPLING)
RATE = 1e-3


def timm(kind, **options):
    made = pytest.importorskip("timm.optim", reason="not installed: timm")
    return lambda p: made.create_optimizer_v2(p, opt=kind, lr=RATE, weight_decay=0.01, momentum=0.9, **options)


def lookahead(parameters):
    made = pytest.importorskip("timm.optim", reason="not installed: timm")
    return made.Lookahead(torch.optim.SGD(parameters, 0.01, momentum=0.9), k=2)


def small_of(model, plan=HALF):
    return halp_fx.rewrite(model, plan, X, coupling=COUPLING, check=False)


def inside(optimizer):
    """Whose state it is."""
    return getattr(optimizer, "_base_optimizer", optimizer)


TIMM = (
    *("adabelief", "adamp", "adamuon", "adan", "adopt", "lamb", "laprop", "lars", "lion", "madgrad", "mars", "muon"),
    *("nadamw", "novograd", "radabelief", "rmsproptf", "sgdp", "sgdw", "lookahead"),
)


@pytest.mark.parametrize("kind", TIMM)
def test_one_more_step_is_that_of_a_network_built_afresh(kind):
    make = lookahead if kind == "lookahead" else timm(kind)
    model, optimizer = stepped(make)
    small = small_of(model)
    twin, other = built_afresh(small, inside(optimizer), model, HALF, COUPLING, make)
    inside(other).state.update(other.state)
    for group, known in zip(other.param_groups, optimizer.param_groups, strict=True):
        group.update({key: copy.deepcopy(value) for key, value in known.items() if key != "params"})
    before = copy.deepcopy(small)
    halp_fx.rebind(optimizer, model, small, HALF, X, coupling=COUPLING)
    step(small, optimizer)
    step(twin, other)
    assert error(small, twin) <= 1e-8
    assert error(small, before) > 1e-5, "the step changed nothing: the comparison proves nothing"


def torch_factors(p):
    return torch.optim.Adafactor(p, 0.01)


def transformers_factors(p):
    made = pytest.importorskip("transformers.optimization", reason="not installed: transformers")
    return made.Adafactor(p, lr=0.01, relative_step=False, scale_parameter=False)


FACTORED = {
    "torch": (torch_factors, HALF),
    "transformers": (transformers_factors, HALF),
    "timm": (timm("adafactor", min_dim_size_to_factor=3), HALF),
    "timm, some no longer factored": (timm("adafactor", min_dim_size_to_factor=4), HALF),
    "big vision": (timm("adafactorbv", min_dim_size_to_factor=4), HALF),
    "big vision, some no longer factored": (timm("adafactorbv", min_dim_size_to_factor=5), HALF),
    "big vision, along other axes": (timm("adafactorbv", min_dim_size_to_factor=3), halp_fx.Plan({"4": range(3)})),
}


def estimate(state, parameter):
    """Second moments as the optimizer takes them, of the parameter's shape; the axes are found by lengths."""
    for r, c in (("row_var", "col_var"), ("exp_avg_sq_r", "exp_avg_sq_c")):
        if r in state:  # With lengths of one: the axis that C lost is one along which R is whole.
            axis = next((d for d in range(parameter.ndim) if state[c].shape[d] != parameter.shape[d]), -2)
            return state[r] * state[c] / state[r].mean(axis, keepdim=True)
    if "exp_avg_sq_row" in state:
        r, c = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
        for i, j in combinations(range(parameter.ndim), 2):
            if [r.shape, c.shape] == [parameter.shape[:d] + parameter.shape[d + 1 :] for d in (j, i)]:
                return r.unsqueeze(j) * c.unsqueeze(i) / r.unsqueeze(j).mean(i, keepdim=True)
    return state["exp_avg_sq"] if "exp_avg_sq" in state else state["variance"]


@pytest.mark.parametrize("case", FACTORED)
def test_factored_moments_stand_for_what_stays_in_the_form_of_a_fresh_optimizer(case):
    make, plan = FACTORED[case]
    model, optimizer = stepped(make)
    small, picks = small_of(model, plan), indices(model, plan, COUPLING)
    names = {id(p): name for name, p in model.named_parameters()}
    known = {names[id(p)]: estimate(state, p).reshape(-1) for p, state in optimizer.state.items()}
    factored = sum(any(key.endswith(("row", "_r", "row_var")) for key in s) for s in optimizer.state.values())
    assert factored >= 3
    halp_fx.rebind(optimizer, model, small, plan, X, coupling=COUPLING)
    for name, parameter in small.named_parameters():
        found = estimate(optimizer.state[parameter], parameter)
        torch.testing.assert_close(found, known[name][picks[name]], rtol=1e-12, atol=0, check_dtype=False)
    twin = copy.deepcopy(small)
    fresh = make([{"params": list(twin.parameters())}])
    step(twin, fresh)
    for parameter, other in zip(small.parameters(), twin.parameters(), strict=True):
        wanted = {key: value.shape for key, value in fresh.state[other].items() if isinstance(value, torch.Tensor)}
        own = {key: v.shape for key, v in optimizer.state[parameter].items() if isinstance(v, torch.Tensor)}
        assert own == wanted
    before = copy.deepcopy(small)
    step(small, optimizer)
    assert 1e-6 < error(small, before) < 10


def test_two_optimizers_take_the_step_of_a_network_built_afresh():
    """Muon, which is for matrices alone, beside AdamW."""

    def make(model):
        matrices = [p for p in model.parameters() if p.ndim == 2]
        rest = [p for p in model.parameters() if p.ndim != 2]
        return torch.optim.Muon(matrices, 0.01), torch.optim.AdamW(rest, 0.01)

    def steps(model, both):
        model.zero_grad()
        (model(X) * torch.arange(5, dtype=X.dtype)).square().mean().backward()
        for optimizer in both:
            optimizer.step()

    model = network().train()
    both = make(model)
    for _ in range(3):
        steps(model, both)
    small, picks = small_of(model), indices(model, HALF, COUPLING)
    twin = copy.deepcopy(small)
    others, names = make(twin), {id(p): name for name, p in model.named_parameters()}
    for optimizer, other in zip(both, others, strict=True):
        for parameter, state in optimizer.state.items():
            name = names[id(parameter)]
            other.state[twin.get_parameter(name)] = {
                key: v.reshape(-1)[picks[name]].clone() if v.numel() > 1 else v.clone() for key, v in state.items()
            }
    halp_fx.rebind(list(both), model, small, HALF, X, coupling=COUPLING)
    steps(small, both)
    steps(twin, others)
    assert error(small, twin) <= 1e-12


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("kron", r"Kron keeps 'Q' \(a list\) of 0.weight"),
        ("adahessian", "Adahessian takes second derivatives"),
    ],
)
def test_what_cannot_follow_is_named(kind, message):
    make, model = timm(kind), network().train()
    optimizer = make(model.parameters())
    if kind == "kron":  # As after its first step, which compiles.
        optimizer.state[model[0].weight]["Q"] = [torch.eye(8), torch.eye(3)]
    small, known = small_of(model), [id(p) for group in optimizer.param_groups for p in group["params"]]
    with pytest.raises(TrainingError, match=message):
        halp_fx.rebind(optimizer, model, small, HALF, X, coupling=COUPLING)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == known


class Words(torch.nn.Module):
    """Its table of words has sparse gradients."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = torch.nn.Embedding(10, 8, sparse=True), torch.nn.Linear(8, 5)
        self.middle = torch.nn.Linear(8, 8)

    def forward(self, numbers):
        return self.head(torch.relu(self.middle(self.words(numbers).mean(1))))


def test_sparse_gradients_are_refused_by_name_and_their_state_is_cut():
    model, numbers = Words().double().train(), torch.tensor([[1, 2], [3, 4]])

    def steps(own, optimizer):
        own.zero_grad()
        F.cross_entropy(own(numbers), torch.tensor([0, 1])).backward()
        optimizer.step()

    optimizer = torch.optim.SparseAdam(model.words.parameters(), 0.01)
    pruner = halp_fx.Pruner(model, 0.4, numbers, latency="macs")
    steps(model, optimizer)
    with pytest.raises(TrainingError, match=r"the gradient of words.weight is sparse.*sparse=False"):
        pruner.step()
    plan = halp_fx.Plan({"words": range(0, 8, 2)})
    small = halp_fx.rewrite(model, plan, numbers)
    twin = copy.deepcopy(small)
    other = torch.optim.SparseAdam(twin.words.parameters(), 0.01)
    state = optimizer.state[model.words.weight]
    other.state[twin.words.weight] = {key: v[:, ::2].clone() if key != "step" else v for key, v in state.items()}
    halp_fx.rebind(optimizer, model, small, plan, numbers)
    steps(small, optimizer)
    steps(twin, other)
    assert error(small, twin) <= 1e-12
    assert optimizer.state[small.words.weight]["exp_avg"].shape == (10, 4)
