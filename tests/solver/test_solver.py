"""The width solver on the stored problems, its limits, its baselines, and what it refuses."""

import ast
import itertools
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import halp_fx
import halp_fx.solver
from halp_fx.errors import HalpError, InfeasibleError, ProblemError
from halp_fx.solver import CostTable, Term, WidthGroup, WidthProblem, restrict, solve
from halp_fx.solver.elimination import Elimination
from halp_fx.solver.halp import greedy_knapsack
from halp_fx.solver.layout import Shared

STORED = sorted((Path(__file__).parents[1] / "data" / "solver_problems").glob("*.json"))
NAN = float("nan")
FEASIBLE = [path for path in STORED if path.stem != "infeasible"]


def small(**changes) -> dict:
    """Two groups in a chain as parsed JSON. Values 1..4 and 2..8, latencies 1..7."""
    data = {
        "name": "small",
        "groups": {
            "a": {"widths": [4, 8, 16], "value": [1, 3, 4]},
            "b": {"widths": [8, 16], "value": [2, 8]},
        },
        "costs": [
            {"name": "first", "in": [], "out": "a", "in_widths": [3], "out_widths": [4, 16], "table": [[1], [4]]},
            {
                "name": "second", "in": ["a"], "out": "b", "in_widths": [4, 8, 16], "out_widths": [8, 16],
                "table": [[1, 2, 3], [2, 5, 7]],
            },
        ],
        "budget": 6.0,
    }  # fmt: skip
    return data | changes


def problem(**changes) -> WidthProblem:
    return WidthProblem.from_json(small(**changes))


@pytest.mark.parametrize("path", FEASIBLE, ids=lambda p: p.stem)
@pytest.mark.parametrize("method", ["auto", "lagrangian", "exact"])
def test_stored_problem(path, method):
    known = json.loads(path.read_text())["known"]
    p = WidthProblem.from_json(path)
    s = solve(p, method)
    least = 1 - 1e-6 if method == "exact" else 0.999
    assert s.value >= least * known["optimal_value"]
    assert s.costs["latency"] <= p.budgets["latency"]
    assert (s.value, s.costs) == p.evaluate(s.widths)
    assert s.upper_bound >= known["optimal_value"] * (1 - 1e-6)
    assert s.gap <= (0.006 if method == "lagrangian" else 0.001)
    least, most = (sum(float(g.value[end]) for g in p.groups.values()) for end in (0, -1))
    judged_by = min(s.upper_bound - least, 10 * (most - s.value))
    assert s.gap == pytest.approx((s.upper_bound - s.value) / judged_by, abs=1e-5)  # Ties, magnified.
    assert s.status == ("optimal" if s.gap <= 1e-6 else "within_gap" if s.gap <= 1e-3 else "feasible")


@pytest.mark.parametrize("method", ["halp", "uniform", "greedy"])
@pytest.mark.parametrize("path", FEASIBLE[:5], ids=lambda p: p.stem)
def test_baselines_stay_within_the_budget_and_below_auto(path, method):
    p = WidthProblem.from_json(path)
    s = solve(p, method)
    assert p.fits(s.costs)
    assert s.method == method
    at_its_latency = solve(replace(p, budgets={"latency": s.costs["latency"]}))
    # Greedy can be optimal, and then `auto` may stop within its gap of it.
    assert at_its_latency.value >= s.value * (1 - (1e-3 if method == "greedy" else 1e-9))
    assert s.upper_bound >= s.value


def test_infeasible_names_the_minimum_and_the_groups():
    path = next(path for path in STORED if path.stem == "infeasible")
    known = json.loads(path.read_text())["known"]
    for method in ("auto", "exact", "lagrangian", "greedy", "uniform", "halp"):
        with pytest.raises(InfeasibleError, match=r"smallest is 236\.371") as caught:
            solve(WidthProblem.from_json(path), method)
        assert caught.value.minimum == pytest.approx(known["minimum_latency"], abs=1e-3)
        assert caught.value.groups[0] == "dense1"


def test_large_amounts_are_written_without_exponents():
    grown = [{"in": [], "out": "a", "in_widths": [3], "out_widths": [4, 16], "table": [[2.5e6], [1e7]]}]
    with pytest.raises(InfeasibleError, match=r"budget of 1,234,567 us: the smallest is 2,500,000,"):
        solve(problem(costs=grown, budgets={"latency": 1_234_567.0}))


