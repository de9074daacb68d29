"""Limits to single groups: by module, parameter, group or pattern."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import halp_fx
from halp_fx import BudgetError, InfeasibleError, MacsCost, ModelError

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Stages(nn.Module):
    """Two stages of two convolutions, a residual sum over the second one."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 20, 3, padding=1), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(20, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 20, 3, padding=1))
        self.head = nn.Linear(20, 4)

    def forward(self, x):
        x = self.first(x)
        return self.head((x + self.second(x)).mean((2, 3)))


def widths(limits, budget=0.35, **options):
    options = {"latency": MacsCost(), "round_to": 1, "progress": False} | options
    torch.manual_seed(0)
    small = halp_fx.prune(Stages(), budget, X[:1], limits=limits, **options)
    assert small.halp.met
    return {"a": small.first[0].out_channels, "stream": small.first[2].out_channels, "c": small.second[0].out_channels}


@pytest.mark.parametrize("options", [{}, {"data": [X], "steps": 3}, {"round_to": None}], ids=["", "steps", "rounded"])
@pytest.mark.parametrize(
    ("limits", "low", "high"),
    [
        ({"first.0": (0.75, 1.0)}, 12, 16),
        ({"first.0": (1.0, 1.0)}, 16, 16),
        ({"first.*": (0.1, 1.0), "first.0": 13}, 13, 13),
        ({"first.0.weight": (2, 5)}, 2, 5),
        ({"first.0": (5, 5)}, 5, 5),
        ({"first": (0.75, 0.8)}, 12, 12),
        ({"first.[0-1]": 0.5}, 8, 8),
        ({"first.0": (14, 1.0)}, 14, 16),
    ],
    ids=str,
)
def test_widths_keep_their_limits(limits, low, high, options):
    assert low <= widths(limits, budget=0.5, **options)["a"] <= high


def test_without_limits_it_would_be_narrower():
    """Else keeping them would prove nothing."""
    assert widths({})["a"] < 12
    assert widths({"first.0": (0.75, 1.0)})["a"] >= 12


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"first.0": 17},
            r"limits of 'first.0': 17 channels are to stay, and 'first.0' has 16 channels: write at most 16",
        ),
        ({"first.0": (1000, 1000)}, "or 1.0 to keep all"),
        ({"first.*": 21}, "'first.2', the widest that is meant, has 20 channels"),
    ],
    ids=str,
)
def test_more_channels_than_there_are_is_an_error(limits, message):
    with pytest.raises(BudgetError, match=message):
        widths(limits)


def test_a_number_for_several_groups_means_all_of_those_that_have_fewer():
    found = widths({"first.*": 18, "second.0": (1, 1000)}, budget=0.6)
    assert (found["a"], found["stream"]) == (16, 18)


def test_what_a_channel_is_is_said_where_it_is_several_outputs():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.PixelShuffle(2), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    with pytest.raises(BudgetError, match="'0' has 4 channels of 4 outputs each: write at most 4"):
        halp_fx.prune(model, 0.5, X, limits={"0": 16}, latency="macs", progress=False)


def test_a_residual_stream_is_meant_by_any_layer_that_makes_it():
    assert widths({"second.2": 15})["stream"] == 15
    assert widths({"first.2": 15})["stream"] == 15


def test_a_group_by_its_name():
    coupling = halp_fx.channel_groups(Stages(), X[:1])
    name = next(g.name for g in coupling.prunable if g.size == 24)
    assert widths({name: 7})["c"] == 7


def test_limits_stand_in_place_of_min_keep():
    assert widths({"second.0": (1, 3)}, min_keep=0.9, budget=0.8)["c"] <= 3


def test_a_curve_keeps_them():
    model = Stages()
    curve = halp_fx.pareto(model, [0.7, 0.5], X[:1], latency=MacsCost(), limits={"first.0": 13}, progress=False)
    assert [curve.network(p).first[0].out_channels for p in curve.points] == [13, 13]


def test_a_budget_that_they_do_not_allow():
    with pytest.raises(InfeasibleError, match=r"wider limits \('first', 'second'\)"):
        widths({"first": 0.9, "second": 0.9}, budget=0.2)


def test_bounds_that_only_rounding_parts_and_those_of_a_later_entry_hold():
    assert widths({"first.2": (0.43, 0.44)})["stream"] == 9  # 8.6 to 8.8 of 20.
    assert widths({"first.0": (0.8, 5), "first": (3, 6)})["a"] <= 6


def test_a_budget_that_is_met_already_leaves_wider_what_limits_ask_to_be_narrow():
    small = halp_fx.prune(Stages(), 1.0, X[:1], latency=MacsCost(), limits={"first.0": 4}, progress=False)
    assert small.first[0].out_channels == 16
    assert small.halp.notes[-1].endswith("nothing was removed, also where limits ask for less")


@pytest.mark.parametrize(
    ("limits", "error", "match"),
    [
        ({"nowhere": 0.5}, ModelError, "limits: the name 'nowhere' matches no"),
        ({"frist.*": 0.5}, ModelError, "pattern"),
        ({"first.1": 0.5}, ModelError, "holds no channels"),
        ({"head": 0.5}, ModelError, "may not shrink"),
        ({"first.0": 0}, BudgetError, "neither a share"),
        ({"first.0": 1.5}, BudgetError, "neither a share"),
        ({"first.0": True}, BudgetError, "neither a share"),
        ({"first.0": (0.5, "all")}, BudgetError, "'all' is neither"),
        ({"first.0": (0.8, 0.5)}, BudgetError, "above the largest"),
        ([("first.0", 3)], BudgetError, "must be a mapping"),
        (
            {"first.0": (0.8, 5)},
            BudgetError,
            r"of the 16 channels of .* the smallest width 0.8 is 13 and the largest 5",
        ),
        ({"first.*": (18, 0.5)}, BudgetError, "the smallest width 18 is 16 and the largest 0.5 is 8"),
    ],
    ids=str,
)
def test_bad_limits(limits, error, match):
    with pytest.raises(error, match=match):
        widths(limits)


def test_a_budget_that_limits_leave_unused_says_so():
    small = halp_fx.prune(Stages(), 0.95, X[:1], latency=MacsCost(), limits={"*": (0.1, 0.3)}, progress=False)
    assert "or limits do not allow them" in small.halp.notes[-1]
