"""wrapping: a wrapper such as DistributedDataParallel around a model that changes its shape in between."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import TrainingError


class Rewrapped(nn.Module):
    """Runs a model in a wrapper that is made anew whenever the model was cut: buckets and hooks are of one shape.

    What it does not have itself (`no_sync`, …) it takes from the wrapper.

    Attributes:
        module: the model, as in the wrapper.
    """

    def __init__(self, model: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.module = model
        self._wrap = wrap
        self.take(self.anew())

    def anew(self) -> nn.Module:
        """The model in another wrapper, which is not run yet."""
        return self._wrap(self.module)

    def take(self, wrapper: nn.Module) -> None:
        """Run the model in a wrapper from now on."""
        # In a list: its parameters are those of `module`, and count once.
        self._inside = [wrapper]

    @property
    def wrapper(self) -> nn.Module:
        """As it is now."""
        return self._inside[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapper(*args, **kwargs)

    def train(self, mode: bool = True) -> Rewrapped:
        super().train(mode)
        self.wrapper.train(mode)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return getattr(self._inside[0], name)


def check_free(model: nn.Module, wrapped: Sequence[Rewrapped]) -> None:
    """See that nothing of one shape is around a model that will be cut. After a cut it would average no gradients, for
    a step unnoticed; with `find_unused_parameters`, to the end.

    Args:
        wrapped: what is made anew.

    Raises:
        TrainingError: a `DistributedDataParallel` is.
    """
    if not (dist.is_available() and dist.is_initialized()) or not _around(model, wrapped):
        return
    gc.collect()  # One that was dropped may be there yet.
    if _around(model, wrapped):
        if wrapped:
            raise TrainingError(
                "beside the wrapper that pruner.wrap has made of the model now, another DistributedDataParallel is "
                "around it: one from before the last cut, which something holds (`with trained.join():`, Join), or one "
                "that was made without pruner.wrap. It knows other shapes than the model has: run what pruner.wrap "
                "returned alone, or pass mode='mask', which keeps the shapes"
            )
        raise TrainingError(
            "the model is in a DistributedDataParallel, whose buckets are of the shapes that it has now: let "
            "pruner.wrap make it (docs/training.md), so that it is made anew after every cut, or pass mode='mask'"
        )


def _around(model: nn.Module, wrapped: Sequence[Rewrapped]) -> bool:
    own = {id(known.wrapper) for known in wrapped}
    found = (o for o in gc.get_objects() if issubclass(type(o), DistributedDataParallel) and id(o) not in own)
    return any(module is model for wrapper in found for module in wrapper.modules())
