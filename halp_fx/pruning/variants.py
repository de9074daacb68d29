"""variants: what was asked for -> the same in other ways: other steps, other weights of even widths, even widths alone,
branches that stay or go sooner, the data in another order.

Which of them leaves most of a network depends on the network and on the budget (docs/benchmarks_accuracy.md), and no
figure that the solver sees says which. So they are tried, and what comes out is judged (`contest`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..scoring.saliency import EVENNESS
from .request import Request

EVEN = 4 * EVENNESS
"""More weight of even widths: at 10 % of the MACs 1.3 points better than the default in the mean of four cells, and no
better in six with two networks each (docs/benchmarks_accuracy.md)."""


def variants(request: Request) -> Iterator[tuple[str, Request]]:
    """Names and requests; the one that was asked for first."""
    once = replace(request, effort="normal")
    yield "as asked", once
    if request.steps is None:
        yield "larger steps", replace(once, effort="fast")
    yield "more even", replace(once, evenness=EVEN)
    yield "values alone", replace(once, evenness=0.0)
    if request.branches:
        yield "branches stay", replace(once, branches=False)
    if request.rehearses:
        if request.branches:
            yield "branches go sooner", replace(once, sooner=True)
        # Which channels go is chance in part, and which network comes of that moves its accuracy by two points.
        batches = list(request.data or ())
        if len(batches) > 1:
            yield "batches in another order", replace(once, data=batches[::-1])
    # A value of widths that are even says nothing of a branch: unless the caller insists, all stay.
    even = replace(once, even=True, branches=request.branches is True)
    if request.steps is None or request.steps > 1:
        yield "even widths", even
    yield "even widths, by magnitude", replace(even, importance="magnitude", steps=1)
