"""Values that a forward reads, decides by, or makes sizes of; and what it does in train mode only."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from oracle import Net, assert_equals_twin, half_plan, randomized
from test_bad_models import Chain, image, unchanged
from torch import nn
from torch.nn.functional import batch_norm, cosine_similarity

import halp_fx
from halp_fx.rewriting.verification import verify


def middle(function, **layers):
    """Two convolutions with a function between them."""
    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 8, 1), "c": nn.Conv2d(8, 2, 1), **layers}
    return randomized(Net(lambda self, x: self.c(self.b(function(self.a(x))).relu()), **layers))


def assert_equal_values(model, inputs, coupling):
    """The rewritten network equals the twin, and not the original. No gradient passes through values."""
    plan = half_plan(coupling)
    small = halp_fx.rewrite(model, plan, inputs, coupling=coupling).eval()
    twin = halp_fx.zero(model, plan, inputs, coupling=coupling).eval()
    with torch.no_grad():
        torch.testing.assert_close(small(inputs), twin(inputs))
        assert not torch.allclose(small(inputs), model.eval()(inputs))


READS = {
    "item": lambda x: x / x.abs().mean().item(),
    "float": lambda x: x * float(x.mean()),
    "int": lambda x: x + int(x.abs().sum() * 10),
    "bool": lambda x: x if x.mean() > 0 else -x,
    "tolist": lambda x: x * max(x.mean((0, 2, 3)).tolist()),
    "numpy": lambda x: torch.from_numpy(np.tanh(x.detach().numpy())),
    "asarray": lambda x: x * torch.tensor(float(np.asarray(x.detach()).std())),
    "equal": lambda x: x if torch.equal(x, x.abs()) else x.abs(),
    "index": lambda x: x * [1.0, 2.0][(x.mean() > 0).long()],
    "arange": lambda x: x * torch.arange(3 + int(x.amax() > 0)).sum(),
    "max of a list": lambda x: x / max(v.item() for v in x.flatten(1).abs().amax(1)),
}


FINITE = {
    "isfinite": lambda x: x if torch.isfinite(x).all() else x.clamp(-1e4, 1e4),
    "isinf": lambda x: x.clamp(-1e4, 1e4) if x.isinf().any().item() else x,
    "isnan": lambda x: x.nan_to_num() if torch.isnan(x).any() else x,
    "not": lambda x: x.nan_to_num() if (~torch.isfinite(x)).any() else x,
}


@pytest.mark.parametrize("kind", FINITE)
def test_whether_numbers_are_finite_freezes_nothing(kind):
    model, inputs = middle(FINITE[kind]), image()
    coupling = halp_fx.channel_groups(model, inputs)
    assert {g.name for g in coupling.prunable} == {"a", "b"}
    assert_equal_values(model, inputs, coupling)


def test_numbers_that_are_not_finite_are_values():
    model, inputs = middle(lambda x: x.clamp(-1e4, 1e4) if torch.isinf(x / 0).any() else x), image()
    assert "read into Python" in halp_fx.channel_groups(model, inputs).frozen["a"]


@pytest.mark.parametrize("kind", READS)
def test_values_read_into_python_freeze_what_they_come_from(kind):
    model, inputs = middle(READS[kind]), image()
    coupling = halp_fx.channel_groups(model, inputs)
    assert {g.name for g in coupling.prunable} == {"b"}
    assert "read into Python" in coupling.frozen["a"]
    assert "test_values.py:" in coupling.frozen["a"]
    assert_equal_values(model, inputs, coupling)


def test_constants_may_be_read():
    """A number that does not depend on inputs or weights decides nothing."""
    scale = torch.tensor(2.0, dtype=torch.float64)
    model = middle(lambda x: x * float(scale) if bool(torch.ones(2).sum() > 1) else x)
    coupling = halp_fx.channel_groups(model, image())
    assert {g.name for g in coupling.prunable} == {"a", "b"}
    assert coupling.traced.on_meta
    assert coupling.traced.reads == ()


def _top(x):
    return x.flatten(1).topk(3).values.sum(1, keepdim=True)


def _wrong_view(x, beside):
    """A constant that repeats the width, beside something else."""
    return x.view(x.shape[0], 8, -1).amax(-1).sum(1, keepdim=True) + beside


BESIDE = {
    "topk": _top,
    "sort": lambda x: x.flatten(1).sort(1).values[:, :1],
    "nonzero": lambda x: x.gt(0).nonzero().sum(),
    "unique": lambda x: x.round().unique().sum(),
    "masked_select": lambda x: x.masked_select(x > 0).sum(),
    "mask": lambda x: x[x > 0].sum(),
    "where": lambda x: torch.where(x > 0)[0].sum(),
    "repeat_interleave": lambda x: x.flatten()[:3].repeat_interleave(x.flatten()[:3].gt(0).long() + 1).sum(),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_stands_beside_values_is_compared(kind):
    def forward(self, x):
        return _wrong_view(self.a(x).relu(), BESIDE[kind](x))

    model, inputs = randomized(Net(forward, a=nn.Conv2d(3, 8, 1))), image()
    coupling = halp_fx.channel_groups(model, inputs)
    assert coupling.prunable == ()
    assert "a constant in the forward" in coupling.frozen["a"]
    # `couple` alone knows of no constants: what it lets through must be refused.
    free = halp_fx.couple(halp_fx.trace(model, inputs))
    plan = half_plan(free)
    small = halp_fx.rewrite(model, plan, inputs, coupling=free, check=False)
    assert "view" in verify(small, plan, free, inputs).message


@pytest.mark.parametrize("kind", BESIDE)
def test_sizes_of_values_leave_the_rest_free(kind):
    def forward(self, x):
        x = self.a(x).relu()
        return self.b(x).mean((2, 3)) + BESIDE[kind](self.c(x))

    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 1), "c": nn.Conv2d(8, 1, 1)}
    model, inputs = randomized(Net(forward, **layers)), image()
    coupling = halp_fx.channel_groups(model, inputs)
    assert {g.name for g in coupling.prunable} == {"a"}
    assert_equal_values(model, inputs, coupling)


class Exiting(nn.Module):
    """A network with an early exit."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.first = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 2)
        self.deep, self.last = nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

    def decides(self, x, h):
        return bool(x.abs().mean() < 2)

    def forward(self, x):
        h = self.b(self.a(x).relu()).relu()
        if self.decides(x, h):
            return self.first(h.mean((2, 3)))
        return self.last(self.deep(h).relu().mean((2, 3)))


