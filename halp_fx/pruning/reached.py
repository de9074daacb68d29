"""reached: what ended a call early -> the same exception, with what the call had come to.

Training between steps can take hours, and what ends a call is often none of its own: a `score_fn` that fails, a disk
that is full, Ctrl-C. So the exception carries the network, whatever kind it is of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..model.preserving import as_modes_of
from ..rewriting.descent import ancestry, descend
from ..types import Plan
from .session import Session


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """The network that `prune` had come to.

    Attributes:
        network: of the model's class, trained and re-estimated as far as it was; `halp_fx.save` takes it, and `prune`
            goes on from it. It has no report.
        plan: that leads to it.
        share: of the dense network's cost; measured where it was, predicted otherwise.
    """

    network: nn.Module
    plan: Plan
    share: float


@contextmanager
def nothing_lost(standing: Callable[[], Session | None]) -> Iterator[None]:
    """Let what ends the work carry where a session stood (`hand_over`).

    Args:
        standing: which session that is, asked at the end; None: nothing that is better than what the exception has.
    """
    try:
        yield
    except BaseException as error:
        session = standing()
        found = None if session is None else _reached(session)
        if found is not None and getattr(error, "network", None) is None:  # An `InfeasibleError` has the smallest.
            hand_over(error, found, f"the network that prune had come to, at {found.share:.1%} of the dense cost,")
        raise


def hand_over(error: BaseException, reached: Any, said: str) -> None:
    """Put what was reached into `error.reached`, in place of what is there; a note says so.

    Args:
        said: what it is, in words.
    """
    first = not hasattr(error, "reached")
    error.reached = reached  # type: ignore[attr-defined]
    if first:
        error.add_note(
            f"halp_fx: {said} is this exception's `reached` (sys.last_value.reached in a session). With state=, the "
            "same call goes on from there"
        )


def _reached(session: Session) -> Reached | None:
    """Where a session stands; None if nothing was removed yet, or no network was made."""
    yardstick = session.yardstick
    if session.candidates:
        network, share = session.best.network, session.best.measured
    else:
        network = session.network
        share = yardstick.predict(yardstick.total(network.plan)) if network.plan else 1.0
    if session.planned or not network.plan:
        return None
    model = yardstick.model
    as_modes_of(network.model, model)
    descend(network.model, ancestry(model, session.request.examples), network.plan)
    return Reached(network.model, network.plan, share)
