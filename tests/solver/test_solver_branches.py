"""Branches in a width problem: what they are worth, what goes with them, and what is refused."""

import numpy as np
import pytest

from halp_fx.errors import InfeasibleError, ProblemError
from halp_fx.solver import Branch, CostTable, Term, WidthGroup, WidthProblem, restrict, solve


@pytest.mark.parametrize("inner", [1, 2])
def test_a_branch_that_is_worth_nothing_stays_where_the_budget_allows_it(inner):
    """Each branch is worth nothing whole, and less when it is narrow: what it loses with all of its channels is what
    dropping it loses."""
    widths = np.arange(1, 9)
    groups = {"stem": WidthGroup(np.array([8]), [10.0])}
    costs, branches = [CostTable("stem", (), (Term("stem"),), out_widths=np.array([8]), table=[[8.0]])], []
    for b in range(4):
        names = [f"b{b}.{i}" for i in range(inner)]
        groups |= {n: WidthGroup(widths, np.sqrt(widths)) for n in names}
        branches.append(Branch(f"b{b}", tuple(names), tuple(names), -inner * np.sqrt(8)))
        costs += [CostTable(n, (), (Term(n),), out_widths=widths, table=widths[:, None]) for n in names]
    dense = 8 + 4 * 8 * inner
    for fraction, gone in ((1.0, 0), (0.9, 1), (0.5, 3)):
        problem = WidthProblem("worthless", groups, tuple(costs), {"latency": fraction * dense}, tuple(branches))
        for method in ("auto", "lagrangian", "exact"):
            s = solve(problem, method)
            assert len(s.dropped) == gone, (fraction, method)
            assert all(s.widths[g] == (0 if g.partition(".")[0] in s.dropped else 8) for g in groups)


def shared(adds):
    widths = np.array([1, 2])
    groups = {"inner": WidthGroup(widths, [1.0, 2.0]), "stream": WidthGroup(widths, [3.0, 4.0])}
    costs = (CostTable("c", (), (Term("inner"),), out_widths=widths, table=[[1.0], [2.0]]),)
    return WidthProblem("shared", groups, costs, {"latency": 2.0}, (Branch("b", ("inner",), (0,), 0.5, adds),))


def test_what_a_branch_adds_to_other_groups_goes_with_it():
    whole = shared({"stream": [0.25, 0.75]})
    widths = {"inner": 2, "stream": 2}
    assert whole.evaluate(widths)[0] == 2.0 + 4.0 + 0.5 + 0.75
    assert whole.evaluate(widths | {"stream": 1})[0] == 2.0 + 3.0 + 0.5 + 0.25
    assert whole.evaluate(widths, ["b"])[0] == 4.0
    assert WidthProblem.from_json(whole.to_json()).branches == whole.branches
    assert restrict(whole, minimum={"stream": 2}).branches[0].adds == {"stream": (0.75,)}


@pytest.mark.parametrize(
    ("adds", "said"),
    [
        ({"inner": [0.0, 1.0]}, "adds to group 'inner', which is in it"),
        ({"other": [0.0, 1.0]}, "adds to group 'other', which is in it, or not in the problem"),
        ({"stream": [1.0]}, "adds 1 values to group 'stream', which has 2 widths"),
        ({"stream": [1.0, np.nan]}, r"adds to 'stream': entry \[1\] is nan"),
    ],
)
def test_what_a_branch_cannot_add(adds, said):
    with pytest.raises(ProblemError, match=said):
        shared(adds)


def test_branches_alone_are_a_problem():
    """Of a network whose groups went with other branches, or may not shrink."""
    costs = tuple(CostTable(n, (), (), 1, 1, table=[[c]]) for n, c in (("stem", 4.0), ("a", 3.0), ("b", 2.0)))
    branches = (Branch("a", (), ("a",), 5.0), Branch("b", (), ("b",), 1.0))
    for budget, gone in ((9.0, ()), (7.0, ("b",)), (6.0, ("a",)), (4.5, ("a", "b")), (3.0, None)):
        problem = WidthProblem("branches", {}, costs, {"latency": budget}, branches)
        assert WidthProblem.from_json(problem.to_json()).branches == branches
        for method in ("auto", "exact", "lagrangian"):
            if gone is None:
                with pytest.raises(InfeasibleError):
                    solve(problem, method)
            else:
                assert tuple(sorted(solve(problem, method).dropped)) == gone, (budget, method)
        for method in ("uniform", "halp"):  # Baselines know widths only.
            if gone == ():
                assert solve(problem, method).dropped == ()
            else:
                with pytest.raises(InfeasibleError):
                    solve(problem, method)
