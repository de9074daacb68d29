"""wrapping: a wrapper such as DistributedDataParallel around a model that changes its shape in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


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
        self.renew()

    def renew(self) -> None:
        """Wrap the model again."""
        # In a list: its parameters are those of `module`, and count once.
        self._inside = [self._wrap(self.module)]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._inside[0](*args, **kwargs)

    def train(self, mode: bool = True) -> Rewrapped:
        super().train(mode)
        self._inside[0].train(mode)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return getattr(self._inside[0], name)
