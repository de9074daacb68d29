"""What networks without one branch or another have in common is computed once: as each by itself, to the last bit."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from shared_networks import CASES, SAME, Plain
from torch import nn

import halp_fx
from halp_fx import Plan
from halp_fx.coupling.residual import find_branches
from halp_fx.coupling.upstream import unaffected
from halp_fx.pruning import dropping
from halp_fx.pruning.networks import Network
from halp_fx.rewriting.applying import rewrite
from halp_fx.rewriting.dropping import dropped
from halp_fx.scoring import sharing
from halp_fx.scoring.divergence import Reference


def built(make, pixels, batches=2):
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for tensor in model.parameters():  # Zero-initialised layers would hide what goes on.
            if not tensor.any():
                tensor.normal_(std=0.1)
    data = [torch.randn(16, 3, pixels, pixels) for _ in range(batches)]
    coupling = halp_fx.channel_groups(model, data[0][:2])
    return model, data, coupling, find_branches(coupling).removable


def shared(model, data, coupling, branches, **options):
    """The copy that was changed, and what was found."""
    same = unaffected(coupling, branches)
    copy = rewrite(model, Plan(), data[0][:2], coupling=coupling, check=False)
    forms = {b.name: sharing.Form(partial(dropped, copy, [b]), same[b.name]) for b in branches}
    return copy, *sharing.apart_from(copy, data, forms, **options)


def assert_as_alone(model, data, branches, reference, found, statistics=False):
    alone = Reference.of(model, data, statistics=statistics)
    assert [torch.equal(a[0], b[0]) for a, b in zip(reference.outputs, alone.outputs, strict=True)] == [True] * len(
        data
    )
    assert len(branches) >= 2
    for branch in branches:
        own, wanted = found[branch.name], alone.apart(halp_fx.rewrite(model, Plan({}, (branch.name,)), data[0][:2]))
        for ours, theirs in ((own.sums, wanted.sums), (own.bent, wanted.bent), (own.samples, wanted.samples)):
            assert torch.equal(ours, theirs)
        assert float(wanted.sums.abs().max()) > 1e-6


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_networks_that_share_are_as_far_apart_as_networks_that_do_not(name, statistics):
    model, data, coupling, branches = built(*CASES[name])
    copy, reference, found = shared(model, data, coupling, branches, statistics=statistics)
    assert_as_alone(model, data, branches, reference, found, statistics)
    # The copy is whole again.
    for (n, ours), (m, theirs) in zip(copy.state_dict().items(), model.state_dict().items(), strict=True):
        assert n == m
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(copy.modules(), model.modules(), strict=True):
        assert type(ours) is type(theirs)
        assert "forward" not in vars(ours)
        assert getattr(ours, "inplace", None) == getattr(theirs, "inplace", None)


class Swapped(Plain):
    """On larger images the blocks run the other way round."""

    def forward(self, x):
        y = self.stem(x)
        y = self.second(self.first(y)) if x.shape[-1] == 8 else self.first(self.second(y))
        return self.head(y.mean((2, 3)))


def test_what_is_the_same_is_so_on_every_path():
    torch.manual_seed(0)
    coupling = halp_fx.channel_groups(Swapped().eval(), [torch.randn(2, 3, size, size) for size in (8, 9)])
    branches = find_branches(coupling).removable
    assert unaffected(coupling, branches) == {"first": ("stem",), "second": ("stem",)}


def test_a_model_is_whole_again_after_a_while_without_a_branch():
    model, _, _, branches = built(CASES["norms"][0], 8)
    modules = dict(model.named_modules())
    with dropped(model, branches):
        assert dict(model.named_modules()).keys() != modules.keys()
        assert not model.first[0].relu.inplace
    assert list(model.named_modules()) == list(modules.items())
    assert model.first[0].relu.inplace


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_depend_on_a_branch_and_does_nothing_else_is_known(name):
    _, _, coupling, branches = built(*CASES[name], batches=1)
    assert [unaffected(coupling, [b])[b.name] for b in branches] == SAME[name]


def test_what_is_the_same_runs_once(monkeypatch):
    model, data, coupling, branches = built(Plain, 8)
    runs = []
    inner = nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, *a: runs.append(self.in_channels) or inner(self, *a))
    shared(model, data, coupling, branches)
    # The whole network has five convolutions, what is left without the first block its second, and the other way round
    # nothing.
    assert len(runs) == len(data) * (5 + 2 + 0)
    runs.clear()
    monkeypatch.setattr(sharing, "MOST", 0)
    _, reference, found = shared(model, data, coupling, branches)
    assert len(runs) == len(data) * (5 + 3 + 3)
    assert_as_alone(model, data, branches, reference, found)


def test_of_what_does_not_fit_the_largest_goes(monkeypatch):
    results = sharing._Results(nn.Module())
    for name, size in (("a", 8), ("b", 32), ("c", 32), ("d", 16)):
        tensor = torch.zeros(size, dtype=torch.uint8)
        results._known[name] = sharing._Kept(tensor, [tensor], [0])
    results._known["a again"] = results._known["a"]  # The same memory, so it takes none.
    monkeypatch.setattr(sharing, "MOST", 60)
    results._forget_largest()
    assert list(results._known) == ["a", "b", "d", "a again"]
    monkeypatch.setattr(sharing, "MOST", 30)
    results._forget_largest()
    assert list(results._known) == ["a", "d", "a again"]


class Noting(nn.Module):
    """Remembers its runs by what no operator shows."""

    def __init__(self):
        super().__init__()
        self.conv, self.runs = nn.Conv2d(8, 8, 1), [0]

    def forward(self, x):
        self.runs[0] += 1
        RUNS.append(1)
        return self.conv(x)


RUNS: list[int] = []


class Noted(Plain):
    def __init__(self):
        super().__init__()
        self.noting = Noting()

    def forward(self, x):
        x = self.first(self.noting(self.stem(x)))
        return self.head(self.second(x).mean((2, 3)))


def test_a_module_that_changes_its_attributes_runs_every_time():
    model, data, coupling, branches = built(Noted, 8)
    assert all("noting" in names for names in unaffected(coupling, branches).values())
    RUNS.clear()
    _, reference, found = shared(model, data, coupling, branches)
    assert len(RUNS) == len(data) * 3
    assert_as_alone(model, data, branches, reference, found)


class Varying(Plain):
    """Runs a module twice on large batches."""

    def forward(self, x):
        y = self.stem(x)
        if len(x) > 4:
            y = y + self.stem(x.flip(0))
        return self.head(self.second(self.first(y)).mean((2, 3)))


def test_a_module_that_runs_more_often_than_it_was_traced_is_not_shared():
    model, data, coupling, branches = built(Varying, 8)
    assert all("stem" in names for names in unaffected(coupling, branches).values())
    _, reference, found = shared(model, data, coupling, branches)
    assert_as_alone(model, data, branches, reference, found)


class Spoiling(Plain):
    """Writes to what a module put out, on large batches."""

    def forward(self, x):
        y = self.first(self.stem(x))
        z = self.second(y)
        if len(x) > 4:
            y.detach().mul_(0.5)
        return self.head((y + z).mean((2, 3)))


def test_a_result_that_was_written_to_is_computed_again():
    model, data, coupling, branches = built(Spoiling, 8)
    assert unaffected(coupling, branches)["second"] == ("stem", "first")
    _, reference, found = shared(model, data, coupling, branches)
    assert_as_alone(model, data, branches, reference, found)


def test_hooks_run_with_every_network():
    seen = []
    model, data, *_ = built(Plain, 8)
    model.first.one.register_forward_hook(lambda *_: seen.append(1))
    coupling = halp_fx.channel_groups(model, data[0][:2])
    branches = [b for b in find_branches(coupling).removable if b.name == "second"]
    assert unaffected(coupling, branches) == {"second": ("stem", "first.two")}
    seen.clear()
    shared(model, data, coupling, branches)
    assert len(seen) == len(data) * 2


class Drawing(Plain):
    def forward(self, x):
        x = self.stem(x)
        return self.head(self.second(self.first(x + torch.randn_like(x))).mean((2, 3)))


def losses(model, data, coupling, branches, **options):
    asked = {"loss": None, "recalibrate": True, "sooner": False} | options
    request = SimpleNamespace(examples=data[0][:2], data=data, batches=8, **asked)
    return dropping._losses_without(Network(model, Plan(), coupling), request, coupling, branches)


@pytest.mark.parametrize("make", [Plain, Drawing])
def test_losses_are_the_same_whether_networks_share_or_not(monkeypatch, make):
    """One that draws random numbers is not the same twice: nothing is shared then."""
    model, data, coupling, branches = built(make, 8)
    used = []
    inner = dropping._side_by_side
    monkeypatch.setattr(dropping, "_side_by_side", lambda *a: used.append(None) or used.append(inner(*a)) or used[-1])
    torch.manual_seed(1)
    found = losses(model, data, coupling, branches)
    assert len(used) == (2 if make is Plain else 1)
    monkeypatch.setattr(dropping, "_side_by_side", lambda *a: 1 / 0)
    torch.manual_seed(1)
    assert losses(model, data, coupling, branches) == found
    assert len(found) == 2
