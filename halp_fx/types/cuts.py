"""Cuts: what a plan takes from each tensor of a model. Whatever has a tensor's shape is cut alike: its gradient, the
momentum that an optimizer keeps of it, its moving average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Cuts:
    """Which slots of which parameters and buffers stay, by the first `state_dict` name of each.

    Attributes:
        kept: tensor -> dimension -> the slots that stay, a sorted int64 array. A tensor that is not named keeps all.
        gone: tensors that go whole, with the branches that are dropped.
    """

    kept: Mapping[str, Mapping[int, np.ndarray]] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()

    def of(self, tensor: str) -> Mapping[int, np.ndarray]:
        """By dimension, what stays of a tensor; empty for one that keeps all."""
        return self.kept.get(tensor, {})
