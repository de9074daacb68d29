"""Random small problems against brute force: 2,000 cases of every kind that the solver knows.

The oracle shares no code with the solver: it lays all choices out as arrays and interpolates with its own formula.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halp_fx.errors import InfeasibleError
from halp_fx.solver import Branch, CostTable, Solution, Term, WidthGroup, WidthProblem, restrict, solve
from halp_fx.solver.elimination import Elimination
from halp_fx.solver.lagrangian import bound_and_search
from halp_fx.solver.layout import Shared
from halp_fx.solver.local import Incumbent, Neighbourhood
from halp_fx.solver.model import TIE
from halp_fx.solver.work import Work

CASES = settings(
    max_examples=500, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
KINDS = ("pairwise", "concat", "branches", "shared", "budgets")


def _grid(rng: np.random.Generator, low: int, high: int) -> np.ndarray:
    """A coarse grid that covers low..high, so that most widths lie between its points."""
    inner = rng.choice(np.arange(low, high + 1), size=rng.integers(0, 4))
    return np.unique([low, high, *inner])


def _terms(rng: np.random.Generator, groups: list[str], most: int) -> list[Term]:
    """Up to `most` of the groups, some with a scale."""
    chosen = rng.permutation(groups)[: int(rng.integers(0, most + 1))]
    return [Term(str(g), int(rng.integers(1, 3)) if rng.random() < 0.2 else 1) for g in chosen]


def random_problem(kind: str, seed: int, groups: int, whole: bool) -> WidthProblem:
    """A problem with noisy, non-monotone, partly negative tables; `whole` makes every number a small integer."""
    rng = np.random.default_rng(seed)

    def numbers(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.integers(int(low), int(high) + 1, shape) if whole else rng.uniform(low, high, shape)

    made = {}
    for g in range(groups):
        size = int(rng.integers(1, 5))
        widths = np.sort(rng.choice(np.arange(1, 13), size=size, replace=False))
        value = numbers(0, 5, size) if rng.random() < 0.1 else np.sort(np.cumsum(numbers(0, 4, size)))
        made[f"g{g}"] = WidthGroup(widths, value)
    branches, home = [], {}
    names = list(made)
    if kind in ("branches", "shared"):
        for b in range(int(rng.integers(1, 3))):
            members = [g for g in names if g not in home and rng.random() < 0.4][:2]
            home |= dict.fromkeys(members, b)
            branches.append([f"b{b}", members, [], float(numbers(-1, 3)), {}])
        for name in names if kind == "shared" else ():
            if name not in home:
                branches[int(rng.integers(len(branches)))][4][name] = numbers(-1, 3, len(made[name].widths))
    resources = ["latency", "memory"] if kind == "budgets" else ["latency"]
    costs = []
    for c in range(int(rng.integers(groups, 2 * groups + 2))):
        owner = int(rng.integers(0, len(branches))) if branches and rng.random() < 0.6 else None
        usable = [g for g in names if home.get(g) in (None, owner)]
        inputs = _terms(rng, usable, 4 if kind == "concat" else 1)
        output = _terms(rng, usable, 2 if kind == "concat" and rng.random() < 0.2 else 1)
        offsets = [int(rng.integers(0, 3)) if terms else 0 for terms in (inputs, output)]
        axes = []
        for terms, offset in zip((inputs, output), offsets, strict=True):
            ends = [offset + sum(t.scale * made[t.group].widths[e] for t in terms) for e in (0, -1)]
            axes.append(_grid(rng, *ends) if terms else np.array([3]))
        table = numbers(-1, 9, len(axes[1]), len(axes[0]))
        resource = str(rng.choice(resources))
        costs.append(CostTable(f"c{c}", tuple(inputs), tuple(output), *offsets, *axes, table, resource))
        if owner is not None:
            branches[owner][2].append(c)
    bare = WidthProblem(
        "random", made, tuple(costs), {}, tuple(Branch(n, tuple(g), tuple(c), v, a) for n, g, c, v, a in branches)
    )
    _, table = brute_force_table(bare)
    budgets = {}
    for resource in resources:
        reach = table.get(resource, np.zeros(1))
        if rng.random() < 0.3:
            budgets[resource] = float(rng.choice(reach))
        else:
            budgets[resource] = float(np.quantile(reach, rng.uniform(0, 0.8)) - (rng.random() < 0.1) * 5)
    return WidthProblem("random", bare.groups, bare.costs, budgets, bare.branches)


def brute_force_table(problem: WidthProblem) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(M,) value and costs of every combination of widths and branches."""
    names = list(problem.groups)
    ranges = [range(len(problem.groups[g].widths)) for g in names] + [range(2)] * len(problem.branches)
    every = np.array(list(itertools.product(*ranges)), np.int64).T
    kept = {b.name: every[len(names) + i].astype(bool) for i, b in enumerate(problem.branches)}
    inside = {g: b.name for b in problem.branches for g in b.groups}
    value = np.zeros(every.shape[1])
    widths = {}
    for row, g in zip(every, names, strict=False):
        widths[g] = problem.groups[g].widths[row]
        value += problem.groups[g].value[row] * kept.get(inside.get(g, ""), 1)
    for b in problem.branches:
        value += b.value * kept[b.name]
        for g, added in b.adds.items():
            value += np.asarray(added)[every[names.index(g)]] * kept[b.name]
    costs: dict[str, np.ndarray] = {}
    for i, cost in enumerate(problem.costs):
        x = cost.in_offset + sum((t.scale * widths[t.group] for t in cost.inputs), np.zeros(every.shape[1]))
        y = cost.out_offset + sum((t.scale * widths[t.group] for t in cost.output), np.zeros(every.shape[1]))
        x = x if cost.inputs else np.full_like(x, cost.in_widths[0])
        y = y if cost.output else np.full_like(y, cost.out_widths[0])
        by_row = np.stack([np.interp(x, cost.in_widths, row) for row in cost.table])
        there = np.zeros(every.shape[1])
        for j in range(len(cost.out_widths)):
            hat = np.zeros(len(cost.out_widths))
            hat[j] = 1
            there += by_row[j] * np.interp(y, cost.out_widths, hat)
        for b in problem.branches:
            if i in b.costs:
                there = there * kept[b.name]
        costs[cost.resource] = costs.get(cost.resource, np.zeros(every.shape[1])) + there
    return value, costs


