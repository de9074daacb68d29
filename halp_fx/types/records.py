"""What a node of a trace carries: see docs/record.md. `tracing.graph` hands it out (`of`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

RECORD = "halp_fx"
"""The one key of a node's `meta` under which its record is kept."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape, strides (in elements), dtype and device of a tensor that was seen while tracing."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device)


@dataclass(slots=True, eq=False)
class Record:
    """What was seen of one node. Who records writes it; stages above read it, and must not change it.

    Attributes:
        spec: of the result; None where it is not one tensor (several results, the output).
        results: of an operator with several results, a spec for each that is a tensor.
        module: qualified name of the innermost module that ran it, "" for the model itself.
        layer: the class of that module.
        function: the Python function of PyTorch that led to it ("chunk"), "" if none did.
        source: the line of the user's code that did, as "dir/file.py:123".
        constant: of a `get_attr` node, whether it is no parameter or buffer of the model.
        trained: whether it is a parameter; only of `get_attr` nodes that are not constant.
        value: what a small tensor held in this forward, where that is known.
        fixed: whether `value` depends neither on the input nor on parameters.
        sizes_read: dimensions of the result whose size the program read.
        sources: where the numbers that it was given come from (`tracing.tags`), in a trial; they are not pickled.
    """

    spec: TensorSpec | None = None
    results: tuple[TensorSpec | None, ...] = ()
    module: str = ""
    layer: type = object
    function: str = ""
    source: str = ""
    constant: bool = False
    trained: bool = False
    value: torch.Tensor | None = None
    fixed: bool = False
    sizes_read: frozenset[int] = frozenset()
    sources: frozenset[Any] = frozenset()

    @property
    def one(self) -> TensorSpec:
        """The spec, where it is known that the result is one tensor."""
        assert self.spec is not None
        return self.spec

    @property
    def known(self) -> torch.Tensor:
        """The value, where it is known that there is one."""
        assert self.value is not None
        return self.value
