"""A report as JSON, and back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_prune import Small

import halp_fx
from halp_fx import HalpError, Plan, Report
from halp_fx.latency.prediction import LayerError
from halp_fx.reporting.report import GroupReport, RewriteKind, Round
from halp_fx.types.plain import from_plain, to_plain

words = st.text(max_size=8)
count = st.integers(0, 2**40)
number = st.floats(allow_nan=False)
rows = st.sets(st.integers(0, 99), min_size=1, max_size=6).map(lambda s: tuple(sorted(s)))


def several(strategy):
    return st.lists(strategy, max_size=3).map(tuple)


def table(strategy):
    return st.dictionaries(words, strategy, max_size=3)


REPORTS = st.builds(
    Report,
    unit=words, dense=number, budget=number, predicted=number, measured=number, uncalibrated=number,
    plan=st.builds(Plan, table(rows), several(words)),
    groups=several(st.builds(GroupReport, words, count, count, several(words))),
    frozen=table(words), saliency=words, tolerance=number, parameters=st.tuples(count, count),
    rounds=several(st.builds(Round, number, number, number, number, number, st.booleans())),
    notes=several(words), seconds=table(number), extra=table(st.tuples(number, number, number)),
    branches=table(words),
    layers=several(st.builds(LayerError, words, words, st.tuples(count, count), number, number)),
    rewrite_kind=st.builds(RewriteKind, several(words), table(words)), scatter=number, busy=words,
)  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(REPORTS)
def test_a_report_comes_back_equal(report):
    text = report.to_json()
    assert Report.from_json(text) == report
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture(scope="module")
def report():
    return halp_fx.prune(Small().eval(), 0.5, latency="macs", progress=False, branches=True).halp


def test_the_report_of_prune(report):
    again = Report.from_json(report.to_json())
    assert again == report
    assert again.summary() == report.summary()
    assert {type(getattr(again, name)) for name in ("dense", "measured")} == {float}


def test_numbers_of_any_kind(report):
    odd = replace(report, dense=math.nan, budget=math.inf, measured=np.float32(0.5), parameters=(np.int64(3), 2))
    again = Report.from_json(odd.to_json())
    assert math.isnan(again.dense)
    assert (again.budget, again.measured, again.parameters) == (math.inf, 0.5, (3, 2))
    assert isinstance(again.frozen, dict)


def test_what_another_version_wrote(report):
    data = json.loads(report.to_json())
    assert Report.from_json(json.dumps({**data, "a field of tomorrow": [1]})) == report
    del data["scatter"]
    assert Report.from_json(json.dumps(data)) == replace(report, scatter=0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "halp_fx.report/2"},
        {"dense": "much"},
        {"dense": True},
        {"dense": 10**400},
        {"notes": "one"},
        {"notes": [1]},
        {"groups": [{"name": "a"}]},
        {"groups": [3]},
        {"parameters": [1, 2, 3]},
        {"parameters": [1.5, 2]},
        {"plan": {"format": "halp_fx.plan/1", "kept": {"a": []}}},
        {"frozen": []},
    ],
    ids=lambda change: str(change)[:60],
)
def test_what_is_no_report(report, change):
    with pytest.raises(HalpError, match=r"not a report in JSON|is not known here"):
        Report.from_json(json.dumps({**json.loads(report.to_json()), **change}))


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{", "{}", '{"format": "halp_fx.report/1"}', "[" * 10**5], ids=range(7)
)
def test_texts_that_are_no_report(text):
    with pytest.raises(HalpError, match="not a report in JSON"):
        Report.from_json(text)


def test_values_without_a_form_in_json():
    with pytest.raises(TypeError, match="a set has no form"):
        to_plain({"a": {1}})
    with pytest.raises(TypeError, match="are not read"):
        from_plain(bytes, "a")