class Skipping(Exiting):
    """A layer that some inputs skip."""

    def __init__(self):
        super().__init__()
        del self.last

    def forward(self, x):
        h = self.b(self.a(x).relu()).relu()
        if not self.decides(x, h):
            h = h + self.deep(h)
        return self.first(h.mean((2, 3)))


class Choosing(Skipping):
    """Experts, one for each input."""

    def forward(self, x):
        h = self.a(x).relu()
        h = [self.b, self.deep][0 if self.decides(x, h) else 1](h)
        return self.first(h.mean((2, 3)))


EASY, HARD = image(), 5 * image()


@pytest.mark.parametrize("kind", [Exiting, Skipping, Choosing])
def test_layers_that_the_example_does_not_reach(kind):
    model = randomized(kind())
    with unchanged(model):
        coupling = halp_fx.channel_groups(model, EASY)
    assert coupling.prunable == ()
    assert "deep" in coupling.frozen["a"]
    assert "list of examples" in coupling.frozen["a"]


@pytest.mark.parametrize("kind", [Exiting, Skipping, Choosing])
def test_several_examples_reach_every_branch(kind):
    model = randomized(kind())
    with unchanged(model):
        coupling = halp_fx.channel_groups(model, [EASY, HARD])
    assert {"a", "b"} <= {g.name for g in coupling.prunable}
    plan = half_plan(coupling)
    small = halp_fx.rewrite(model, plan, [EASY, HARD], coupling=coupling)
    twin = halp_fx.zero(model, plan, [EASY, HARD], coupling=coupling)
    with torch.no_grad():
        for inputs in (EASY, HARD):
            torch.testing.assert_close(small.eval()(inputs), twin.eval()(inputs))
            assert not torch.allclose(small(inputs), model.eval()(inputs))
    pruned = halp_fx.prune(model, 0.6, [EASY, HARD], latency=halp_fx.MacsCost(), progress=False)
    assert pruned(EASY).shape == pruned(HARD).shape == (2, 2)


