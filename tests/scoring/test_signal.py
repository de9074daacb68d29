"""Scores that say nothing never mean "cut to the floor"."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from oracle import Net
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune as masking

import halp_fx
from halp_fx import MacsCost, SaliencyError

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCH = (IMAGE.repeat(3, 1, 1, 1), torch.tensor([0, 1, 2, 3, 0, 1]))
WIDTHS = (16, 24, 16)


def chain(zero_head=False):
    a, b, c = WIDTHS
    model = nn.Sequential(
        nn.Conv2d(3, a, 3, padding=1), nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, 3, padding=1), nn.ReLU(),
        nn.Conv2d(b, c, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(c, 4),
    )  # fmt: skip
    if zero_head:
        nn.init.zeros_(model[-1].weight)
    return model


def pruned(model, budget=0.5, **arguments):
    return halp_fx.prune(model, budget, IMAGE, latency=MacsCost(), progress=False, **arguments).halp


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"data": [BATCH], "loss_fn": F.cross_entropy}, r"in all 3 groups \(0, 3, 5\).*classifier"),
        ({"importance": lambda g: torch.zeros(g.size)}, r"all 3 groups \(0, 3, 5\)"),
        ({"data": [BATCH], "loss_fn": lambda o, t: (o.detach() ** 2).sum()}, "detached"),
        ({"data": [BATCH], "loss": lambda m, b: torch.zeros((), requires_grad=True) * 1}, "does not depend"),
    ],
    ids=["zero-initialised classifier", "importance", "detached", "constant loss"],
)  # fmt: skip
def test_no_signal_anywhere_is_an_error(arguments, words):
    with pytest.raises(SaliencyError, match=words):
        pruned(chain(zero_head=True), **arguments)


def test_all_weights_zero_is_an_error():
    model = chain()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with pytest.raises(SaliencyError, match="the weights that produce them are zero"):
        pruned(model)


def near_uniform(report, spread=0.35):
    shares = [g.kept / g.size for g in report.groups]
    return max(shares) - min(shares) <= spread


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75])
def test_equal_importance_gives_near_uniform_widths(budget):
    report = pruned(chain(), budget, importance=lambda g: np.full(g.size, 3.0), round_to=1)
    assert near_uniform(report)
    assert report.measured / report.dense > budget - 0.05
    assert any("the same for every channel" in note for note in report.notes)


def test_groups_that_are_worth_the_same_per_channel_within_are_not_cut_to_the_floor():
    """What a group is worth counts; that its last channel is worth as much as its first is not meant."""
    report = pruned(chain(), 0.5, importance=lambda g: [2.0 if g.name == "3" else 1.0] * g.size, round_to=1)
    kept = {g.name: g.kept / g.size for g in report.groups}
    assert min(kept.values()) > 0.3
    assert max(kept, key=kept.__getitem__) == "3"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b, self.m = (
            nn.Conv2d(16, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 16, 1),
            nn.BatchNorm2d(16),
        )
        nn.init.zeros_(self.m.weight)

    def forward(self, x):
        return (x + self.m(self.b(self.n(self.a(x)).relu()))).relu()


def zero_init_residual():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(16, 4)
    )
    return model, {"2.a", "3.a"}


def unused_head():
    def run(self, x):
        x = self.a(x).relu()
        return self.fc(x.mean((2, 3))), self.d(self.c(x).relu())

    model = Net(run, a=nn.Conv2d(3, 16, 3), fc=nn.Linear(16, 4), c=nn.Conv2d(16, 16, 3), d=nn.Conv2d(16, 4, 1))
    return model, {"c"}


def stopped_gradients():
    def run(self, x):
        with torch.no_grad():
            x = self.b(self.a(x).relu())
        return self.fc(self.c(x.relu()).relu().mean((2, 3)))

    layers = {"a": nn.Conv2d(3, 16, 3), "b": nn.Conv2d(16, 16, 3), "c": nn.Conv2d(16, 16, 1), "fc": nn.Linear(16, 4)}
    return Net(run, **layers), {"a", "b"}


def loss_of_first(output, target):
    return F.cross_entropy(output[0] if isinstance(output, tuple) else output, target)


@pytest.mark.parametrize("make", [zero_init_residual, unused_head, stopped_gradients])
def test_groups_without_a_signal_are_named_and_stay_about_as_wide(make):
    model, silent = make()
    coupling = halp_fx.channel_groups(model, IMAGE)
    found = halp_fx.score(model, coupling, [BATCH], loss_of_first)
    assert set(found.silent) == silent
    heard = [s.mean() for name, s in found.scores.items() if name not in silent]
    for name in silent:
        assert found.scores[name].mean() == pytest.approx(np.mean(heard))
    report = pruned(model, 0.5, data=[BATCH], loss_fn=loss_of_first, steps=1, round_to=1)
    (note,) = [n for n in report.notes if "no signal" in n]
    assert all(name in note for name in silent)
    kept = {g.name: g.kept / g.size for g in report.groups}
    assert all(0.25 < kept[name] < 1 for name in silent), kept
    assert report.measured / report.dense > 0.42


@pytest.mark.parametrize(("budget", "left"), [(0.9, range(9, 16)), (0.6, range(8, 9))])
def test_dead_channels_go_first_and_no_more_of_them_than_the_budget_asks_for(budget, left):
    torch.manual_seed(0)
    model = chain().eval()
    dead = set(range(8))
    with torch.no_grad():
        for tensor in (model[1].weight, model[1].bias):
            tensor[sorted(dead)] = 0
    report = pruned(model, budget, data=[BATCH], round_to=1)
    gone = set(range(16)) - set(report.plan["0"])
    assert gone <= dead
    assert len(report.plan["0"]) in left
    assert 0.96 * report.budget < report.measured <= report.budget  # A channel costs 0.04 of it.


def test_a_group_that_is_worth_nothing_to_a_callable_is_named():
    report = pruned(
        chain(), importance=lambda g: torch.zeros(g.size) if g.name == "3" else torch.rand(g.size), round_to=1
    )
    assert any("no signal in 1 groups (3)" in note for note in report.notes)
    assert {g.name: g.kept for g in report.groups}["3"] > 4


def drawn(kind, size, rng):
    rows = {
        "random": rng.random(size), "equal": np.ones(size), "partly zero": rng.random(size) * (rng.random(size) < 0.5),
        "silent": np.zeros(size), "heavy": rng.pareto(1.0, size),
    }  # fmt: skip
    return rows[kind]


@pytest.mark.parametrize("seed", range(12))
def test_cost_is_within_one_step_of_the_budget(seed):
    """Whatever the scores are: widening any one group by one of its steps would leave the budget, or all are whole."""
    rng, pick = np.random.default_rng(seed), random.Random(seed)
    kinds = [pick.choice(["random", "equal", "partly zero", "silent", "heavy"]) for _ in range(2)] + ["random"]
    pick.shuffle(kinds)
    scores = {name: drawn(kind, size, rng) for name, kind, size in zip("035", kinds, WIDTHS, strict=True)}
    model, budget = chain(), pick.choice([0.2, 0.35, 0.5, 0.7, 0.9])
    report = pruned(model, budget, importance=lambda g: scores[g.name], round_to=2)
    assert report.met
    coupling = halp_fx.channel_groups(model, IMAGE)
    widths = {g.name: g.kept for g in report.groups}
    total = {g.name: g.size for g in coupling.groups}
    wider = [
        MacsCost().total(coupling, {**total, **widths, g.name: min(g.kept + 2, g.size)})
        for g in report.groups
        if g.kept < g.size
    ]
    step = max((w - report.measured for w in wider), default=0.0)
    assert report.measured + step >= report.budget - 1e-6, (kinds, budget, widths)


def test_a_result_far_below_its_budget_says_so():
    """One choice of width for each group: whole, or half."""
    report = pruned(chain(), 0.9, round_to=8, min_keep=8)
    if report.measured < report.budget * 0.98:
        assert any("undercut" in note for note in report.notes)
    coarse = pruned(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)), 0.9, round_to=8)
    assert coarse.measured / coarse.dense == pytest.approx(0.5)
    assert any("undercut by 44" in note for note in coarse.notes)


def test_masked_channels_and_signal_do_not_mix():
    """A half masked layer has a signal; its masked channels go before any other."""
    model = chain()
    masking.ln_structured(model[3], "weight", 0.5, n=2, dim=0)
    scores = halp_fx.score(model, halp_fx.channel_groups(model, IMAGE), [BATCH], F.cross_entropy)
    assert scores.silent == ()
    assert (scores.scores["3"] == 0).sum() == WIDTHS[1] // 2
