"""Forwards that compute with a width: pruned, they are another function. Frozen beforehand, never a wrong network."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from oracle import Net, assert_equals_twin, half_plan, randomized
from torch import nn

import halp_fx
from halp_fx import ModelError, Plan


class Between(nn.Module):
    """Something between two convolutions."""

    def __init__(self, function, width=16):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 8, 3), nn.Linear(8, 4)
        self.function = function

    def forward(self, x):
        return self.fc(self.second(self.function(self.first(x))).relu().mean((2, 3)))


def width(h):
    return h.shape[1]


def branching(h):
    return torch.relu(h) * 2 if width(h) > 8 else h


def looping(h):
    for _ in range(width(h) // 8):
        h = torch.sin(h)
    return h


FORWARDS = {
    "alpha": lambda h: torch.add(h, h.sigmoid(), alpha=1 / width(h)),
    "addcmul": lambda h: torch.addcmul(h, h, h, value=1 / width(h)),
    "full, space": lambda h: h * torch.full(h.shape[2:], float(width(h)), dtype=h.dtype),
    "full, channels": lambda h: h * torch.full((1, width(h), 1, 1), 1 / width(h), dtype=h.dtype),
    "new_full": lambda h: h / h.new_full((1,), width(h)),
    "as_tensor": lambda h: h * torch.as_tensor([width(h)] * 6, dtype=h.dtype),
    "divisor": lambda h: F.avg_pool2d(h, 2, divisor_override=width(h)),
    "eps": lambda h: F.layer_norm(h, h.shape[2:], eps=1 / width(h)),
    "norm": lambda h: h * h.norm(p=width(h) / 8, dim=1, keepdim=True),
    "shuffle": lambda h: F.channel_shuffle(h, width(h) // 4),
    "slope": lambda h: F.leaky_relu(h, 1 / width(h)),
    "root": lambda h: h * math.sqrt(width(h)),
    "range": lambda h: h * sum(1 for _ in range(width(h))),
    "size": lambda h: h / h.size(1),
    "count": lambda h: h / h.numel(),
    "branch": branching,
    "loop": looping,
}


def assert_freezes_first(function):
    """The group that the function computes with is frozen, and halving the others gives the zeroed twin."""
    torch.manual_seed(0)
    model = randomized(Between(function)).eval()
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    assert "first" in coupling.frozen
    assert_equals_twin(model, half_plan(coupling), inputs, coupling)


@pytest.mark.parametrize("name", FORWARDS)
def test_frozen_beforehand(name):
    assert_freezes_first(FORWARDS[name])


GROUP_NORMS = {
    "as many groups as channels": (lambda s, x: F.group_norm(x, x.shape[1]), 16),
    "so many that each has a few": (lambda s, x: F.group_norm(x, x.shape[1] // 4), 4),
    "a few groups": (lambda s, x: F.group_norm(x, 4), 4),
    "many groups": (lambda s, x: F.group_norm(x, 8), 2),
    "many, by an attribute": (lambda s, x: F.group_norm(x, s.groups), 8),
}


@pytest.mark.parametrize("name", GROUP_NORMS)
def test_group_norms_whose_groups_a_forward_counts(name):
    """Whole groups go, or the same positions of all: as it counts them."""
    function, size = GROUP_NORMS[name]
    torch.manual_seed(0)
    model = randomized(Net(lambda s, x: s.c(function(s, s.a(x))), a=nn.Conv2d(3, 16, 1), c=nn.Conv2d(16, 2, 1))).eval()
    model.groups = 8
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    assert {g.name: g.size for g in coupling.prunable} == {"a": size}
    small = assert_equals_twin(model, half_plan(coupling), inputs, coupling)
    assert small.groups == (4 if "attribute" in name else 8)


def test_as_many_groups_as_channels_by_a_literal():
    """Every group would keep its one channel."""
    model = randomized(Between(lambda h: F.group_norm(h, 16))).eval()
    coupling = halp_fx.channel_groups(model, torch.randn(2, 3, 6, 6, dtype=torch.float64))
    assert "first" not in {g.name for g in coupling.prunable if g.size > 1}


def test_the_size_of_a_parameter():
    class Own(Between):
        def forward(self, x):
            return self.fc(self.second(self.first(x) / self.first.weight.shape[0]).mean((2, 3)))

    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert "first" in halp_fx.channel_groups(randomized(Own(None)), inputs).frozen


def test_no_trial_where_no_width_is_read(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a trial was made")

    monkeypatch.setattr("halp_fx.trials.running.Runner.run", fail)

    def resized(h):
        _, _, height, _ = h.shape  # This hands out the width, too.
        return F.interpolate(h.relu(), size=(height * 2, height * 2))

    with pytest.raises(AssertionError, match="a trial"):
        halp_fx.channel_groups(Between(resized), torch.randn(1, 3, 6, 6))
    for function in (
        torch.relu,
        lambda h: h / h.dim(),
        lambda h: F.interpolate(h, size=(h.size(2), h.size(-1))),
        lambda h: F.interpolate(h, size=(h.shape[2], h.shape[-1])),
        lambda h: F.interpolate(F.interpolate(h, size=h.shape[2:]), size=h.shape[-2:]),
        lambda h: h * torch.empty((h.shape[0], 1, 1, 1), dtype=h.dtype).fill_(0.5),
    ):
        assert not halp_fx.channel_groups(Between(function), torch.randn(1, 3, 6, 6)).frozen.keys() & {"first"}


def test_a_slice_in_the_middle_of_two_units():
    """Of two units only one can go, and one that is left does not show where a piece begins."""

    def tripled(h):
        h = h.clone()
        h[:, 2:6].mul_(3.0)
        return h

    model = randomized(Between(tripled, 8)).eval()
    coupling = halp_fx.channel_groups(model, torch.randn(2, 3, 6, 6, dtype=torch.float64))
    assert "first" in coupling.frozen


def test_attention_whose_scale_follows_the_heads_dimension():
    def attend(h):
        n = h.shape[0]
        q = h.flatten(2).transpose(1, 2).reshape(n, 36, 4, -1).transpose(1, 2).flatten(0, 1)
        none = torch.zeros(1, 1, 1, dtype=q.dtype)
        weights = torch.baddbmm(none, q, q.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5).softmax(-1)
        joined = (weights @ q).reshape(n, 4, 36, -1).transpose(1, 2).reshape(n, 36, -1)
        return joined.transpose(1, 2).unflatten(2, (6, 6))

    assert_freezes_first(attend)


def test_inputs_and_attributes_are_given_back():
    class Counting(Between):
        def __init__(self):
            super().__init__(lambda h: h)
            self.count = torch.zeros(1)
            self.caches = {"nested": []}

        def forward(self, x):
            x.mul_(2)
            self.count += 1
            self.caches["nested"].append(x)
            if float(x.sum()) > 1e9:
                x = x + 1
            return super().forward(x)

    model, inputs = Counting().eval(), torch.randn(1, 3, 6, 6)
    before = inputs.clone()
    halp_fx.channel_groups(model, inputs)
    assert torch.equal(inputs, before)
    assert model.count == 0
    assert model.caches == {"nested": []}


def test_in_place_operators_without_a_result_are_refused():
    def foreach(h):
        parts = [h.clone()]
        torch._foreach_mul_(parts, 2.0)
        return parts[0]

    with pytest.raises(ModelError, match="without returning"):
        halp_fx.channel_groups(Between(foreach), torch.randn(1, 3, 6, 6))


def test_models_of_a_prompt():
    space: dict[str, object] = {}
    exec(
        "from torch import nn\nclass Net(nn.Sequential):\n  def forward(self, x):\n    return super().forward(x) * 2",
        space,
    )
    model = space["Net"](nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    small = halp_fx.rewrite(model, Plan({"0": [0, 3, 5]}), torch.randn(1, 3, 4, 4))
    assert small[0].out_channels == 3


@pytest.mark.parametrize("narrow", [1, 2], ids=["of one channel", "down to one"])
def test_another_branch_beside_a_width_of_one(narrow):
    """A width of 1 is no licence to run other operators elsewhere."""

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wide = nn.Conv2d(3, narrow, 3), nn.Conv2d(narrow, 16, 3)
            self.between = Between(lambda h: h.sin() if h.shape[1] == 16 else h)

        def forward(self, x):
            return self.between(x) + self.between.fc(self.between.second(self.wide(self.narrow(x))).mean((2, 3)))

    torch.manual_seed(0)
    model = randomized(Beside()).eval()
    inputs = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    assert_equals_twin(model, half_plan(coupling), inputs, coupling)
    assert "between.first" in coupling.frozen
    assert "narrow" not in coupling.frozen


def test_a_table_that_is_resized_where_it_has_another_length():
    """As in MViT v2: rows that no position picks must stay, too."""

    class Table(Between):
        def forward(self, x):
            table = self.table
            if table.shape[0] != 12:
                table = F.interpolate(table.T[None], size=12, mode="linear")[0].T
            return super().forward(x) @ table[torch.arange(8)].T

    torch.manual_seed(0)
    model = Table(torch.relu)
    model.table = nn.Parameter(torch.zeros(12, 4))
    model = randomized(model).eval()
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    small = assert_equals_twin(model, half_plan(coupling), inputs, coupling)
    assert small.table.shape == (12, 2)


@pytest.mark.parametrize("picked", [(0, 1, 2, 3, 8, 9, 10, 11), (0, 1, 2, 6, 7), (0, 3, -1)])
def test_rows_between_those_that_positions_pick(picked):
    """Without them, the same positions name other rows, or none."""

    class Picking(Between):
        def forward(self, x):
            y = super().forward(x)
            index = torch.tensor(picked)
            return y @ self.table[index].T + self.rows(y)[:, index] + self.others(y).index_select(1, index % 12)

    torch.manual_seed(0)
    model = Picking(torch.relu)
    model.table, model.rows, model.others = nn.Parameter(torch.zeros(12, 4)), nn.Linear(4, 12), nn.Linear(4, 12)
    model = randomized(model).eval()
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    coupling = halp_fx.channel_groups(model, inputs)
    assert_equals_twin(model, half_plan(coupling), inputs, coupling)


def test_prune_goes_on_where_a_dependency_shows_at_the_chosen_widths_only():
    torch.manual_seed(0)
    between = Between(lambda h: torch.sin(h) if h.shape[1] < 12 else h)
    model, inputs = nn.Sequential(nn.Conv2d(3, 3, 1), between).eval(), torch.randn(1, 3, 6, 6)
    assert "1.first" not in halp_fx.channel_groups(model, inputs).frozen
    small = halp_fx.prune(
        model, 0.6, inputs, latency="params", round_to=1, min_keep=1, steps=1, progress=False, importance=flat
    )
    assert small.halp.met
    assert small[1].first.out_channels >= 12
    assert small[1].second.out_channels < 8
    assert any("1.first shrank no further" in note for note in small.halp.notes)


def flat(group):
    """The first layer's channels are worth nothing."""
    return torch.full((group.size,), 1e-6 if group.name == "1.first" else 1.0)