def test_examples_of_several_arguments():
    class Two(Chain):
        def forward(self, x, scale=None):
            return super().forward(x if scale is None else x * scale)

    model = randomized(Two())
    examples = [(image(),), (image(), {"scale": torch.tensor(2.0, dtype=torch.float64)})]
    assert len(halp_fx.channel_groups(model, examples).prunable) == 2


def test_a_branch_on_values_of_pruned_channels_freezes():
    class Sensitive(Exiting):
        def decides(self, x, h):
            return bool(h.mean() > 0)

        def forward(self, x):
            h = self.b(self.a(x).relu()).relu()
            h = self.deep(h) if self.decides(x, h) else self.deep(-h)
            return self.last(h.mean((2, 3))) + self.first(h.mean((2, 3)))

    model = randomized(Sensitive())
    coupling = halp_fx.channel_groups(model, EASY)
    assert {g.name for g in coupling.prunable} == {"deep"}
    assert "__bool__" in coupling.frozen["b"]
    assert_equals_twin(model, half_plan(coupling), EASY, coupling)


def encoder():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU())


def _assign(p, q):
    q.data = q.data * 0.9 + p.data * 0.1


def _in_place(p, q):
    q.data.mul_(0.9).add_(p.data, alpha=0.1)


def _copied(p, q):
    q.copy_(0.9 * q + 0.1 * p)


def _interpolated(p, q):
    q.lerp_(p, 0.1)


class Momentum(nn.Module):
    """A second encoder that follows the first one in training."""

    def __init__(self, follow):
        super().__init__()
        self.q, self.follow = encoder(), follow
        self.k = copy.deepcopy(self.q).requires_grad_(False)

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                for p, q in zip(self.q.parameters(), self.k.parameters(), strict=True):
                    self.follow(p, q)
        return cosine_similarity(self.q(x).flatten(1), self.k(x.flip(2)).flatten(1))


@pytest.mark.parametrize("follow", [_assign, _in_place, _copied, _interpolated])
def test_encoders_that_follow_each_other_in_training(follow):
    model, inputs = randomized(Momentum(follow)), image()
    with unchanged(model):
        coupling = halp_fx.channel_groups(model, inputs)
    assert [g.size for g in coupling.prunable] == [8, 6]
    assert {"q.0.weight", "k.0.weight"} <= {m.axis.tensor for m in coupling.prunable[0].members}
    small = halp_fx.rewrite(model, half_plan(coupling), inputs, coupling=coupling)
    small.train()(inputs)
    assert small.k[0].weight.shape == small.q[0].weight.shape == (4, 3, 1, 1)


