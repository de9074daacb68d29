"""What is said about a budget: that it cannot be reached and what may help, that it was missed or undercut, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ..coupling.residual import find_branches
from ..errors import InfeasibleError, few
from ..latency import MeasuredLatency
from ..latency.disturbance import load_notes
from ..solver.solution import BASELINES
from .budgets import amount
from .request import Request
from .yardstick import Yardstick, launch_notes


def out_of_reach(
    refused: InfeasibleError, yardstick: Yardstick, request: Request, share: float | None = None
) -> InfeasibleError:
    """The error for a budget that no network meets, in the user's unit.

    Args:
        refused: what the solver said.
        share: of the dense network's cost that the smallest network takes, measured or counted exactly; None if the
            solver's word is all there is (several budgets, each of which can be met).
    """
    help_ = _what_helps(yardstick, request)
    if share is None:
        return InfeasibleError(f"{refused}. {help_}", refused.minimum, refused.groups)
    unit, least = yardstick.goals.cost.unit, share * yardstick.dense
    how = ", measured" if yardstick.goals.measured else ""
    groups = f" Groups that bound it: {', '.join(refused.groups[:5])}." if refused.groups else ""
    asked = f"{amount(yardstick.budget * yardstick.dense, unit)} ({100 * yardstick.budget:.3g}% of dense)"
    return InfeasibleError(
        f"a budget of {asked} cannot be reached: the smallest that min_keep and round_to allow takes "
        f"{amount(least, unit)}{how} ({share:.1%} of dense).{groups} {help_}"
        + "".join(f" But {note}" for note in load_notes(yardstick.busy, yardstick.waited))
        + "".join(f" {note[0].upper()}{note[1:]}." for note in launch_notes(yardstick.idle)),
        least,
        refused.groups,
    )


def _what_helps(yardstick: Yardstick, request: Request) -> str:
    """The settings that would allow smaller networks."""
    cost, coupling = yardstick.goals.cost, yardstick.coupling
    bottom = math.inf
    if not yardstick.goals.measured:
        one = {group.name: 1 if not group.frozen else group.size for group in coupling.groups}
        bottom = cost.total(coupling, one) / yardstick.dense
    helps = []
    if yardstick.goals.measured or bottom <= yardstick.budget:
        rounded = "8 or less" if request.round_to is None else request.round_to
        helps.append(f"a lower min_keep (now {request.min_keep}) or round_to (now {rounded})")
    if not request.branches and find_branches(coupling).removable:
        helps.append("branches=True, which may drop residual branches")
    if isinstance(cost, MeasuredLatency) and cost.runtime == "eager":
        helps.append("another runtime (latency=halp_fx.latency.MeasuredLatency(runtime='inductor'))")
    if request.limits:
        helps.append(f"wider limits ({', '.join(repr(limit.asked) for limit in request.limits[:3])})")
    ignored = sum(reason.startswith("ignored") for reason in coupling.frozen.values())
    if ignored:
        helps.append(f"fewer entries in ignore ({ignored} groups are frozen by it)")
    floor = "" if bottom <= yardstick.budget or math.isinf(bottom) else (
        f" Even with one channel in each group it would take {bottom:.1%} of dense."
    )  # fmt: skip
    return f"What may help: {', '.join(helps) or 'a larger budget'}.{floor}"


def verdict(
    deviation: float,
    share: float,
    rounds: int,
    most_rounds: int,
    yardstick: Yardstick,
    request: Request,
    dropped: Sequence[str] = (),
    further: Mapping[str, float] = MappingProxyType({}),
    wider: float | None = None,
    busy: bool = False,
    stepped: bool = False,
) -> str:
    """What the report says about a network whose cost is off the budget by more than it may be; "" if it is not.

    Args:
        deviation: from the budget, relative to it.
        share: of the dense network's cost.
        rounds: candidates that were tried, of at most `most_rounds`.
        dropped: branches.
        further: of every other budget, how much is used.
        wider: share of the dense network's cost that the least of the candidates above the budget takes; None: none is.
        busy: its times are not to be trusted.
        stepped: it was cut in several steps.
    """
    if yardstick.tables is None:
        least = ", also where limits ask for less" if request.limits else ""
        return f"the dense network meets the budget as it is: nothing was removed{least}"
    target = f"the budget of {amount(yardstick.budget * yardstick.dense, yardstick.goals.cost.unit)}"
    if share > 1:
        return f"this network takes {share:.1%} of what the dense one takes, so {target} is not met"
    if deviation > yardstick.goals.slack(request.tolerance):
        return f"{target} is missed by {deviation:.1%} after {rounds} rounds; this is the closest network"
    if deviation >= -request.tolerance:
        return ""
    tightest = max(further, key=further.__getitem__, default="")
    if tightest and further[tightest] > 1 + deviation:
        why = f"the budget of {tightest}, of which {further[tightest]:.1%} are used, has no room for wider layers"
    elif request.solver in BASELINES:
        why = f"solver={request.solver!r} answers as published; 'auto' spends what is left"
    elif busy:
        why = f"{rounds} rounds of times that are not to be trusted led no closer"
    elif yardstick.goals.measured and wider is not None:
        why = (
            f"of what was tried the next wider network takes {wider:.1%} of dense, where {yardstick.budget:.1%} are "
            "allowed. Widths come in steps (round_to, 32 widths at most)"
        )
    elif rounds < most_rounds or not yardstick.goals.measured:
        why = "no wider choice fits into it: the next widths of the groups cost more"
        if stepped:
            why += ", and channels that an earlier step took do not come back"
        if request.limits:
            why += ", or limits do not allow them"
        if dropped:
            why += (
                f", and the dropped branches ({few(dropped)}) would have to be so narrow that more is lost with them "
                "than without"
            )
        if request.round_to != 1:
            why += ". Widths come in steps (of 32 at most); round_to=1 makes them finer"
    else:
        why = f"after {rounds} rounds this is the closest network"
    return f"{target} is undercut by {-deviation:.1%}: {why}"