def optimum(problem: WidthProblem) -> float | None:
    """Value of the best choice within the budgets; None if there is none."""
    value, costs = brute_force_table(problem)
    fits = np.ones(len(value), bool)
    for resource, budget in problem.budgets.items():
        fits &= costs.get(resource, np.zeros(1)) <= budget + 1e-9 * max(1, abs(budget))
    return float(value[fits].max()) if fits.any() else None


@pytest.mark.parametrize("kind", KINDS)
def test_against_brute_force(kind):
    @CASES
    @given(seed=st.integers(0, 2**32 - 1), groups=st.integers(1, 5), whole=st.booleans())
    def check(seed, groups, whole):
        problem = random_problem(kind, seed, groups, whole)
        best = optimum(problem)
        if best is None:
            for method in ("exact", "lagrangian"):
                with pytest.raises(InfeasibleError, match="no choice"):
                    solve(problem, method)
            return
        slack = 1e-6 * max(1.0, abs(best))
        found = solve(problem, "exact")
        assert found.value == pytest.approx(best, abs=slack)
        for s in (found, solve(problem, ("lagrangian", "auto")[seed % 2])):
            assert problem.fits(s.costs)
            assert s.value <= best + slack
            assert s.upper_bound >= best - slack
            assert problem.evaluate(s.widths, s.dropped) == (s.value, s.costs)

    check()


