"""What a report says in words, of figures that were made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from halp_fx import Plan
from halp_fx.latency.prediction import LayerError
from halp_fx.pruning.budgets import amount
from halp_fx.reporting.details import Conditions, Contender, GroupReport
from halp_fx.reporting.report import Report, Round
from halp_fx.reporting.wording import fewer

REPORT = Report(
    unit="ms",
    dense=10.0,
    budget=6.0,
    predicted=6.0,
    measured=5.9,
    uncalibrated=4.0,
    plan=Plan({"a": (0, 1)}, ("rest",)),
    groups=(GroupReport("a", 4, 2, ()), GroupReport("b", 4, 4, ())),
    frozen={"head": "reaches the model's output"},
    saliency="fisher",
    tolerance=0.02,
    parameters=(1000, 600),
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Budget met: 5.90 ms of 6.00 ms allowed, 1.69 times faster than dense"),
        ({"measured": 6.06}, "Budget met to within 1.0%: 6.06 ms of 6.00 ms allowed, 1.65 times faster than dense"),
        ({"measured": 7.5}, "Budget missed by 25.0%: 7.50 ms of 6.00 ms allowed, 1.33 times faster than dense"),
        ({"conditions": Conditions("Net", runtime="aoti")}, "5.90 ms of 6.00 ms allowed in aoti, 1.69 times faster"),
        ({"conditions": Conditions("Net", runtime="eager")}, "5.90 ms of 6.00 ms allowed, 1.69 times faster"),
        ({"busy": "loud"}, "Budget met, by times that are not to be trusted: 5.90 ms"),
        ({"plan": Plan()}, "Nothing removed: the dense network's 5.90 ms meet the budget of 6.00 ms as they are"),
        ({"scores": ((10.0, 0.91), (5.9, 0.88))}, "1.69 times faster than dense, score from 0.91 to 0.88"),
        ({"unit": "bytes"}, "times less memory than dense"),
        ({"unit": "pJ"}, "times fewer pJ than dense"),
    ],
)
def test_the_verdict_is_one_line(changes, words):
    said = replace(REPORT, **changes).verdict
    assert words in said
    assert "\n" not in said


def test_the_summary_says_what_there_is_to_say():
    contenders = (Contender("steps", 5.9, 0.2, 0.1), Contender("even widths", 6.0, 0.3, 0.15))
    report = replace(
        REPORT,
        extra={"params": (25_557_032.0, 46_160.0, 600.0), "memory": (2e6, 1e6, 9e5)},
        branches={"rest": "dropped", "block": "kept", "last": "shares weights"},
        scores=((10.0, 0.91), (5.9, 0.88)),
        contenders=contenders,
        layers=(LayerError("a/conv", "convolution", (2, 2), 1.0, 1.25),),
        rounds=tuple(Round(6.0, measured, 4.0, 0.9, 0.0) for measured in (6.6, 5.9)),
        seconds={"score": 1.25},
        notes=("mind this",),
    )
    short, whole = report.summary(groups=False), report.summary()
    for text in (short, whole):
        assert "params: dense 25.6 M, budget 46.2 k, reached 600" in text
        assert "memory: dense 2.00 MB, budget 1.00 MB, reached 900 kB" in text
        assert "branches dropped: rest (1 of 2 that may be)" in text
        assert "trained copy" in text
        assert text.index("steps") < text.index("even widths")
        assert text.endswith("note: mind this")
    assert (
        "1 of 2 channel groups became narrower, 1 must stay as it is: summary() and the page say which, and why"
        in short
    )
    assert "reaches the model's output" not in short
    for words in (
        *("reaches the model's output", "shares weights", "channels ranked by: fisher", "seconds: score 1.2"),
        "2 networks were measured on the way to the budget: 66.0%, 59.0% of dense",
        "predictions off by +1.7% calibrated, -32.2% before (the sum of the layers); layers by 20.0% in the mean",
    ):
        assert words in whole
    untuned = replace(report, contenders=tuple(replace(c, tuned=None) for c in contenders)).summary()
    assert "trained copy" not in untuned


def test_names_that_look_like_numbers_stay_as_they_are():
    """Those of an `nn.Sequential`: "1.0" is a layer, not one."""
    report = replace(REPORT, groups=(GroupReport("1.0", 4, 2, ()),), frozen={"5.10": "ignored"}, branches={"3": "why"})
    assert [
        line.split() for line in report.summary().splitlines() if line.split()[:1] in (["1.0"], ["5.10"], ["3"])
    ] == [
        ["1.0", "4", "2", "50%"],
        ["5.10", "ignored"],
        ["3", "why"],
    ]


def test_what_is_counted_was_not_measured():
    text = replace(REPORT, unit="MACs", dense=2e9, budget=1e9, measured=9.5e8, macs=(2 * 10**9, 95 * 10**7)).summary()
    assert "measured" not in text.partition("parameters")[0]
    assert ["pruned", "950", "M", "47.5%"] in [line.split() for line in text.splitlines()]
    assert text.count("950 M") == 2  # The verdict and the first table, and not the second one, too.


def test_amounts_have_three_digits():
    figures = [
        (4.019, "ms"),
        (1234.0, "ms"),
        (1.8249e9, "MACs"),
        (12.34e6, "bytes"),
        (25.6e6, ""),
        (0.0, "ms"),
        (0.049, "ms"),
    ]
    said = [amount(value, unit) for value, unit in figures]
    assert said == ["4.02 ms", "1.23 s", "1.82 G MACs", "12.3 MB", "25.6 M", "0 ms", "49.0 µs"]
    assert fewer(10.0, 0.0) == "all"
