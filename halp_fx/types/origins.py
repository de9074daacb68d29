"""Where a pruned network comes from: enough to make it again out of the dense one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .plans import Plan


@dataclass(frozen=True, slots=True)
class Signature:
    """The tensors of a network, without their values.

    Attributes:
        shapes: of every parameter and buffer that its `state_dict` has, by name.
        dtypes: of the same, as "float32".
        tied: second names of a tensor -> its first one.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)

    def differences(self, other: Signature) -> tuple[str, ...]:
        """Where the other has other names or shapes, in words."""
        found = [
            f"{name} has shape {other.shapes[name]}, not {shape}" if name in other.shapes else f"there is no {name}"
            for name, shape in self.shapes.items()
            if other.shapes.get(name) != shape
        ]
        return (*found, *(f"{name} is one too many" for name in other.shapes if name not in self.shapes))


@dataclass(frozen=True, slots=True)
class Origin:
    """How a network was made by pruning.

    Attributes:
        dense: the network that was pruned first.
        plans: lead from it to this one, applied in turn. One, unless a pruned network was pruned again.
        made: what the last plan left.
        inputs: shapes and dtypes of the example inputs, and few whole numbers (`model.inputs.described`); None where an
            image was inferred.
    """

    dense: Signature
    plans: tuple[Plan, ...]
    made: Signature
    inputs: Any = None