def wider(problem: WidthProblem, s: Solution) -> list[str]:
    """Every group that can take a larger width, and every dropped branch that can return, at whatever widths, within
    the budgets and for no less value."""
    found = []
    gone = {g for b in problem.branches if b.name in s.dropped for g in b.groups}
    for name, group in problem.groups.items():
        worth = group.value + sum(
            np.asarray(b.adds.get(name, 0.0)) for b in problem.branches if b.name not in s.dropped
        )
        now = dict(zip(group.widths.tolist(), worth.tolist(), strict=True)).get(s.widths[name])
        for width, value in zip(group.widths.tolist(), worth.tolist(), strict=True):
            if name not in gone and width > s.widths[name] and value >= now:
                _, costs = problem.evaluate(s.widths | {name: width}, s.dropped)
                found += [f"{name} to {width}"] if problem.fits(costs) else []
    for b in problem.branches:
        if b.name in s.dropped:
            for widths in itertools.product(*(problem.groups[g].widths.tolist() for g in b.groups)):
                there = s.widths | dict(zip(b.groups, widths, strict=True))
                value, costs = problem.evaluate(there, [n for n in s.dropped if n != b.name])
                found += [f"{b.name} at {widths}"] if problem.fits(costs) and value >= s.value else []
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_more_fits_into_an_answer(kind):
    @settings(CASES, max_examples=100)
    @given(seed=st.integers(0, 2**32 - 1), groups=st.integers(1, 5), whole=st.booleans())
    def check(seed, groups, whole):
        problem = random_problem(kind, seed, groups, whole)
        for method in ("auto", "lagrangian", "exact"):
            try:
                s = solve(problem, method)
            except InfeasibleError:
                return
            assert wider(problem, s) == []

    check()


def test_a_budget_of_next_to_nothing_is_one_of_nothing():
    """Found by the test below: what a cost is of such an amount is infinite."""
    problem = random_problem("shared", 2836, 5, True)
    (name,) = problem.budgets
    found = [solve(replace(problem, budgets={name: amount})) for amount in (0.0, 2.2e-313)]
    assert found[0].widths == found[1].widths
    assert found[0].value == found[1].value


@pytest.mark.parametrize("kind", KINDS)
def test_more_budget_never_gives_less(kind):
    @settings(CASES, max_examples=100)
    @given(seed=st.integers(0, 2**32 - 1), more=st.floats(0, 2), whole=st.booleans())
    def check(seed, more, whole):
        problem = random_problem(kind, seed, 5, whole)
        try:
            s = solve(problem)
        except InfeasibleError:
            return
        raised = {r: b + more * (1 + abs(b)) for r, b in problem.budgets.items()}
        larger = solve(replace(problem, budgets=raised))
        assert larger.value >= s.value - 1e-6 * max(1.0, abs(s.value))
        if len(problem.budgets) == 1:
            (before,), (after,) = s.costs.values(), larger.costs.values()
            assert after >= before - 1e-6 * max(1.0, abs(before))

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_what_problems_share_changes_no_answer(kind):
    """Other budgets and values in between, and now and then other widths, or other layers."""
    served = []

    @settings(CASES, max_examples=12)
    @given(seed=st.integers(0, 2**32 - 1), groups=st.integers(2, 5), whole=st.booleans())
    def check(seed, groups, whole):
        rng = np.random.default_rng(seed)
        problem = random_problem(kind, seed, groups, whole)
        narrow = {n: int(g.widths[-1]) for n, g in list(problem.groups.items())[:1]}
        values = {n: replace(g, value=rng.permutation(g.value)) for n, g in problem.groups.items()}
        branches = tuple(replace(b, value=b.value + 1) for b in problem.branches)
        valued = replace(problem, groups=values, branches=branches)
        raised = replace(problem, budgets={r: b + 1 for r, b in problem.budgets.items()})
        other = random_problem(kind, seed + 1, groups, whole)
        shared = Shared()
        for asked in (problem, raised, valued, restrict(problem, maximum=narrow, minimum=narrow), other, problem):
            served.append(shared.layout is not None and shared.layout.serves(asked))
            answers = []
            for given_ in (None, shared):
                try:
                    s = solve(asked, "lagrangian", shared=given_)
                    answers.append((s.widths, s.dropped, s.value, s.upper_bound, s.work))
                except InfeasibleError as error:
                    answers.append((str(error),))
            assert answers[0] == answers[1]

    check()
    assert {True, False} == set(served[1::6]) | set(served[4::6])
    assert all(served[1::6] + served[2::6])


