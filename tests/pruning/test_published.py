"""`prune(solver="halp")` and `solver="mdp"`: what is as released, on a small residual network."""

from __future__ import annotations

import pytest
import torch
from oracle import relative_error
from test_report import latency
from torch import nn
from torch.nn import functional as F

import halp_fx
from halp_fx import BudgetError, MacsCost, ProblemError
from halp_fx.coupling.residual import find_branches
from halp_fx.latency import Timing
from halp_fx.pruning.goals import make_goals
from halp_fx.pruning.published import as_published, published_problem, stand_ins, stem
from halp_fx.pruning.request import Request

IMAGE = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def conv(inner, outer, kernel=3, stride=1):
    return nn.Sequential(nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outer))


class Block(nn.Module):
    def __init__(self, inner, outer, stride=1):
        super().__init__()
        self.one, self.two = conv(inner, outer, 3, stride), conv(outer, outer)
        self.short = nn.Identity() if inner == outer and stride == 1 else conv(inner, outer, 1, stride)

    def forward(self, x):
        return F.relu(self.two(F.relu(self.one(x))) + self.short(x))


class Net(nn.Module):
    """A stem of its own, a block that changes the width, two that do not."""

    def __init__(self, width=32):
        super().__init__()
        self.stem = conv(3, 16)
        self.blocks = nn.Sequential(Block(16, width, 2), Block(width, width), Block(width, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


def net(width=32):
    torch.manual_seed(1)
    model = Net(width).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
    return model


def batches(count, size=4):
    draw = torch.Generator().manual_seed(2)
    return [
        (torch.randn(size, 3, 16, 16, generator=draw), torch.randint(5, (size,), generator=draw)) for _ in range(count)
    ]


def pruned(model, budget, solver, **settings):
    given = {"data": batches(2), "loss_fn": F.cross_entropy, "latency": MacsCost(), "progress": False, **settings}
    return halp_fx.prune(model, budget, IMAGE, solver=solver, **given)


def request(**settings):
    given = {
        "goals": make_goals(0.5, "macs"), "examples": [((IMAGE,), {})], "data": batches(1), "importance": None,
        "loss_fn": F.cross_entropy, "loss": None, "round_to": None, "min_keep": 0.1, "steps": None, "solver": "halp",
        "tolerance": 0.02, "train_between": None, "progress": False, **settings,
    }  # fmt: skip
    return Request(**given)


def test_what_the_caller_leaves_open_is_as_published():
    halp, mdp, own = (as_published(request(solver=s), net()) for s in ("halp", "mdp", "auto"))
    assert (halp.importance, halp.steps, halp.batches, halp.recalibrate, halp.branches) == (
        "taylor",
        30,
        40,
        False,
        False,
    )
    assert (mdp.importance, mdp.steps, mdp.batches, mdp.recalibrate, mdp.branches) == ("taylor", 1, 1200, False, True)
    assert (own.importance, own.steps, own.recalibrate) == (None, None, True)
    asked = as_published(request(importance="fisher", steps=7, recalibrate=True), net())
    assert (asked.importance, asked.steps, asked.recalibrate) == ("fisher", 7, True)
    assert asked.loss_fn is F.cross_entropy
    blind = as_published(request(data=None, loss_fn=None), net())
    assert (blind.importance, blind.steps) == ("magnitude", None)


@pytest.mark.parametrize(
    ("settings", "may"),
    [
        ({}, "auto"),
        ({"importance": "fisher"}, "auto"),
        ({"min_keep": 1}, "auto"),
        ({"min_keep": 0.05}, "auto"),
        ({"branches": False}, False),
        ({"data": None, "loss_fn": None}, False),
        ({"importance": "taylor"}, False),
        ({"importance": "magnitude"}, False),
        ({"importance": lambda group: [1.0] * group.size}, False),
        ({"min_keep": 0.2}, False),
        ({"min_keep": 4}, False),
        ({"min_keep": 0.2, "branches": True}, True),
        ({"solver": "halp"}, False),
    ],
)
def test_branches_may_go_where_their_loss_is_measured_and_no_width_is_held(settings, may):
    assert as_published(request(**{"solver": "auto", **settings}), net()).branches == may


def test_halp_keeps_the_stem_and_leaves_whole_blocks():
    model, seen = net(), []
    small = pruned(model, 0.4, "halp", steps=4, train_between=lambda m: seen.append(m.training))
    report = small.halp
    assert report.measured <= report.budget
    assert len(seen) == 3
    kept = {g.name: g.kept for g in report.groups}
    assert kept["stem.0"] == 16
    # Eighths of 32 channels: multiplications make no stairs.
    assert all(n % 4 == 0 for n in kept.values())
    assert min(kept.values()) < 32
    # Batch norms are as they were, whatever the data says.
    rows = list(report.plan["blocks.1.one.0"]) if "blocks.1.one.0" in report.plan else list(range(32))
    torch.testing.assert_close(small.blocks[1].one[1].running_mean, model.blocks[1].one[1].running_mean[rows])
    with torch.no_grad():
        assert relative_error(small(IMAGE), halp_fx.zero(model, report.plan, IMAGE)(IMAGE)) < 1e-4


def test_the_first_layer_is_no_stem_where_others_make_its_channels():
    assert stem(halp_fx.channel_groups(net(), IMAGE)) == "stem.0"
    straight = nn.Sequential(conv(3, 32), Block(32, 32), nn.Flatten(), nn.Linear(32 * 256, 5)).eval()
    assert stem(halp_fx.channel_groups(straight, IMAGE)) is None


def silenced(model, norm):
    with torch.no_grad():
        norm.weight.mul_(1e-4)
        norm.bias.mul_(1e-4)
    return model


@pytest.mark.parametrize("branches", [True, False])
def test_a_layer_vanishes_where_its_branch_may_go(branches):
    model = net()
    silenced(model, model.blocks[1].one[1])
    report = pruned(model, 0.6, "halp", steps=2, branches=branches).halp
    assert report.dropped == (("blocks.1",) if branches else ())
    kept = {g.name: g.kept for g in report.groups}
    assert kept["blocks.1.one.0"] == (0 if branches else 4)


def test_scores_are_of_the_network_as_it_is_trained_and_nothing_stays_of_that():
    model, modes, read = net(), [], []

    def loss(network, batch):
        modes.append(network.training)
        return F.cross_entropy(network(batch[0]), batch[1])

    class Data:
        def __iter__(self):
            for batch in batches(43, 2):
                read.append(1)
                yield batch

    before = {n: b.clone() for n, b in model.named_buffers()}
    small = pruned(model, 0.7, "halp", steps=1, data=Data(), loss_fn=None, loss=loss)
    assert modes == [True] * 40
    assert 40 <= len(read) <= 41
    assert not small.training
    assert not small.blocks[0].one[1].training
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_a_group_is_worth_the_sum_of_what_its_layers_add():
    """Against gates of each layer by autograd, of one batch."""
    model = net()
    coupling = halp_fx.channel_groups(model, IMAGE)
    branches = find_branches(coupling).removable
    asked = request(solver="mdp")
    groups = (*coupling.groups, *stand_ins(asked, coupling, branches))
    wide = coupling.__class__(**{f: getattr(coupling, f) for f in coupling.__dataclass_fields__} | {"groups": groups})
    saliency = halp_fx.score(model, wide, batches(1), F.cross_entropy, "taylor")
    options = {g.name: tuple(range(4, g.size + 1, 4)) for g in coupling.prunable}
    tables = MacsCost().tables(coupling, options)
    problem = published_problem(coupling, saliency, options, tables, {"macs": 1e9}, "MACs", branches)

    (x, y), own = batches(1)[0], {}
    F.cross_entropy(model(x), y).backward()
    for name, norm in model.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            own[name] = (norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).detach().double()
    stream = [own[name] for name in ("blocks.0.two.1", "blocks.0.short.1", "blocks.1.two.1", "blocks.2.two.1")]
    whole = sum(stream).abs()
    parts = [whole * layer.abs() / sum(s.abs() for s in stream) for layer in stream]
    full = {name: group.size for name, group in ((g.name, g) for g in coupling.prunable)}
    everything, _ = problem.evaluate(full)
    inner = sum(own[f"blocks.{i}.one.1"].abs().sum() for i in range(3)) + own["stem.1"].abs().sum()
    assert everything == pytest.approx(float(inner + whole.sum()), rel=1e-4)
    for number, branch in ((1, "blocks.1"), (2, "blocks.2")):
        left, _ = problem.evaluate(full, [branch])
        lost = parts[1 + number].sum() + own[f"blocks.{number}.one.1"].abs().sum()
        assert everything - left == pytest.approx(float(lost), rel=1e-4)
        # Of a narrower stream, the part in the channels that are left.
        name = next(g.name for g in coupling.prunable if g.name in problem.branches[number - 1].adds)
        top = whole.argsort(descending=True)[:8]
        narrow = full | {name: 8}
        gap = problem.evaluate(narrow)[0] - problem.evaluate(narrow, [branch])[0]
        assert gap == pytest.approx(
            float(parts[1 + number][top].sum() + own[f"blocks.{number}.one.1"].abs().sum()), rel=1e-4
        )


def test_mdp_drops_the_block_that_adds_least_in_one_step():
    model = net()
    for part in (model.blocks[2].one[1], model.blocks[2].two[1]):
        silenced(model, part)
    seen = []
    small = pruned(model, 0.5, "mdp", train_between=seen.append)
    report = small.halp
    assert report.dropped == ("blocks.2",)
    assert not seen
    assert report.measured <= report.budget
    assert report.rounds[-1].gap <= 1e-6
    assert all(g.kept > 0 or g.name.startswith("blocks.2") for g in report.groups)
    with torch.no_grad():
        assert relative_error(small(IMAGE), halp_fx.zero(model, report.plan, IMAGE)(IMAGE)) < 1e-4


class Stairs:
    """A clock whose convolutions cost a step for every 32 channels that they make; all else costs nearly nothing."""

    def __call__(self, call, device, effort):
        weights = [a for a in call.args if isinstance(a, torch.Tensor) and a.ndim == 4]
        if len(weights) < 2:
            return Timing(1e-6, 1e-9, 9)
        outer, inner = weights[1].shape[:2]
        return Timing(0.01 * -(-outer // 32) * (8 + inner), 1e-6, 9)


@pytest.mark.parametrize("solver", ["halp", "mdp"])
def test_blocks_are_as_large_as_the_steps_of_a_measured_staircase(monkeypatch, solver):
    def interleaved(models, inputs, **_):
        from halp_fx.latency.interleaving import NetworkTiming

        counts = [sum(p.numel() for p in m.parameters()) for m in models]
        return tuple(NetworkTiming(10.0 * n / counts[0], 1e-3, 9, share=n / counts[0]) for n in counts)

    monkeypatch.setattr("halp_fx.latency.measured.interleaved", interleaved)
    monkeypatch.setattr("halp_fx.pruning.goals.untouched", lambda: False)
    report = pruned(net(128), 0.6, solver, latency=latency(Stairs()), steps=2, tolerance=0.9).halp
    kept = {g.name: g.kept for g in report.groups if not g.name.startswith("stem")}
    assert all(n % 32 == 0 for n in kept.values()), kept
    assert 0 < min(n for n in kept.values() if n) < 128


def test_what_cannot_be_asked_for_is_said():
    with pytest.raises(BudgetError, match=r"solver='best' is not one of .*halp.*mdp"):
        pruned(net(), 0.5, "best")
    with pytest.raises(ProblemError, match="knows one budget, the problem has 2"):
        pruned(net(), {"macs": 0.5, "params": 0.5}, "halp", steps=1)
    assert pruned(net(), {"macs": 0.6, "params": 0.6}, "mdp").halp.met
    with pytest.raises(halp_fx.InfeasibleError, match="cannot be reached"):
        pruned(net(), 0.001, "halp", steps=1)
    with pytest.raises(halp_fx.SaliencyError, match="needs loss_fn"):
        pruned(net(), 0.5, "halp", loss_fn=None)
