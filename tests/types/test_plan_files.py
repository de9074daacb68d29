"""Plans as JSON: what is none is refused, and says why."""

from __future__ import annotations

import json

import pytest

from halp_fx import Plan, PlanError
from halp_fx.types.plans import Making

GOOD = json.loads(Plan({"a": (0, 2)}, ("b",)).to_json())

MALFORMED = {
    "no JSON": ("{", "not a plan in JSON"),
    "a list": ([1], "not a plan in JSON"),
    "no channels": ({k: v for k, v in GOOD.items() if k != "kept"}, "not a plan in JSON"),
    "a number for channels": (GOOD | {"kept": {"a": 3}}, "not a plan in JSON"),
    "another format": (GOOD | {"format": "other/9"}, "plan format 'other/9' is not known here"),
    "a truth for a channel": (GOOD | {"kept": {"a": [0, True]}}, "must be whole numbers"),
    "half a channel": (GOOD | {"kept": {"a": [0, 1.5]}}, "must be whole numbers"),
    "nothing kept": (GOOD | {"kept": {"a": []}}, "group 'a': a plan must keep at least one channel"),
    "falling": (GOOD | {"kept": {"a": [2, 0]}}, "group 'a': kept channels must be ascending"),
    "twice": (GOOD | {"kept": {"a": [2, 2]}}, "group 'a': kept channels must be ascending"),
    "negative": (GOOD | {"kept": {"a": [-1, 0]}}, "not negative"),
    "a branch for a list": (GOOD | {"dropped": "b"}, "must be a list of names"),
    "a number for a branch": (GOOD | {"dropped": [3]}, "must be a list of names"),
    "made for nothing": (GOOD | {"made_for": {"a": [0, 0, 7]}}, "at least one channel"),
    "made by words": (GOOD | {"made_by": {"a": [["w", 1, "x"]]}}, "not a plan in JSON"),
    "made for no end of channels": (GOOD | {"made_for": {"a": [float("inf"), 1, 7]}}, "not a plan in JSON"),
    "no end of lists": ("[" * 10**5, "not a plan in JSON"),
    "made for words": (GOOD | {"made_for": {"a": ["x", 1, 7]}}, "not a plan in JSON"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_plan_is_refused(case):
    data, message = MALFORMED[case]
    with pytest.raises(PlanError, match=message):
        Plan.from_json(data if isinstance(data, str) else json.dumps(data))


@pytest.mark.parametrize("kept", [[0, 1.5], "01", [0.0, 1.0]], ids=str)
def test_channels_are_whole_numbers(kept):
    with pytest.raises(PlanError, match="group 'a': kept channels must be whole numbers"):
        Plan({"a": kept})


def test_what_made_the_channels_comes_back():
    made = Making("kv.weight", 4, ((0, 2), (20, 22)))
    assert made.outputs((0, 2)) == (0, 1, 8, 9, 20, 21, 28, 29)
    plan = Plan({"a": (0, 2)}, made_by={"a": (made,)})
    again = Plan.from_json(plan.to_json())
    assert again.made_by == plan.made_by
    assert again == Plan({"a": (0, 2)})
    assert "made_by" not in Plan({"a": (0, 2)}).to_json()


def test_a_plan_comes_back():
    for plan in (Plan(), Plan({"a": (0, 2), "c": (1,)}), Plan({"a": (0,)}, ("y", "x", "x"))):
        assert Plan.from_json(plan.to_json()) == plan
    assert Plan({}, ("y", "x", "x")).dropped == ("x", "y")
    assert not Plan()
    assert Plan({}, ("x",))


def test_what_a_plan_lacks_is_named():
    with pytest.raises(PlanError, match="this is not a plan in JSON: it has no 'format'"):
        Plan.from_json("{}")
