"""Counted costs: against the network itself, against FLOP counters, and table against total."""

from __future__ import annotations

import random

import pytest
import torch
from test_latency_layers import Everything, couple, some_widths
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from halp_fx import rewrite
from halp_fx.errors import LatencyError
from halp_fx.latency import CallableCost, Cost, MacsCost, MemoryCost, ParamsCost, RooflineCost
from halp_fx.latency.grids import Range, adaptive_grid
from halp_fx.latency.lookup import cost_at, stack_tables
from halp_fx.trials.trials import channel_groups
from halp_fx.types import Plan

COSTS = [
    MacsCost(),
    ParamsCost(),
    RooflineCost(1e9, 1e9),
    CallableCost(lambda layer, i, o: i * 2.0 + o, "energy", "mJ"),
]


def all_options(coupling):
    return {g.name: tuple(range(1, g.size + 1)) for g in coupling.prunable}


@pytest.mark.parametrize("cost", [*COSTS, MemoryCost()], ids=lambda c: type(c).__name__)
def test_is_a_cost(cost):
    assert isinstance(cost, Cost)


@pytest.mark.parametrize("cost", COSTS, ids=lambda c: type(c).__name__)
def test_tables_sum_up_to_the_total(cost):
    coupling = couple()
    tables = cost.tables(coupling, all_options(coupling))
    assert {t.resource for t in tables} == {cost.resource}
    for seed in range(5):
        widths = some_widths(coupling, seed)
        total = sum(cost_at(table, widths) for table in tables)
        # Bends between grid lines (the corner of a roofline) are met to 0.1 % of each layer.
        assert total == pytest.approx(cost.total(coupling, widths), rel=2e-3)
    assert sum(cost_at(t, coupling.widths()) for t in tables) == pytest.approx(cost.total(coupling))


def test_macs_are_those_of_the_flop_counter():
    model, x = Everything().eval(), torch.rand(2, 3, 8, 8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert MacsCost().total(channel_groups(model, x)) == counter.get_total_flops() / 2


def test_params_are_those_of_the_pruned_network():
    model, x = Everything().eval(), torch.rand(2, 3, 8, 8)
    coupling = channel_groups(model, x)
    assert ParamsCost().total(coupling) == sum(p.numel() for p in model.parameters())
    plan = Plan({g.name: tuple(range((g.size + 1) // 2)) for g in coupling.prunable})
    small = rewrite(model, plan, x)
    assert ParamsCost().total(coupling, coupling.widths(plan)) == sum(p.numel() for p in small.parameters())
    assert MacsCost().total(coupling, coupling.widths(plan)) == MacsCost().total(channel_groups(small, x))


def test_tied_and_unused_parameters_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.idle = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(3, 3)
            self.b.weight = self.a.weight
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x):
            return self.norm(self.b(self.a(x)))

    model = Tied()
    assert ParamsCost().total(channel_groups(model, torch.rand(2, 6))) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("arguments", [(0, 1e9), (float("nan"), 1e9), (1e12, -1)])
def test_roofline_refuses_nonsense(arguments):
    with pytest.raises(LatencyError, match="positive"):
        RooflineCost(*arguments)


def test_a_callable_must_give_numbers():
    with pytest.raises(LatencyError, match="nan"):
        CallableCost(lambda *_: float("nan")).total(couple())


def test_packed_tables_answer_like_single_ones():
    from halp_fx.kernels import lookup

    coupling = couple()
    tables = MacsCost().tables(coupling, all_options(coupling))
    rng = random.Random(0)
    index = [rng.randrange(len(tables)) for _ in range(200)]
    n_in = [rng.randint(int(tables[i].in_widths[0]), int(tables[i].in_widths[-1])) for i in index]
    n_out = [rng.randint(int(tables[i].out_widths[0]), int(tables[i].out_widths[-1])) for i in index]
    found = lookup(stack_tables(tables), *map(torch.tensor, (index, n_in, n_out)))
    expected = [tables[i].at([o], [x])[0, 0] for i, x, o in zip(index, n_in, n_out, strict=True)]
    assert found.tolist() == pytest.approx(expected)


def test_grid_puts_lines_at_steps():
    asked = []

    def staircase(points):
        asked.extend(points)
        return [10.0 * (i > 40) + i * 0.01 for i, _ in points]

    grid = adaptive_grid(Range(8, 128, 8), Range(0, 0), staircase, 0.5, first=3, most=9)
    assert {40, 48} <= set(grid.in_widths)
    assert len(asked) == len(set(asked)) <= 9
    assert grid.at(40, 0) == pytest.approx(0.4)


def test_grid_is_coarse_where_the_cost_is_straight():
    grid = adaptive_grid(Range(8, 512, 8), Range(8, 256, 8), lambda p: [i * o * 1.0 for i, o in p], 1e-6)
    assert grid.values.shape == (3, 3)
    assert grid.at(100, 50) == pytest.approx(5000)


def test_grid_takes_known_lines_for_free():
    known = {(i, o) for i in (8, 24, 64) for o in (8, 40, 64)}
    grid = adaptive_grid(Range(8, 64, 8), Range(8, 64, 8), lambda p: [0.0] * len(p), 1.0, first=2, known=known)
    assert grid.in_widths == (8, 24, 64)
    assert grid.out_widths == (8, 40, 64)