class Dropping(nn.Module):
    """Channel dropout that knows its width."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, x):
        return (
            x * torch.bernoulli(torch.full((x.shape[0], self.width, 1, 1), 0.9, dtype=x.dtype)) if self.training else x
        )


class DroppingLiteral(nn.Module):
    def forward(self, x):
        return x.view(-1, 8, x.shape[2], x.shape[3]) * 0.9 if self.training else x


class Heads(nn.Module):
    """Numbers of heads that a trial has to mend, and a question to values that training alone asks."""

    def __init__(self, asks):
        super().__init__()
        self.stem, self.qkv, self.out = nn.Linear(3, 6), nn.Linear(6, 24), nn.Linear(8, 2)
        self.heads, self.asks = 4, asks

    def forward(self, x):
        b, n, _ = (x := self.stem(x.flatten(2).transpose(1, 2))).shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, 2).permute(2, 0, 3, 1, 4)
        x = self.asks(self, ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).reshape(b, n, self.heads * 2))
        return self.out(x).mean(1)


IN_TRAINING = {
    "finite": lambda self, x: FINITE["isfinite"](x) if self.training else x,
    "sizes": lambda self, x: x + x.mean(-1).gt(9).nonzero().sum() if self.training else x,
}


@pytest.mark.parametrize("kind", IN_TRAINING)
def test_values_that_only_training_asks_for(kind):
    """In eval mode it runs without values, and so do its trials; in train mode these need them."""
    model, inputs = randomized(Heads(IN_TRAINING[kind])), image()
    coupling = halp_fx.channel_groups(model.eval(), inputs)
    assert [f.traced.on_meta for f in (coupling, *coupling.further)] == [True, False]
    assert {g.name: g.size for g in coupling.prunable} == {"stem": 6, "qkv": 4}
    assert_equals_twin(model, half_plan(coupling), inputs, coupling)


def helper(module, x):
    return x * torch.ones(8, 1, 1, dtype=x.dtype) if module.training else x


class DroppingElsewhere(nn.Module):
    """The mode is asked for in a function of the file."""

    def forward(self, x):
        return helper(self, x)


@pytest.mark.parametrize(("kind", "free"), [(Dropping, True), (DroppingLiteral, False), (DroppingElsewhere, False)])
def test_widths_that_only_training_knows(kind, free):
    drop = kind(8) if kind is Dropping else kind()
    model = randomized(nn.Sequential(nn.Conv2d(3, 8, 1), drop, nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)))
    inputs = image()
    with unchanged(model):
        coupling = halp_fx.channel_groups(model, inputs)
    assert {g.name for g in coupling.prunable} == ({"0", "2"} if free else {"2"})
    small = assert_equals_twin(model, half_plan(coupling), inputs, coupling)
    small.train()(inputs)
    if free:
        assert small[1].width == 4


def test_what_runs_for_each_box_is_not_taken_for_what_comes_after():
    """More boxes than before: the same operator runs again, at another line (RetinaNet v2)."""

    def boxes(self, x):
        y = self.c(self.b(self.a(x)).relu())
        found = (y - level).flatten().gt(0).nonzero()
        counts.append(found.shape[0])
        for _ in range(found.shape[0]):
            torch.tensor(True)
        return y * torch.tensor(3.0, dtype=y.dtype)

    model = randomized(Net(boxes, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 8, 1), c=nn.Conv2d(8, 2, 1)))
    level, counts = 0.0, []
    level = float(model(image()).mean()) / 3
    coupling = halp_fx.channel_groups(model, image())
    assert {g.name for g in coupling.prunable} == {"a", "b"}
    for seed in range(4):
        halp_fx.rewrite(model, half_plan(coupling, seed), image(), coupling=coupling)
    assert len(set(counts)) > 2


class Split(nn.BatchNorm2d):
    """As in lightly: statistics for each half of a batch. `eval` puts their mean in place of the buffers."""

    def __init__(self, channels):
        super().__init__(channels)
        self.running_mean, self.running_var = torch.zeros(2 * channels), torch.ones(2 * channels)

    def train(self, mode=True):
        if self.training and not mode:
            for name in ("running_mean", "running_var"):
                setattr(self, name, getattr(self, name).view(2, self.num_features).mean(0).repeat(2))
        return super().train(mode)

    def forward(self, x):
        n, c, h, w = x.shape
        if self.training:
            tables = self.running_mean, self.running_var, self.weight.repeat(2), self.bias.repeat(2)
            return batch_norm(x.reshape(-1, 2 * c, h, w), *tables, training=True).view(n, c, h, w)
        tables = self.running_mean[: self.num_features], self.running_var[: self.num_features]
        return batch_norm(x, *tables, self.weight, self.bias)


@pytest.mark.parametrize("training", [False, True])
def test_a_mode_that_replaces_buffers(training):
    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(3, 8, 3), "norm": Split(8), "b": nn.Conv2d(8, 4, 3)}
    model = randomized(Net(lambda m, x: m.b(m.norm(m.a(x)).relu()), **layers)).train(training)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, x)
    assert {g.name: g.size for g in coupling.prunable} == {"a": 8}
    kept = [0, 3, 5]
    small = halp_fx.rewrite(model, {"a": kept}, x, coupling=coupling)
    twin = halp_fx.zero(model, {"a": kept}, x, coupling=coupling)
    torch.testing.assert_close(small.eval()(x), twin.eval()(x))
    assert small.norm.running_mean.shape == (6,)