def test_budgets_that_each_can_be_met_but_not_together():
    grow = [[5.0], [1.0]]
    shrink = [[1.0], [5.0]]
    costs = [
        {"in": [], "out": "a", "in_widths": [3], "out_widths": [4, 16], "table": table, "resource": resource}
        for table, resource in ((grow, "latency"), (shrink, "memory"))
    ]
    p = problem(costs=costs, budgets={"latency": 2.0, "memory": 2.0})
    for method in ("auto", "exact", "lagrangian"):
        with pytest.raises(InfeasibleError, match=r"latency 2, memory 2\) together"):
            solve(p, method)
    loose = replace(p, budgets={"latency": 3.7, "memory": 3.7})
    s = solve(loose, "exact")
    assert s.widths["a"] == 8
    assert s.costs == pytest.approx({"latency": 5 - 4 / 3, "memory": 1 + 4 / 3})


def test_wider_and_faster_is_taken():
    table = [[9.0], [1.0]]
    costs = [{"in": [], "out": "a", "in_widths": [3], "out_widths": [4, 16], "table": table}]
    groups = {"a": {"widths": [4, 16], "value": [1, 4]}}
    assert solve(problem(groups=groups, costs=costs, budget=2.0)).widths == {"a": 16}


def test_interpolates_along_both_axes_and_is_exact_at_grid_points():
    table = CostTable("c", (), (), 0, 0, np.array([4, 8]), np.array([10, 20, 40]), np.array([[1, 2], [3, 8], [5, 6]]))
    np.testing.assert_array_equal(table.at([10, 20, 40], [4, 8]), table.table)
    assert table.at(15, 6)[0, 0] == pytest.approx((1 + 2 + 3 + 8) / 4)
    assert table.at(25, 4)[0, 0] == pytest.approx(3 + 2 * 5 / 20)
    with pytest.raises(ProblemError, match="input width 9 is outside its table, which covers 4 to 8"):
        table.at(20, 9)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1), (4, 5)], ids=str)
def test_one_entry_is_that_of_the_whole_table(shape):
    rng = np.random.default_rng(0)
    outs, ins = (np.sort(rng.choice(np.arange(1, 20), n, replace=False)) for n in shape)
    cost = CostTable("c", (Term("a"),), (Term("b"),), in_widths=ins, out_widths=outs, table=rng.normal(size=shape))
    every = cost.at(np.arange(outs[0], outs[-1] + 1), np.arange(ins[0], ins[-1] + 1))
    for i, row in enumerate(every):
        assert [cost.entry(int(outs[0]) + i, int(ins[0]) + j) for j in range(len(row))] == row.tolist()
    with pytest.raises(ProblemError, match="output width 40 is outside"):
        cost.entry(40, int(ins[0]))


def test_offsets_scales_and_input_only_costs():
    groups = {
        "a": WidthGroup(np.array([2, 4]), np.array([1.0, 3.0])),
        "b": WidthGroup(np.array([1, 3]), np.array([1.0, 2.0])),
    }
    grid = np.array([0, 100])
    line = np.array([[0.0, 100.0]])
    flat = CostTable("norm", (Term("a", 9), Term("b")), (), in_offset=5, in_widths=grid, out_widths=[1], table=line)
    p = WidthProblem("p", groups, (flat,), {"latency": 5 + 9 * 4 + 1})
    s = solve(p, "exact")
    assert s.widths == {"a": 4, "b": 1}
    assert s.costs["latency"] == 42


def test_a_branch_is_dropped_when_it_costs_more_than_it_is_worth():
    data = small(branches=[{"name": "rest", "groups": ["b"], "costs": ["second"], "value": 0.5}])
    tight = solve(WidthProblem.from_json(data | {"budget": 4.0}), "exact")
    assert tight.widths == {"a": 4, "b": 16}
    assert tight.dropped == ()
    data["groups"]["b"]["value"] = [0.1, 0.2]
    s = solve(WidthProblem.from_json(data | {"budget": 4.0}), "exact")
    assert s.dropped == ("rest",)
    assert s.widths == {"a": 16, "b": 0}
    assert s.value == 4
    assert s.costs == {"latency": 4}


def test_a_resource_without_a_budget_is_reported_only():
    p = WidthProblem("p", problem().groups, problem().costs, {})
    s = solve(p)
    assert s.widths == {"a": 16, "b": 16}
    assert s.costs == {"latency": 11}
    assert s.status == "optimal"


