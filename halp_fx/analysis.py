"""channel_groups: trace and couple a model, and try out what its forward takes for constant.

A trace cannot show whether `view(b, 12, 64)` was written with constants or computed from shapes. Where that matters, a
trial network with every group at another share of its width is built on the meta device and verified: groups that
an operator with a stale constant handles are frozen, with that reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from .coupling import couple
from .errors import RewriteError
from .slicing import shrink
from .tracing import further_traces, trace
from .types import Coupling, Plan
from .verification import groups_at, takes_sizes, verify

_TRIAL_SHARES = (0.5, 0.75, 0.625)


def channel_groups(
    model: nn.Module, example_inputs: Any = None, ignore: Sequence[str] = (), like: Coupling | None = None
) -> Coupling:
    """`trace` and `couple` in one, with groups frozen that a constant in the forward ties to their width.

    Parameters that only a train-mode forward or a later call reaches (auxiliary heads, a branch that is not taken every
    time) are coupled too: see `further_traces`.

    Args:
        model, example_inputs: as for `trace`.
        ignore: names of modules, parameters or groups that must stay as they are.
        like: the coupling of the same network before it was pruned: its free choices are followed.

    Raises:
        ModelError: the model cannot be handled, or an entry of `ignore` matches nothing.
    """
    traced = trace(model, example_inputs)
    further, unseen = further_traces(model, example_inputs, traced)
    frozen: dict[str, str] = {}
    coupling = couple(traced, ignore, further, like)
    if unseen:
        frozen.update(dict.fromkeys((g.name for g in coupling.prunable), unseen))
        coupling = couple(traced, ignore, further, like, frozen)
    while takes_sizes(coupling) and coupling.prunable:
        plan = _trial(coupling)
        try:
            verify(shrink(model, plan, coupling), plan, coupling, example_inputs)
            break
        except RewriteError as error:
            names = groups_at(error.place, coupling) | set(error.groups)
            names &= {g.name for g in coupling.prunable}
            reason = f"a constant in the forward repeats its width: {error.place[0]} at {error.place[1]}"
            if not names:
                names = {g.name for g in coupling.prunable}
                reason = f"a trial with narrower layers failed: {str(error).splitlines()[0][:200]}"
            frozen.update(dict.fromkeys(names, reason))
            coupling = couple(traced, ignore, further, like, frozen)
    return coupling


def _trial(coupling: Coupling) -> Plan:
    """Each group at one of several shares of its width, so that equal widths do not hide what depends on which."""
    kept = {}
    for i, group in enumerate(coupling.prunable):
        share = _TRIAL_SHARES[i % len(_TRIAL_SHARES)]
        kept[group.name] = range(max(1, math.ceil(group.size * share) if group.size > 2 else group.size // 2))
    return Plan({name: tuple(rows) for name, rows in kept.items()})
