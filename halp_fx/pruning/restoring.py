"""A network that was cut, and what it was cut out of -> what is removed is made up for (docs/compensation.md)."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..errors import SaliencyError
from ..rewriting.compensating import SAMPLES, Compensation, compensate
from ..types import Plan
from .networks import Network
from .request import Request
from .widths import remaining
from .yardstick import Yardstick


def compensated(
    cut: Network, whole: Network, request: Request, yardstick: Yardstick, samples: int = SAMPLES
) -> Compensation:
    """Fit the layers of `cut`, in place, to what they put out in the dense network, or, where networks are trained in
    between, in the one that training left: what it has learnt is not to be taken back.

    Args:
        whole: the network that `cut` was made of, scored.
        samples: used at most.
    """
    if request.train_between is None:
        whole = Network(yardstick.model, Plan(), yardstick.coupling)
    assert request.data is not None
    assert whole.coupling is not None
    asked = request.compensate != "auto"
    try:
        found = compensate(
            cut.model, whole.model, remaining(whole.plan, cut.plan), request.data,
            coupling=whole.coupling, loss=request.loss, samples=samples, recalibrate=bool(request.recalibrate),
        )  # fmt: skip
    except (SaliencyError, torch.OutOfMemoryError) as error:
        if asked:  # If not, it is better without than not at all.
            raise
        found = Compensation((), {}, 0, failed=str(error))
    return replace(found, asked=asked)