def test_restrict():
    p = problem()
    assert list(restrict(p, minimum=8).groups["a"].widths) == [8, 16]
    assert list(restrict(p, maximum={"a": 8}).groups["a"].widths) == [4, 8]
    assert list(restrict(p, maximum={"a": 8}).groups["b"].widths) == [8, 16]
    # The full width needs no alignment.
    assert list(restrict(p, multiple=16).groups["a"].widths) == [16]
    assert list(restrict(p, multiple={"a": 3}).groups["a"].widths) == [16]
    for bad, message in [
        ({"minimum": 17}, "group 'a' has widths 4 to 16, none of which"),
        ({"maximum": {"c": 4}}, "group 'c', which the problem does not have"),
        ({"multiple": 0}, "must be at least 1"),
    ]:
        with pytest.raises(ProblemError, match=message):
            restrict(p, **bad)
    assert solve(restrict(p, maximum={"b": 8}), "exact").widths["b"] == 8


@pytest.mark.parametrize("given", ["problem.json", Path("problem.json"), {}, None], ids=lambda x: type(x).__name__)
def test_what_is_no_problem_says_how_to_read_one(given):
    kind = re.escape(type(given).__name__)
    with pytest.raises(ProblemError, match=rf"a WidthProblem, not a {kind}: .*WidthProblem\.from_json\(path\).*prune"):
        halp_fx.solve(given)


@pytest.mark.parametrize("given", ["name.json", Path("name.json"), 3, None, b""], ids=lambda x: type(x).__name__)
def test_what_is_read_from_json_may_be_a_path(given):
    """A path in place of text is a common mistake; anything else is an error of ours, too."""
    for cls in (halp_fx.Plan, halp_fx.Report):
        with pytest.raises(HalpError, match="in JSON") as error:
            cls.from_json(given)
        assert ("pass its text: pathlib.Path('name.json').read_text()" in str(error.value)) == ("name" in str(given))
    with pytest.raises(ProblemError) as error:
        halp_fx.WidthProblem.from_json(given)
    assert ("pass pathlib.Path('name.json')" in str(error.value)) == (given == "name.json")


def test_bad_arguments():
    with pytest.raises(ProblemError, match="method 'magic' is not one of auto, exact"):
        solve(problem(), "magic")
    for arguments in ({"work_limit": 0.0}, {"work_limit": NAN}, {"gap": -1.0}, {"gap": NAN}):
        with pytest.raises(ProblemError, match="give a limit > 0 and a gap >= 0"):
            solve(problem(), **arguments)
    with pytest.raises(ProblemError, match="knows one budget"):
        solve(replace(problem(), budgets={"latency": 6.0, "memory": 1.0}), "halp")


@pytest.mark.parametrize("method", ["auto", "exact", "lagrangian"])
def test_a_limit_on_work_returns_the_best_found_with_its_gap(method):
    path = next(path for path in STORED if path.stem == "resnet101-8@0.5")
    p = WidthProblem.from_json(path)
    s = solve(p, method, work_limit=1e-3)
    assert p.fits(s.costs)
    assert s.upper_bound >= 1063.2654 * (1 - 1e-6)
    assert s.limited
    assert s.gap > 1e-3
    assert s.status == "feasible"
    whole = solve(p, method)
    assert not whole.limited
    assert s.work < whole.work
    assert whole.value >= s.value


