"""Width problems as JSON: read as written, and refused by name where they are malformed."""

from __future__ import annotations

import json

import pytest
from test_solver import NAN, STORED, small

from halp_fx.errors import ProblemError
from halp_fx.solver import Branch, Term, WidthProblem


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_json_round_trip(path):
    text = WidthProblem.from_json(path).to_json()
    assert WidthProblem.from_json(text).to_json() == text
    assert json.loads(text)["groups"] == json.loads(path.read_text())["groups"]


def test_json_round_trip_of_the_extensions():
    data = small(
        budgets={"latency": 6.0, "memory": 9.0},
        branches=[{"name": "rest", "groups": ["b"], "costs": [1, "third"], "value": 0.5}],
    )
    extra = {"name": "third", "in": ["a", ["b", 49]], "out": None, "in_offset": 3, "resource": "memory"}
    data["costs"].append(extra | {"in_widths": [0, 999], "out_widths": [1], "table": [[0, 9]]})
    del data["budget"]
    p = WidthProblem.from_json(data)
    assert p.costs[2].inputs == (Term("a"), Term("b", 49))
    again = WidthProblem.from_json(p.to_json())
    assert again.to_json() == p.to_json()
    assert again.branches == p.branches == (Branch("rest", ("b",), (1, "third"), 0.5),)


def with_cost(**changes) -> dict:
    data = small()
    data["costs"][1] = data["costs"][1] | changes
    return data


def with_group(**changes) -> dict:
    data = small()
    data["groups"]["a"] = data["groups"]["a"] | changes
    return data


INF = float("inf")
MALFORMED = {
    "nan value": (with_group(value=[1, NAN, 2]), r"group 'a': value: entry \[1\] is nan"),
    "value count": (with_group(value=[1, 2]), "group 'a': 3 widths but 2 values"),
    "unsorted widths": (with_group(widths=[4, 16, 8]), "group 'a': widths: 16 is followed by 8"),
    "repeated width": (with_group(widths=[4, 4, 8]), "group 'a': widths: 4 is followed by 4"),
    "zero width": (with_group(widths=[0, 4, 8]), "group 'a': width 0 is not positive"),
    "half a channel": (with_group(widths=[0.5, 4, 8]), "group 'a': widths: 0.5 is not a whole number"),
    "no widths": (with_group(widths=[], value=[]), "group 'a': a group has no widths"),
    "no value": ({**small(), "groups": {"a": {"widths": [1]}}}, "group 'a': has no 'value'"),
    "no groups": (small(groups={}), "has no groups"),
    "groups a list": (small(groups=[]), "'groups' must be an object"),
    "infinite table": (with_cost(table=[[1, 2, INF], [2, 5, 7]]), r"cost 'second': table: entry \[0, 2\] is inf"),
    "ragged table": (with_cost(table=[[1, 2], [2, 5, 7]]), "cost 'second': table: not a rectangular array"),
    "transposed table": (with_cost(table=[[1, 2], [3, 4], [5, 6]]), r"cost 'second': table has shape \(3, 2\)"),
    "flat table": (with_cost(table=[1, 2, 3]), "cost 'second': table: has 1 dimensions"),
    "words in table": (with_cost(table=[["x", 2, 3], [1, 2, 3]]), "cost 'second': table: not a rectangular"),
    "unsorted grid": (with_cost(in_widths=[4, 16, 8]), "cost 'second': in_widths: 16 is followed by 8"),
    "empty grid": (with_cost(in_widths=[], table=[[], []]), "cost 'second': table has shape"),
    "unknown input": (with_cost(**{"in": ["c"]}), "cost 'second' uses group 'c'"),
    "unknown output": (with_cost(out="c"), "cost 'second' uses group 'c'"),
    "off the grid": (with_cost(in_widths=[5, 8, 16]), "cost 'second': input width 4 is outside its table"),
    "negative scale": (with_cost(**{"in": [["a", -1]]}), "cost 'second': scale -1 of group 'a'"),
    "odd term": (with_cost(**{"in": [["a", 1, 2]]}), "cost 'second': in: .* is neither a group name nor"),
    "odd offset": (with_cost(in_offset="x"), "cost 'second': in_offset: expected a whole number"),
    "missing table": ({**small(), "costs": [{"name": "c", "in": []}]}, "cost 'c': has no 'in_widths'"),
    "cost not an object": (small(costs=[3]), "cost 0: expected an object"),
    "nan budget": (small(budget=NAN), "budget of 'latency' is nan"),
    "infinite budget": (small(budget=INF), "budget of 'latency' is inf"),
    "budget in words": (small(budget="6 ms"), "budget: expected a number"),
    "no budget": ({k: v for k, v in small().items() if k != "budget"}, "has no 'budget'"),
    "unknown group in a branch": (
        small(branches=[{"name": "x", "groups": ["c"], "costs": []}]),
        "branch 'x' has group 'c'",
    ),
    "unknown cost in a branch": (
        small(branches=[{"name": "x", "groups": [], "costs": ["third"]}]),
        "branch 'x': no cost is called 'third'",
    ),
    "cost position in a branch": (
        small(branches=[{"name": "x", "groups": [], "costs": [2]}]),
        "branch 'x': no cost is called 2",
    ),
    "cost left out of a branch": (
        small(branches=[{"name": "x", "groups": ["a"], "costs": ["second"]}]),
        "cost 'first' uses group 'a' of branch 'x'",
    ),
    "group in two branches": (
        small(branches=[{"name": n, "groups": ["b"], "costs": ["second"]} for n in "xy"]),
        "group 'b' is in branches 'x' and 'y'",
    ),
    "two branches of one name": (
        small(branches=[{"name": "x", "groups": [], "costs": []}] * 2),
        "branch 'x': two branches have this name",
    ),
    "costs of a branch a word": (
        small(branches=[{"name": "x", "groups": [], "costs": "second"}]),
        "branch 'x': costs must be a list",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_problem_is_refused_by_name(name):
    data, message = MALFORMED[name]
    with pytest.raises(ProblemError, match=message):
        WidthProblem.from_json(data)


@pytest.mark.parametrize(("text", "message"), [("{", "not a JSON problem"), ("[1]", "top level is a list")])
def test_not_a_problem_file(text, message, tmp_path):
    path = tmp_path / "problem.json"
    path.write_text(text)
    for source in (text, path):
        with pytest.raises(ProblemError, match=message):
            WidthProblem.from_json(source)
