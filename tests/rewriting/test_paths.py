"""Forwards that take several paths: the twin, and a network without branches, are right on each of them."""

from __future__ import annotations

import pytest
import torch
from oracle import Net, equals_twin_closely, half_plan, random_plan, randomized, relative_error
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx import Plan, TraceError
from halp_fx.coupling.branches import without
from halp_fx.coupling.checking import check_coupling
from halp_fx.coupling.residual import find_branches
from halp_fx.trials.branches import tried


def image(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.rand(2, 3, 6, 6, dtype=torch.float64, generator=generator)


EASY, HARD, HARDEST = image(), image(5), image(50)


def level(x):
    """How hard an image is: which path is taken."""
    return 0 if x.mean() < 1 else 1 if x.mean() < 10 else 2


def path_of(*functions):
    """A network that does one of several things with its features, whatever the inputs say."""
    layers = {
        "a": nn.Conv2d(3, 8, 1),
        "b": nn.Conv2d(8, 8, 1),
        "c": nn.Conv2d(8, 8, 1),
        "group": nn.GroupNorm(1, 8),
        "other": nn.GroupNorm(1, 8),
        "head": nn.Linear(8, 3),
    }

    def forward(self, x):
        h = functions[min(level(x), len(functions) - 1)](self, self.c(self.b(self.a(x).relu()).relu()))
        return self.head(h.mean((2, 3)))

    torch.manual_seed(0)
    return randomized(Net(forward, **layers)).eval()


def both(self, h):
    return self.other(self.group(h))


PATHS = {
    "a norm on the first path": (both, lambda self, h: h + self.other(self.group(h) * 2)),
    "a norm on the second path": (lambda self, h: h + 0 * both(self, h).mean(), both),
    "no parameters": (lambda self, h: both(self, h.softmax(1)), lambda self, h: both(self, h.relu())),
    "the norms swapped": (both, lambda self, h: self.group(self.other(h))),
    "one norm skipped": (both, lambda self, h: self.other(h)),
}


@pytest.mark.parametrize("kind", PATHS)
def test_the_twin_restricts_what_each_path_runs(kind):
    model = path_of(*PATHS[kind])
    coupling = halp_fx.channel_groups(model, [EASY, HARD])
    plan = half_plan(coupling)
    assert "c" in plan
    small = halp_fx.rewrite(model, plan, [EASY, HARD], coupling=coupling)
    twin = halp_fx.zero(model, plan, [EASY, HARD], coupling=coupling)
    with torch.no_grad():
        for inputs in (EASY, HARD, EASY):
            assert relative_error(small(inputs), twin(inputs)) < 1e-9
            assert relative_error(model(inputs), twin(inputs)) > 1e-6


def test_a_path_that_no_example_takes_is_an_error_of_the_twin():
    model = path_of(both, lambda self, h: self.other(h), lambda self, h: self.other(self.group(self.other(h))))
    coupling = halp_fx.channel_groups(model, [EASY, HARD])
    twin = halp_fx.zero(model, half_plan(coupling), [EASY, HARD], coupling=coupling)
    with pytest.raises(TraceError, match="none of the examples"):
        twin(HARDEST)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.two(self.one(self.norm(x)).relu())


class Blocks(nn.Module):
    """Residual blocks, of which subclasses do something else with what is hard."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second, self.extra = nn.Linear(3, 8), Block(), Block(), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def hard(self, h):
        return self.second(self.first(self.extra(h)))

    def forward(self, x):
        h = self.stem(x.permute(0, 2, 3, 1).flatten(1, 2))
        h = self.second(self.first(h)) if level(x) == 0 else self.hard(h)
        return self.head(self.norm(h).mean(1))


class Skipped(Blocks):
    """Another path runs one of the blocks only."""

    def hard(self, h):
        return self.second(self.extra(h))


class Reordered(Blocks):
    """Another path reads the shortcut from elsewhere."""

    def hard(self, h):
        return self.first(self.second(self.extra(h)))


class Picked(Blocks):
    """Another path runs a layer of a block, and not the block."""

    def hard(self, h):
        return self.second(self.first.one(self.extra(h)))


class Twice(Blocks):
    """Another path runs a block twice."""

    def hard(self, h):
        return self.second(self.first(self.first(self.extra(h))))


@pytest.mark.parametrize("kind", [Blocks, Skipped, Reordered])
def test_dropped_branches_are_gone_on_every_path(kind):
    torch.manual_seed(0)
    model, examples = randomized(kind()).eval(), [EASY, HARD]
    coupling = halp_fx.channel_groups(model, examples)
    branches = tried(model, coupling, examples)
    assert [b.name for b in branches.removable] == ["first", "second"]
    for names in (("first",), ("first", "second")):
        for plan in (Plan({}, names), Plan(half_plan(coupling).kept, names)):
            small = halp_fx.rewrite(model, plan, examples, coupling=coupling)
            twin = halp_fx.zero(model, plan, examples, coupling=coupling)
            with torch.no_grad():
                for inputs in examples:
                    assert relative_error(small(inputs), twin(inputs)) < 1e-9
            assert relative_error(model(EASY), twin(EASY)) > 1e-6


@pytest.mark.parametrize(("kind", "why"), [(Picked, "reads first.one."), (Twice, "with other parts of the network")])
def test_a_branch_that_another_path_needs_stays(kind, why):
    model, examples = randomized(kind()).eval(), [EASY, HARD]
    coupling = halp_fx.channel_groups(model, examples)
    branches = tried(model, coupling, examples)
    assert [b.name for b in branches.removable] == ["second"]
    assert why in branches.refused["first"]
    assert "example 2" in branches.refused["first"]


class Plain(Blocks):
    """There is one path."""

    def __init__(self):
        super().__init__()
        del self.extra

    def forward(self, x):
        h = self.second(self.first(self.stem(x.permute(0, 2, 3, 1).flatten(1, 2))))
        return self.head(self.norm(h).mean(1))


@pytest.mark.parametrize(("kind", "examples"), [(Plain, [EASY]), (Blocks, [EASY, HARD])])
def test_the_coupling_of_what_is_left_holds(kind, examples):
    """With the groups of a branch all that counts them goes: the twin of the rest is right, too."""
    torch.manual_seed(0)
    model = randomized(kind()).eval()
    coupling = halp_fx.channel_groups(model, examples)
    gone = find_branches(coupling).named(["first"])
    assert gone[0].groups, "no group's number changes: nothing is shown"
    rest = without(coupling, gone)
    check_coupling(rest)
    left = halp_fx.rewrite(model, Plan({}, ("first",)), examples, coupling=coupling)
    plan = half_plan(rest)
    small = halp_fx.rewrite(left, plan, examples, coupling=rest)
    twin = halp_fx.zero(left, plan, examples, coupling=rest)
    with torch.no_grad():
        for inputs in examples:
            assert relative_error(small(inputs), twin(inputs)) < 1e-9
            assert relative_error(left(inputs), twin(inputs)) > 1e-6


RECURRENT = {
    "gru": lambda: nn.GRU(8, 10, batch_first=True),
    "lstm": lambda: nn.LSTM(8, 10, num_layers=2, bidirectional=True, batch_first=True),
    "tanh": lambda: nn.RNN(8, 10, batch_first=True),
    "relu": lambda: nn.RNN(8, 10, nonlinearity="relu", batch_first=True),
}


class Compared(nn.Module):
    """Images and sequences, compared by their cosines: the matrix product is restricted to what stays."""

    def __init__(self, kind, packed=False):
        super().__init__()
        self.image, self.left = nn.Conv2d(3, 12, 3), nn.Linear(12, 14, bias=False)
        self.words = RECURRENT[kind]()
        self.right = nn.Linear(10 * (1 + self.words.bidirectional), 14, bias=False)
        self.packed = packed

    def forward(self, x):
        a = self.left(self.image(x).relu().mean((2, 3)))
        words = x.flatten(1)[:, :24].reshape(-1, 3, 8)
        if self.packed:
            words = nn.utils.rnn.pack_padded_sequence(words, [3] * len(x), batch_first=True)
            last = nn.utils.rnn.pad_packed_sequence(self.words(words)[0], batch_first=True)[0][:, -1]
        else:
            last = self.words(words)[0][:, -1]
        b = self.right(last)
        # Numbers of classes are looked at, and a largest one taken, with values only.
        picked = F.one_hot(torch.arange(len(x)), 5).to(x).amax() * b.amax(1, keepdim=True).sigmoid()
        return F.normalize(a, dim=1) @ F.normalize(b + picked, dim=1).t()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", RECURRENT)
def test_what_was_recorded_as_one_operator_counts_as_one(kind, packed):
    """The twin ran recurrent layers in pieces, and what was restricted behind them was another operator than it meant:
    a wrong twin, in silence."""
    torch.manual_seed(0)
    model, x = randomized(Compared(kind, packed)).eval(), torch.randn(3, 3, 6, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {"image", "left"} <= {g.name for g in coupling.prunable}, coupling.frozen
    for seed in range(3):
        equals_twin_closely(model, random_plan(coupling, seed), x, coupling)