@pytest.mark.parametrize("kind", ["concat", "branches"])
def test_relaxed_elimination_still_bounds(kind):
    """With a tiny cap on table sizes, mini-buckets and ignored sums must only ever raise the bound."""
    relaxed = []

    @settings(CASES, max_examples=100)
    @given(seed=st.integers(0, 2**32 - 1), cap=st.integers(4, 40))
    def check(seed, cap):
        problem = random_problem(kind, seed, 5, whole=False)
        best = optimum(problem)
        model = Shared().compiled(problem)
        relaxed.append(not Elimination(model, cap).exact)
        incumbent = Incumbent(model, Work(np.inf))
        found = bound_and_search(model, incumbent, len(problem.groups) + len(problem.branches), 0.0, cap)
        if best is None:
            assert incumbent.state is None
        else:
            assert found.upper > -np.inf
            upper, value = (model.least + model.span * x for x in (found.upper, incumbent.value))
            assert upper >= best - 1e-9 * max(1.0, abs(best))
            assert value <= best + TIE * model.span + 1e-9 * max(1.0, abs(best))

    check()
    assert sum(relaxed) > 20  # Else next to nothing was tried.


@pytest.mark.parametrize("kind", KINDS)
def test_coarse_problem_first(kind, monkeypatch):
    """What large problems do, on small ones: solve with every second option, then with all of them."""
    monkeypatch.setattr("halp_fx.solver.lagrangian.LARGE", 0)
    monkeypatch.setattr("halp_fx.solver.lagrangian.COARSE_OPTIONS", 2)

    @settings(CASES, max_examples=60)
    @given(seed=st.integers(0, 2**32 - 1))
    def check(seed):
        problem = random_problem(kind, seed, 5, whole=False)
        best = optimum(problem)
        if best is None:
            with pytest.raises(InfeasibleError, match="no choice"):
                solve(problem)
            return
        s = solve(problem, "exact")
        assert s.value == pytest.approx(best, abs=1e-6 * max(1.0, abs(best)))
        assert solve(problem, "lagrangian").upper_bound >= best - 1e-6 * max(1.0, abs(best))

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_moves_cost_what_the_states_that_they_lead_to_cost(kind):
    @settings(CASES, max_examples=60)
    @given(st.integers(0, 2**32 - 1), st.integers(1, 6))
    def check(seed, groups):
        problem = random_problem(kind, seed, groups, whole=False)
        model = Shared().compiled(problem)
        free, rng = len(problem.groups) + len(problem.branches), np.random.default_rng(seed)
        worth = [np.flatnonzero(rng.random(size) < 0.7) for size in model.sizes[:free]]
        moves, incumbent = Neighbourhood(model, free, worth), Incumbent(model, Work(1.0))
        state = np.array([rng.integers(size) for size in model.sizes])
        state = model.complete(state[:, None])[:, 0]
        variable, option, states, where, values, costs = moves.around(incumbent, state)
        states = states[:, where]
        assert len(variable) == sum(len(w) - (k in w) for w, k in zip(worth, state, strict=False))
        assert (states[variable, np.arange(len(option))] == option).all()
        value, cost = model.evaluate(states)
        np.testing.assert_allclose(values, value, atol=1e-12)
        np.testing.assert_allclose(costs, cost, rtol=1e-12, atol=1e-12)
        allowed = value[model.feasible(cost)]
        assert incumbent.value == pytest.approx(allowed.max(initial=-np.inf), abs=1e-12)

    check()
