"""The released step of HALP: its knapsack against a plain reference and brute force; stairs on made tables."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_solver_property import optimum, random_problem

from halp_fx.errors import InfeasibleError, ProblemError
from halp_fx.solver import Branch, CostTable, Term, WidthGroup, WidthProblem, solve
from halp_fx.solver.released import released_knapsack, released_options
from halp_fx.solver.stairs import blocks, tread

CASES = settings(
    max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def reference(items, capacity):
    """One dict a capacity: what is taken. Weights may lie over the capacity, or under nothing, on the way."""
    spare = sum(-w for _, weights in items for w in weights if w < 0)
    table = {c: (0.0, {}) for c in range(capacity + spare + 1)}
    queues = {g: list(enumerate(zip(*pair, strict=True))) for g, pair in enumerate(items)}
    while any(queues.values()):
        heads = [(queue[0][1][0], -g) for g, queue in queues.items() if queue]
        g = -max(heads)[1]
        rank, (value, weight) = queues[g].pop(0)
        new = dict(table)
        for c in range(-spare, capacity + spare + 1):
            before = table.get(min(c - weight, capacity + spare))
            if before is None or before[1].get(g, 0) != rank:
                continue
            if c not in table or before[0] + value > table[c][0]:
                new[c] = (before[0] + value, {**before[1], g: rank + 1})
        table = new
    return [table[capacity][1].get(g, 0) for g in range(len(items))]


def made(rng, groups, most, lowest):
    """Values that fall within a group, as sums of sorted scores do, and whole weights."""
    items = []
    for _ in range(groups):
        count = int(rng.integers(1, most + 1))
        items.append((np.sort(rng.random(count))[::-1].tolist(), [int(w) for w in rng.integers(lowest, 6, count)]))
    return items


def sums(items, taken):
    value = sum(sum(values[:n]) for (values, _), n in zip(items, taken, strict=True))
    return value, sum(sum(weights[:n]) for (_, weights), n in zip(items, taken, strict=True))


@CASES
@given(seed=st.integers(0, 2**32 - 1), groups=st.integers(1, 4), capacity=st.integers(0, 20), lowest=st.integers(-3, 1))
def test_the_knapsack_is_the_specified_one_and_no_better_than_the_best(seed, groups, capacity, lowest):
    items = made(np.random.default_rng(seed), groups, 3, lowest)
    taken = released_knapsack(items, capacity)
    assert taken == reference(items, capacity)
    value, weight = sums(items, taken)
    every = itertools.product(*(range(len(values) + 1) for values, _ in items))
    fits = [v for v, w in (sums(items, choice) for choice in every) if w <= capacity]
    assert weight <= capacity
    assert value <= max(fits) + 1e-12


@CASES
@given(seed=st.integers(0, 2**32 - 1), groups=st.integers(1, 7), capacity=st.integers(0, 12), lowest=st.integers(-3, 1))
def test_with_one_item_a_group_nothing_is_greedy(seed, groups, capacity, lowest):
    items = made(np.random.default_rng(seed), groups, 1, lowest)
    every = itertools.product(range(2), repeat=groups)
    best = max(v for v, w in (sums(items, choice) for choice in every) if w <= capacity)
    assert sums(items, released_knapsack(items, capacity))[0] == pytest.approx(best)


def test_a_negative_increment_pays_for_another_item_whichever_comes_first():
    for first, second in ((5.0, 1.0), (1.0, 5.0)):
        assert released_knapsack([([first], [4]), ([second], [-3])], 1) == [1, 1]
        assert released_knapsack([([first], [5]), ([second], [-3])], 1) == [0, 1]


def layer(name, output, table, inputs=()):
    widths = np.asarray(output[1])
    return CostTable(
        name, inputs, (Term(output[0]),), out_widths=widths, table=np.asarray(table, float).reshape(len(widths), -1)
    )


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize(("size", "step"), [(64, 16), (128, 32), (256, 32), (256, 64), (256, 128), (512, 64)])
def test_stairs_are_found(size, step, noise):
    widths = np.arange(8, size + 1, 8)
    stairs = 1.0 + np.ceil(widths / step)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        assert tread(widths, stairs * (1 + noise * rng.standard_normal(len(widths)))) == step


def test_where_there_are_no_stairs_none_are_found():
    widths = np.arange(8, 257, 8)
    for seed in range(20):
        noise = 1 + 0.02 * np.random.default_rng(seed).standard_normal(len(widths))
        assert tread(widths, (1.0 + widths / 64) * noise) is None
    assert tread(widths, np.full(len(widths), 3.0)) is None, "it costs the same at every width"
    # Measured: a layer of 128 x 128 on a CPU with one disturbed time, at 72 channels.
    disturbed = [302, 354, 397, 447, 492, 539, 593, 636, 892, 725, 783, 816, 868, 913, 957, 1000]
    assert tread(widths[:16], np.array(disturbed)) is None
    assert tread(widths[:2], np.array([1.0, 2.0])) is None
    coarse = np.arange(32, 257, 32)
    assert tread(coarse, np.ceil(coarse / 32)) is None, "widths between the corners were not seen"


def test_a_cost_may_fall_within_a_tread():
    """Measured: the first convolution of ResNet-18 on a CPU, which prefers multiples of 16."""
    assert tread(np.arange(8, 65, 8), np.array([406, 401, 636, 601, 865, 801, 1080, 1000])) == 16


def test_the_largest_step_of_coupled_layers_makes_the_blocks():
    widths = np.arange(8, 257, 8)
    groups = {name: WidthGroup(widths, np.zeros(len(widths))) for name in ("a", "b")}
    costs = [
        layer("first", ("a", widths), np.ceil(widths / 16)),
        layer("second", ("a", widths), np.ceil(widths / 64)),
        layer("other", ("b", widths), widths / 8),
        # What reads a group, or is as wide as it, does not make its channels.
        CostTable("read", (Term("a"),), (), in_widths=widths, table=np.ceil(widths / 128)[None]),
        CostTable(
            "norm", (Term("b"),), (Term("b"),), 0, 0, widths, widths, np.ceil(widths / 128)[:, None] + 0 * widths
        ),
    ]
    assert blocks(WidthProblem("made", groups, tuple(costs), {})) == {"a": 64, "b": 32}


def vanishing(budget):
    """Two layers in a row in a branch, and one that stays; each block costs 4."""
    widths = np.array([8, 16])
    groups = {
        "a": WidthGroup(widths, np.array([3.0, 4.0])),
        "b": WidthGroup(widths, np.array([0.5, 0.9])),
        "stays": WidthGroup(widths, np.array([5.0, 9.0])),
    }
    costs = [layer(name, (name, widths), [4.0, 8.0]) for name in groups]
    branch = Branch("branch", ("a", "b"), (0, 1))
    return WidthProblem("made", groups, tuple(costs), {"latency": budget}, (branch,))


@pytest.mark.parametrize(
    ("budget", "widths", "kept"),
    [(24.1, [16, 16, 16], 1), (20.1, [16, 8, 16], 1), (16.1, [0, 0, 16], 0), (4.1, [0, 0, 8], 0)],
)
def test_a_branch_goes_when_one_of_its_layers_vanishes(budget, widths, kept):
    problem = vanishing(budget)
    assert released_options(problem)[1].tolist() == [kept]
    solution = solve(problem, "released")
    assert list(solution.widths.values()) == widths
    assert solution.dropped == (() if kept else ("branch",))
    assert problem.fits(solution.costs)


@settings(CASES, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), groups=st.integers(1, 4), kind=st.sampled_from(["pairwise", "branches"]))
def test_an_answer_keeps_the_budget_and_is_bounded(seed, groups, kind):
    problem = random_problem(kind, seed, groups, whole=False)
    best = optimum(problem)
    try:
        found = solve(problem, "released")
    except InfeasibleError:
        return  # There may be a choice that single moves do not lead to.
    assert best is not None
    assert problem.fits(found.costs)
    assert found.value <= best + 1e-6 * max(1.0, abs(best)) <= found.upper_bound + 2e-6 * max(1.0, abs(best))


def test_one_budget_only():
    problem = vanishing(16.0)
    two = WidthProblem("made", problem.groups, problem.costs, {"latency": 16.0, "memory": 1.0})
    with pytest.raises(ProblemError, match="knows one budget"):
        solve(two, "released")