class Busy:
    """A clock of a machine that is so busy that every look at it is an hour later."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 3600.0
        return self.now


@pytest.mark.parametrize("method", ["auto", "exact", "lagrangian", "halp", "greedy"])
def test_no_clock_decides(method, monkeypatch):
    p = WidthProblem.from_json(next(path for path in STORED if path.stem == "resnet50-8@0.8"))
    first = solve(p, method)
    for name in ("perf_counter", "monotonic", "time", "process_time"):
        monkeypatch.setattr(time, name, Busy())
    second = solve(p, method)
    assert second.seconds >= 3600
    assert replace(second, seconds=0.0) == replace(first, seconds=0.0)


def test_a_milp_that_may_not_begin_is_a_limit(monkeypatch):
    p = WidthProblem.from_json(next(path for path in STORED if path.stem == "resnet101-8@0.5"))
    monkeypatch.setattr("halp_fx.solver.exact.MAX_COLUMNS", 1)
    s = solve(p, "exact")
    assert s.limited
    assert s.gap > 1e-6
    assert not solve(p).limited  # Content before it comes to that.


def test_more_work_finds_no_worse():
    p = WidthProblem.from_json(next(path for path in STORED if path.stem == "resnet50-8@0.8"))
    few, many = (solve(p, "exact", work_limit=limit) for limit in (1e-4, 10.0))
    assert few.limited
    assert not many.limited
    assert few.value < many.value
    assert few.upper_bound >= many.value


def test_every_option_s_max_marginal_against_brute_force():
    """On the concat problem, whose elimination goes through sums."""
    model = Shared().compiled(WidthProblem.from_json(STORED[0]))
    prices = model.flat_value - 20.0 * model.flat_cost[0]
    sizes = model.sizes[:4]
    marginals = Elimination(model).max_marginals(prices)
    rest = itertools.product(*(range(size) for size in model.sizes[4:7]))
    states = np.array([[*front, *back] for back in rest for front in itertools.product(*map(range, sizes))]).T
    states = model.complete(np.concatenate([states, np.zeros((len(model.sizes) - 7, states.shape[1]), int)]))
    total = prices[model.entries(states)].sum(axis=0)
    for row, marginal in zip(states, marginals, strict=True):
        best = [total[row == k].max() for k in range(len(marginal))]
        np.testing.assert_allclose(marginal, best, rtol=1e-9)


def test_published_knapsack_against_its_definition():
    """Algorithm 1 as scalar loops, on random items with ties, zero weights and capacities below one item."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        items = [
            (rng.integers(0, 4, n).astype(float).tolist(), rng.integers(0, 6, n).tolist())
            for n in rng.integers(0, 5, 4)
        ]
        capacity = int(rng.integers(0, 25))
        best, kept = [0.0] * (capacity + 1), []
        for values, weights in items:
            count = [0] * (capacity + 1)
            for rank, (value, weight) in enumerate(zip(values, weights, strict=True)):
                old_best, old_count = best[:], count[:]
                for c in range(weight, capacity + 1):
                    if old_best[c - weight] + value > old_best[c] and old_count[c - weight] == rank:
                        best[c], count[c] = old_best[c - weight] + value, rank + 1
            kept.append(count)
        expected, left = [], capacity
        for count, (_, weights) in zip(reversed(kept), reversed(items), strict=True):
            expected.insert(0, count[left])
            left -= sum(weights[: count[left]])
        assert greedy_knapsack(items, capacity) == expected


def test_imports_no_torch():
    for path in Path(halp_fx.solver.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            assert not {name.split(".")[0] for name in names} & {"torch", "torchvision"}, path.name


def chain(values, count=8, options=8):
    """Groups in a row, as wide as one another; layer i costs the product of the widths at its two ends. `values(g, w)`
    says what (K,) widths of group g are worth."""
    widths = 8 * np.arange(1, options + 1)
    groups = {f"g{g}": WidthGroup(widths, values(g, widths)) for g in range(count)}
    product = widths[:, None] * widths
    costs = [
        CostTable(f"c{g}", (Term(f"g{g}"),), (Term(f"g{g + 1}"),), 0, 0, widths, widths, product)
        for g in range(count - 1)
    ]
    dense = float(product[-1, -1] * (count - 1))
    return WidthProblem("chain", groups, tuple(costs), {"latency": dense}), dense


def test_what_all_choices_have_in_common_decides_nothing():
    """A network that scores say little about, whose smallest widths hold 99.99 % of the value."""
    p, dense = chain(lambda g, w: 1e5 + (1 + g % 3) * np.sqrt(w))
    before = (0.0, 0.0)
    for fraction in np.linspace(0.1, 1.0, 19):
        tight = replace(p, budgets={"latency": fraction * dense})
        s, best = solve(tight), solve(tight, "exact")
        least = 8e5 + 16 * np.sqrt(8)
        assert s.value - least >= (1 - 1e-3) * (best.value - least)
        assert (s.value, s.costs["latency"]) >= before
        before = (s.value, s.costs["latency"])
    assert s.status == "optimal"
    assert set(s.widths.values()) == {64}


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_without_any_signal_widths_are_near_uniform_and_the_budget_is_spent(value):
    p, dense = chain(lambda _, w: np.full(len(w), value))
    for fraction in (0.25, 0.5, 0.75):
        s = solve(replace(p, budgets={"latency": fraction * dense}))
        assert fraction - 0.06 < s.costs["latency"] / dense <= fraction
        # The ends of the chain stand in one layer only, so they may be wider.
        inner = [s.widths[f"g{g}"] / 64 for g in range(1, 7)]
        assert fraction**0.5 - 0.2 < min(inner) <= max(inner) < fraction**0.5 + 0.2


def test_equal_values_go_to_the_wider_network():
    p, dense = chain(lambda g, w: w.astype(float) if g < 4 else np.zeros(len(w)))
    s = solve(replace(p, budgets={"latency": 0.7 * dense}))
    assert all(s.widths[f"g{g}"] == 64 for g in range(4))
    assert s.costs["latency"] > 0.6 * dense
    assert min(s.widths[f"g{g}"] for g in range(4, 8)) >= 16
