"""Many choices priced at once against `WidthProblem.evaluate`, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_solver_property import KINDS, random_problem

import halp_fx
from halp_fx import MacsCost, Plan, WidthProblem
from halp_fx.errors import ProblemError
from halp_fx.latency import price
from halp_fx.latency.pricing import PriceList
from halp_fx.pruning.widths import build_problem, width_options
from halp_fx.scoring.values import WidthValues
from halp_fx.solver import CostTable, Term, WidthGroup


@settings(max_examples=120, deadline=None, database=None, derandomize=True)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6), groups=st.integers(1, 5))
def test_as_one_by_one(kind, seed, groups):
    problem = random_problem(kind, seed, groups, whole=False)
    rng = np.random.default_rng(seed)
    prices = PriceList.of(problem)
    choices, gone = [], []
    for _ in range(7):
        choices.append({name: int(rng.choice(g.widths)) for name, g in problem.groups.items()})
        gone.append([bool(rng.integers(2)) for _ in problem.branches])
    widths, _ = prices.rows(choices)
    dropped = torch.tensor(gone, dtype=torch.bool).reshape(7, -1)
    found = prices.totals(widths, dropped)
    for row, choice, without in zip(found.tolist(), choices, gone, strict=True):
        names = [b.name for b, drop in zip(problem.branches, without, strict=True) if drop]
        _, costs = problem.evaluate(choice, names)
        assert dict(zip(prices.resources, row, strict=True)) == pytest.approx(costs, abs=1e-9)


def test_widths_of_groups_that_are_gone_do_not_matter():
    problem = next(
        p for p in (random_problem("branches", s, 4, True) for s in range(99)) if any(b.groups for b in p.branches)
    )
    prices = PriceList.of(problem)
    widths, dropped = prices.rows([{}])
    dropped[:] = True
    other = torch.where(prices.inside.any(0), torch.full_like(widths, 10**9), widths)
    assert not torch.equal(other, widths)
    assert torch.equal(prices.totals(widths, dropped), prices.totals(other, dropped))
    with pytest.raises(ProblemError, match="1000000000"):
        prices.totals(other)


def residual():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Conv2d(16, 8, 3, padding=1)
            self.outer, self.head = torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.Linear(16, 5)

        def forward(self, x):
            x = self.stem(x)
            return self.head((x + self.outer(self.inner(x).relu())).relu().mean((2, 3)))

    return Block(), torch.randn(1, 3, 8, 8)


def test_plans_of_a_network_cost_what_their_networks_do():
    model, x = residual()
    coupling = halp_fx.channel_groups(model, x)
    options = {g.name: width_options(g, 1) for g in coupling.prunable}
    cost = MacsCost()
    values = {g.name: WidthValues.of_scores(np.ones(g.size)) for g in coupling.prunable}
    problem = build_problem(coupling, values, options, cost.tables(coupling, options), {"macs": 1e9}, "MACs")
    rng = np.random.default_rng(0)
    plans = [
        Plan({g.name: tuple(range(int(rng.choice(options[g.name])))) for g in coupling.prunable if rng.random() < 0.7})
        for _ in range(20)
    ]
    expected = [cost.total(halp_fx.channel_groups(halp_fx.rewrite(model, p, x), x)) for p in plans]
    assert len(set(expected)) > 5
    assert price(problem, plans)["macs"].tolist() == pytest.approx(expected)


def small_problem():
    widths = np.arange(1, 5)
    table = CostTable("c", (Term("a"),), (), in_widths=widths, table=np.arange(4.0)[None])
    return WidthProblem("p", {"a": WidthGroup(widths, np.zeros(4))}, (table,), {"other": 1.0})


def test_a_large_population_is_priced_in_parts(monkeypatch):
    prices = PriceList.of(small_problem())
    widths = torch.arange(1, 5).repeat(5)[:, None]
    whole = prices.totals(widths)
    monkeypatch.setattr("halp_fx.latency.pricing.AT_ONCE", 3)
    assert torch.equal(prices.totals(widths), whole)
    assert whole[:, prices.resources.index("latency")].tolist() == [0.0, 1.0, 2.0, 3.0] * 5
    assert not whole[:, prices.resources.index("other")].any()
    assert prices.totals(widths[:0]).shape == (0, 2)


@pytest.mark.parametrize(
    ("widths", "match"),
    [
        (torch.tensor([[2], [5]]), "choice 1: width 5 of group 'a' is outside of what it may be, 1 to 4"),
        (torch.tensor([[0]]), "width 0"),
        (torch.tensor([[1.5]]), "float32"),
        (torch.tensor([[1, 2]]), "1 groups"),
    ],
)
def test_what_is_no_choice_is_named(widths, match):
    with pytest.raises(ProblemError, match=match):
        PriceList.of(small_problem()).totals(widths)
    with pytest.raises(ProblemError, match="1 choices and 0 branches"):
        PriceList.of(small_problem()).totals(torch.tensor([[1]]), torch.zeros(1, 3, dtype=torch.bool))


def test_a_problem_without_costs_has_no_prices():
    with pytest.raises(ProblemError, match="no costs"):
        PriceList.of(WidthProblem("empty", {"a": WidthGroup(np.array([1]), np.zeros(1))}, (), {}))
