"""Budgets as users write them, and the widths that groups may take."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracle import Net
from torch import nn

import halp_fx
from halp_fx import BudgetError, Plan
from halp_fx.latency import MeasuredLatency
from halp_fx.pruning.budgets import amount, parse_budget
from halp_fx.pruning.goals import make_goals
from halp_fx.pruning.widths import FINE, compose, width_options


@pytest.mark.parametrize(
    ("text", "resource", "dense", "expected"),
    [
        (0.6, "latency", 10, 6),
        (1, "latency", 10, 10),
        ("60%", "latency", 10, 6),
        (" 4.0 ms ", "latency", 10, 4),
        ("500us", "latency", 10, 0.5),
        ("0.004s", "latency", 10, 4),
        ("1.5G", "macs", 4e9, 1.5e9),
        ("0.5", "latency", 10, 5),
        ("50%", "params", 100, 50),
        ("2MiB", "memory", 1, 2**21),
        ("80", "tiles", 100, 80),  # a cost of the caller's, in whatever unit
        ("0.8", "tiles", 100, 80),
        ("1.82 G MACs", "macs", 4e9, 1.82e9),  # as reports write them
        ("300k macs", "macs", 1e9, 3e5),
        ("1.5 GFLOPs", "macs", 4e9, 0.75e9),
        ("4.89 k parameters", "params", 1e6, 4890),
        ("5M params", "params", 1e9, 5e6),
    ],
)
def test_forms(text, resource, dense, expected):
    assert parse_budget(text, resource).limit(dense) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("budget", "resource", "said"),
    [
        ("10fps", "latency", 'is a rate: write the time of one call, "100ms"'),
        ("60pct", "macs", 'write a share of the dense network as "60%"'),
        ("4ms", "macs", r"'ms' is not a unit of macs \(k, m, g, t, .*…\); it is one of latency: .* such as \"1.5G\""),
        ("5M params", "macs", r"'mparams' is not a unit of macs .* it is one of params"),
        ("80", "macs", 'did you mean "80%"'),
        ("4 ms 2", "latency", "is malformed"),
        ("lots", "params", 'is malformed: .* such as "5M"'),
        ("-5%", "memory", 'is not between 0 and 1, .* such as "20MB"'),
    ],
)
def test_what_was_probably_meant_is_said(budget, resource, said):
    with pytest.raises(BudgetError, match=said):
        parse_budget(budget, resource)


@pytest.mark.parametrize(
    "budget",
    [
        0,
        -0.5,
        1.5,
        4.0,
        float("nan"),
        float("inf"),
        "",
        "fast",
        "120%",
        "-3ms",
        "0ms",
        "4 parsecs",
        True,
        None,
        "4,0ms",
    ],
    ids=str,
)
def test_malformed_or_out_of_range(budget):
    with pytest.raises(BudgetError, match="budget"):
        parse_budget(budget)


@pytest.mark.parametrize(
    ("written", "resource"),
    [
        ("macs", "macs"), ("MACs", "macs"), ("params", "params"), ("memory", "memory"), ("flops", "macs"),
        (halp_fx.MacsCost, "macs"), (halp_fx.latency.ParamsCost, "params"), (halp_fx.MacsCost(), "macs"),
        (MeasuredLatency, "latency"), (None, "latency"),
    ],
    ids=str,
)  # fmt: skip
def test_costs_by_name_class_and_instance(written, resource, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    goals = make_goals(0.5, written)
    assert goals.cost.resource == resource
    assert goals.measured == (resource == "latency")
    assert not list(tmp_path.iterdir())


def test_a_flop_is_half_a_mac():
    assert make_goals("3G", "flops").budget.amount == 1.5e9
    assert make_goals("3G", "macs").budget.amount == 3e9
    assert make_goals("30%", "flops").budget.share == 0.3
    for latency in ("macs", "flops"):
        assert make_goals("3 GFLOPs", latency).budget.amount == 1.5e9
        assert make_goals("3GMACs", latency).budget.amount == 3e9
    goals = make_goals({"latency": "4ms", "flops": "2G"})
    assert [(cost.resource, budget.amount) for cost, budget in goals.further] == [("macs", 1e9)]
    assert make_goals({"flops": 0.5}).budget.share == 0.5
    with pytest.raises(BudgetError, match="one resource"):
        make_goals({"flops": 0.5, "macs": 0.5})


def test_a_table_is_a_folder_or_a_json_file_that_is_there(tmp_path):
    for path in (tmp_path, str(tmp_path)):
        assert make_goals(0.5, path).cost.table == path
    for path in (tmp_path / "mine.json", str(tmp_path / "mine.json")):
        with pytest.raises(BudgetError, match="no such latency table"):
            make_goals(0.5, path)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("mac", "latency='mac' is neither a cost"),
        ("inductor", "MeasuredLatency\\(runtime='inductor'\\)"),
        ("/nowhere/table", "a table is a .json file"),
        (halp_fx.RooflineCost, "RooflineCost is a class: pass an instance"),
        (int, "neither a path to a table nor a cost"),
        (3, "MacsCost"),
    ],
    ids=str,
)
def test_what_is_no_cost_is_named(written, words):
    with pytest.raises(BudgetError, match=words):
        make_goals(0.5, written)


def group(size, slots=1):
    model = nn.Sequential(
        nn.Conv2d(3, size * slots, 1),
        nn.Conv2d(size * slots, size * slots, 1, groups=size),
        nn.Conv2d(size * slots, 2, 1),
    )
    return halp_fx.channel_groups(model, torch.randn(1, 3, 4, 4)).prunable[0]


def test_widths_suit_the_hardware():
    assert width_options(group(64)) == (8, 16, 24, 32, 40, 48, 56, 64)
    assert width_options(group(64), min_keep=0.5) == (32, 40, 48, 56, 64)
    assert width_options(group(64), min_keep=0.5, steps=FINE) == (32, 36, 40, 44, 48, 52, 56, 60, 64)
    assert width_options(group(64), min_keep=17) == (24, 32, 40, 48, 56, 64)
    assert width_options(group(20), round_to=8) == (8, 16, 20)
    assert width_options(group(4)) == (1, 2, 3, 4)
    # Two slots a channel: 4 channels are 8 slots.
    assert width_options(group(16, slots=2), round_to=8) == (4, 8, 12, 16)
    assert len(width_options(group(2048))) <= 33
    # Numbers of other types mean the same.
    assert width_options(group(64), round_to=16.0, min_keep=np.float32(0.5)) == (32, 48, 64)
    assert width_options(group(64), round_to=np.int64(16), min_keep=np.int64(33)) == (48, 64)
    assert parse_budget(np.float32(0.5)) == parse_budget(0.5)


@pytest.mark.parametrize(
    "bad",
    [{"round_to": 0}, {"round_to": 1.5}, {"round_to": math.nan}, {"round_to": "8"}, {"min_keep": 0}]
    + [{"min_keep": n} for n in (1.5, -1, "0.5", True, math.nan, None)],
    ids=str,
)
def test_bad_width_options(bad):
    with pytest.raises(BudgetError):
        width_options(group(8), **bad)


def test_plans_compose():
    first, second = Plan({"a": (0, 2, 4, 6), "b": (1,)}), Plan({"a": (1, 3), "c": (0,)})
    assert compose(first, second) == Plan({"a": (2, 6), "b": (1,), "c": (0,)})


def test_of_coarse_widths_small_steps_leave_what_one_step_leaves(tmp_path):
    """Each of the steps is smaller than what any width saves: alone they ended at 33 % of the MACs."""

    def forward(s, x):
        x = s.a(x).relu()
        return s.out(s.b((x + s.d(s.c(x).relu())).relu()).relu().mean((2, 3)))

    torch.manual_seed(0)
    images = torch.randn(24, 3, 8, 8)
    net = Net(
        forward, a=nn.Conv2d(3, 16, 3, padding=1), c=nn.Conv2d(16, 16, 3, padding=1), d=nn.Conv2d(16, 16, 1),
        b=nn.Conv2d(16, 24, 3, stride=2, padding=1), out=nn.Linear(24, 5),
    ).eval()  # fmt: skip
    call = {"data": images.split(8), "latency": "macs", "round_to": 8, "progress": False}

    def report(steps, **more):
        found = halp_fx.prune(net, 0.513, images[:1], steps=steps, **call, **more).halp
        assert found.met
        return found

    once = report(1)
    assert once.measured == pytest.approx(0.5 * once.dense, rel=0.01)
    for steps in (report(5, compensate=True, state=tmp_path), report(5, train_between=lambda model: None)):
        assert (steps.measured, steps.plan, len(steps.steps)) == (once.measured, once.plan, 4)
    again = report(5, compensate=True, state=tmp_path)
    assert (again.measured, again.plan, len(again.steps)) == (once.measured, once.plan, 4)


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (999_999.9, "MACs", "1.00 M MACs"),
        (999.9999e9, "", "1.00 T"),
        (999_400, "MACs", "999 k MACs"),
        (999.6, "ms", "1.00 s"),
        (999.4, "ms", "999 ms"),
    ],
)
def test_what_rounds_up_to_the_next_thousand_is_written_in_it(value, unit, said):
    assert amount(value, unit) == said
