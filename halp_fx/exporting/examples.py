"""Inputs at several batch sizes, and how far the results of two networks are apart."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..internals import tree_leaves, tree_map
from ..types import Inputs


@dataclass(frozen=True, slots=True)
class Batches:
    """Example inputs, whose first dimension is the batch.

    Attributes:
        inputs: arguments of one forward.
        size: their batch size: that of the first tensor. 0 where it is in a list, as the images that a detector takes:
            then nothing is said about batches.
    """

    inputs: Inputs
    size: int

    @classmethod
    def of(cls, inputs: Inputs) -> Batches:
        arguments = (*inputs[0], *inputs[1].values())
        first = next((a for a in arguments if tensors(a)), None)
        rows = [] if first is None or isinstance(first, list) else tensors(first)
        return cls(inputs, rows[0].shape[0] if rows and rows[0].dim() else 0)

    def holds(self, leaf: Any) -> bool:
        """Whether a part of the inputs is a tensor with a row for each example."""
        return bool(self.size) and isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == self.size

    def at(self, size: int) -> Inputs:
        """Inputs of a larger batch size: the first rows are these, further ones hold the same numbers in other places,
        so that a network that confuses rows is seen."""
        repeats = range(math.ceil(size / max(self.size, 1)))

        def resized(leaf: Any) -> Any:
            return torch.cat([_rolled(leaf, i) for i in repeats])[:size] if self.holds(leaf) else leaf

        made: Inputs = tree_map(resized, self.inputs)
        return made

    def again(self) -> Inputs:
        """Inputs of the same shapes, and the same numbers in other places: what an exporter took for a constant is
        seen."""
        made: Inputs = tree_map(lambda leaf: _rolled(leaf, 1) if isinstance(leaf, torch.Tensor) else leaf, self.inputs)
        return made


def _rolled(tensor: torch.Tensor, places: int) -> torch.Tensor:
    return tensor.roll(places, -1) if tensor.dim() else tensor


def named(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Arguments by the names that the forward gives them."""
    return dict(inspect.signature(model.forward).bind(*inputs[0], **inputs[1]).arguments)


def tensors(result: Any) -> list[torch.Tensor]:
    """The tensors in a result, in order."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def names_of(parts: Mapping[str, Any]) -> list[str]:
    """A name for each tensor in some arguments, or in a result: that of the part, with a number where it holds
    several."""
    found = []
    for name, value in parts.items():
        count = len(tensors(value))
        found += [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
    return found


def deviation(network: Callable[..., Any], wanted: Sequence[tuple[Inputs, Sequence[torch.Tensor]]]) -> float:
    """The largest difference of an output relative to that output's largest value; infinite where a shape or a whole
    number differs.

    Args:
        network: what is compared.
        wanted: inputs, and the outputs that they should give.
    """
    worst = 0.0
    for (args, kwargs), outputs in wanted:
        found = tensors(network(*args, **kwargs))
        if [t.shape for t in found] != [t.shape for t in outputs]:
            return math.inf
        worst = max((worst, *map(_apart, found, outputs)))
    return worst


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    found, wanted = found.cpu(), wanted.cpu()
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(found.to(wanted.dtype), wanted) else math.inf
    if not wanted.numel():
        return 0.0
    difference = (found.double() - wanted.double()).abs().max()
    error = float(difference / wanted.double().abs().max().clamp_min(1e-30))
    return error if math.isfinite(error) else math.inf
