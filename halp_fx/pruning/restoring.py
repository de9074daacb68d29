"""A network that was cut, and what it was cut out of -> what is removed is made up for (docs/compensation.md)."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..errors import SaliencyError
from ..model.images import drawn_images
from ..rewriting.compensating import SAMPLES, Compensation, compensate, most_together
from ..types import Coupling, Plan
from .healing import held_apart
from .networks import Network
from .request import Request
from .widths import remaining
from .yardstick import Yardstick


def compensated(
    cut: Network, whole: Network, request: Request, yardstick: Yardstick, samples: int = SAMPLES
) -> Compensation:
    """Fit the layers of `cut`, in place, to what they put out in the dense network, or, where networks are trained in
    between, in the one that training left: what it has learnt is not to be taken back. Without data, on images that
    are drawn. What is healed afterwards is fitted without the samples by which healing tells whether it helps.

    Args:
        whole: the network that `cut` was made of, scored.
        samples: used at most.
    """
    if request.train_between is None:
        whole = Network(yardstick.model, Plan(), yardstick.coupling)
    assert whole.coupling is not None
    plan, asked = remaining(whole.plan, cut.plan), request.compensate != "auto"
    try:
        if request.data is None:
            found = _by_drawn_images(cut, whole, plan, request, whole.coupling)
        else:
            data = held_apart(request.data)[0] if request.heal else request.data
            found = compensate(
                cut.model, whole.model, plan, data, coupling=whole.coupling, loss=request.loss,
                samples=samples, recalibrate=bool(request.recalibrate),
            )  # fmt: skip
    except (SaliencyError, torch.OutOfMemoryError) as error:
        if asked:  # If not, it is better without than not at all.
            raise
        found = Compensation((), {}, 0, failed=str(error))
    return replace(found, asked=asked)


def _by_drawn_images(cut: Network, whole: Network, plan: Plan, request: Request, coupling: Coupling) -> Compensation:
    """Statistics of batch norms stay those of the data that the network was trained with."""
    args, kwargs = drawn_images(request.inputs, most_together(coupling, SAMPLES))
    found = compensate(
        cut.model, whole.model, plan, [(args, kwargs)], coupling=coupling,
        loss=lambda model, batch: model(*batch[0], **batch[1]), recalibrate=False,
    )  # fmt: skip
    return replace(found, drawn=True)
