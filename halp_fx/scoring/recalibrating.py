"""recalibrating: a network and batches -> the same network with batch norms whose statistics are its own.

Statistics are those of the network before it was pruned. Re-estimated, they bring back most of what a cut costs at
once, and scores and judgements mean something again (EagleEye, arXiv 2007.02491).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..arguments import whole
from ..errors import SaliencyError, words_of
from ..internals import NormBase
from ..model.checks import check_module
from ..model.inputs import own
from ..model.preserving import modes_kept, random_kept, set_mode
from ..progress import counted
from .losses import NO_BATCHES, Loss, called, check_data, inputs_of, moved
from .sampled import batches_called

logger = logging.getLogger("halp_fx")

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""That can take the statistics of one batch. Not those of several processes: they would wait for each other, each with
batches of its own."""


def recalibrate(model: nn.Module, data: Iterable[Any], batches: int = 50, *, loss: Loss | None = None) -> nn.Module:
    """Re-estimate the statistics of a network's batch norms, in place: the plain mean over batches.

    Modes, momenta, gradients and random states are given back. Batch norms without statistics are left alone, and so
    is everything else: dropout stays off.

    Args:
        model: on its device; batches are moved there.
        data: batches: inputs, or pairs of inputs and targets, which are not used. Inputs are a tensor, a tuple or list
            (positional arguments) or a dict (keyword arguments). A batch of one image of 1 x 1 at a norm says nothing
            about its deviation and raises in PyTorch: pass larger ones.
        batches: how many are used at most.
        loss: (model, batch) -> anything, for batches of another kind: it calls the model.

    Returns:
        The model.

    A batch that makes statistics NaN or infinite is left out, and a warning names it.

    Raises:
        SaliencyError: data has no batch or is none, the forward fails on one, or no batch has finite statistics; the
            statistics are as they were.
    """
    lost = renew(model, data, batches, loss)
    if lost:
        logger.warning("batch norms: %s", without(lost))
    return model


def without(lost: Sequence[int]) -> str:
    """What to say of batches that were left out."""
    return f"statistics were estimated without {batches_called(lost)}, which makes them NaN or infinite"


def renew(model: nn.Module, data: Iterable[Any], batches: int = 50, loss: Loss | None = None) -> tuple[int, ...]:
    """As `recalibrate`; returns the numbers of the batches that were left out."""
    check_module(model)
    check_data(data)
    batches = whole("batches", batches, SaliencyError)
    if data is None:
        raise SaliencyError("batch norms cannot be re-estimated without data: pass batches, such as a DataLoader")
    norms = norms_of(model)
    if not norms:
        return ()
    device = next(iter(model.parameters())).device
    before = kept_statistics(norms)
    lost: list[int] = []
    used = 0
    with measuring(model, norms), random_kept(), torch.no_grad():
        try:
            for batch in counted(data, "batch norms", "batches", batches):
                if used >= batches:
                    break
                sound = kept_statistics(norms)
                _forward(model, moved(batch, device), loss)
                if not finite(norms):
                    put_back(norms, sound)
                    lost.append(used)
                used += 1
        except BaseException as error:
            put_back(norms, before)
            if not isinstance(error, Exception):
                raise
            raise SaliencyError(
                f"batch norms cannot be re-estimated: the forward of batch {used} of data failed with "
                f"{type(error).__name__}: {words_of(error)}"
            ) from error
    if not used:
        put_back(norms, before)
        raise SaliencyError(f"batch norms cannot be re-estimated: {NO_BATCHES}")
    if len(lost) == used:
        put_back(norms, before)
        raise SaliencyError(
            f"batch norms cannot be re-estimated: all {used} batches make statistics that are NaN or infinite; check "
            "the inputs, and whether the training diverged"
        )
    return tuple(lost)


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """What `recalibrate` estimates, on the CPU, by the names of the buffers."""
    named = {id(b): name for name, b in model.named_buffers(remove_duplicate=False)}
    found = (b for norm in norms_of(model) for b in norm.buffers(recurse=False))
    return {named[id(b)]: b.detach().cpu() for b in found}


def norms_of(model: nn.Module) -> list[NormBase]:
    """Norms that keep statistics."""
    return [m for m in model.modules() if isinstance(m, NormBase) and m.running_mean is not None]


def by_batch(model: nn.Module) -> None:
    """Let batch norms take the statistics of each batch; those that they keep stay as they are. Modes, momenta and
    counts are given back by whoever `preserved` the model."""
    for norm in model.modules():
        if isinstance(norm, BATCH_NORMS):
            norm.training, norm.momentum = True, 0.0


def _forward(model: nn.Module, batch: Any, loss: Loss | None) -> None:
    if loss is not None:
        loss(model, own(batch))
    else:
        called(model, inputs_of(batch))


@contextmanager
def measuring(model: nn.Module, norms: list[NormBase]) -> Iterator[None]:
    """A network in eval mode but for the norms, which take the mean over all batches."""
    momenta = [norm.momentum for norm in norms]
    with modes_kept(model):
        set_mode(model)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
        try:
            yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def kept_statistics(norms: list[NormBase]) -> list[dict[str, torch.Tensor]]:
    """A copy of what `recalibrate` estimates, for `put_back`."""
    return [{n: b.clone() for n, b in norm.named_buffers(recurse=False)} for norm in norms]


def finite(norms: list[NormBase]) -> bool:
    """Whether all statistics are numbers."""
    kept = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
    return bool(torch.stack([torch.isfinite(b).all() for b in kept]).all())


def put_back(norms: list[NormBase], before: list[dict[str, torch.Tensor]]) -> None:
    with torch.no_grad():
        for norm, buffers in zip(norms, before, strict=True):
            for name, kept in buffers.items():
                getattr(norm, name).copy_(kept)
