"""Which branches of a network may be dropped: each is tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..coupling.branches import Branch, Branches, without
from ..coupling.residual import find_branches
from ..errors import HalpError
from ..rewriting.dropping import drop
from ..rewriting.slicing import shrink
from ..rewriting.verification import verify
from ..types import Coupling, Plan


def tried(model: nn.Module, coupling: Coupling, example_inputs: Any, ignore: Sequence[str] = ()) -> Branches:
    """The branches of a network, each known to leave a network that runs and has the structure it should.

    All are dropped at once from a copy that runs without arithmetic; if that fails, each by itself.

    Args:
        ignore: modules and parameters that must stay.
    """
    found = find_branches(coupling)
    held = {b.name: f"ignored by the caller ({e!r})" for b in found.removable for e in ignore if _touches(b, e)}
    found = found.without(held)
    if not found.removable or _failure(model, coupling, found.removable, example_inputs) is None:
        return found
    reasons = {b.name: _failure(model, coupling, [b], example_inputs) for b in found.removable}
    return found.without({name: reason for name, reason in reasons.items() if reason is not None})


def _touches(branch: Branch, entry: str) -> bool:
    return any(
        t == entry or t.startswith(f"{entry}.") or f"{entry}.".startswith(f"{t}.")
        for t in (*branch.tensors, *branch.modules)
    )


def _failure(model: nn.Module, coupling: Coupling, branches: Sequence[Branch], example_inputs: Any) -> str | None:
    """Why a network without these branches does not work, None if it does."""
    plan = Plan({}, tuple(b.name for b in branches))
    small = shrink(model, plan, coupling)
    try:
        drop(small, branches)
        mismatch = verify(small, plan, without(coupling, branches), example_inputs)
    except HalpError as error:
        return f"a trial without it failed: {str(error).splitlines()[0][:200]}"
    return None if mismatch is None else f"a trial without it failed: {mismatch.short}"
