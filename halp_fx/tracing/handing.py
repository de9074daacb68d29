"""handing: a mode of PyTorch that is handed operators one by one, as what records, listens and restricts wants them."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch

from ..internals import OpOverload, TorchDispatchMode, eagerly


class OperatorMode(TorchDispatchMode):
    """Within it every operator that a forward runs is handed to `operator`, one by one: also those that an operator
    comes to which is given functions (`flex_attention`, `torch.cond`)."""

    supports_higher_order_operators = True

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Within a compiled part of a forward, Dynamo would compile the mode, too."""
        kind: Any = cls
        return super().__new__(_past_dynamo(kind) if "torch._dynamo" in sys.modules else kind)

    def operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operator returns that is called with these arguments."""
        raise NotImplementedError

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # Else PyTorch imports its compiler, which takes seconds, to switch it off around each operator.

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A scripted function calls operators by itself, and what is asked of their tensors here would pass for its own.
        with torch._C.DisableTorchFunction():
            pieces = eagerly(func)
            if pieces is None:
                return self.operator(func, args, kwargs or {})
        with self:
            return pieces(*args, **(kwargs or {}))


@cache
def _past_dynamo(mode: Any) -> Any:
    """The same mode, which Dynamo leaves alone."""
    shield = {"_should_skip_dynamo": classmethod(lambda cls: True), "__torch_dispatch__": mode.__torch_dispatch__}
    return type(mode.__name__, (mode,), shield)
