"""Which node of a graph that is being written each tensor is.

Tensors are known by identity, and held so that no identity is used twice; what they lie in is known by its storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx


class Held(NamedTuple):
    """A tensor that has a node. `writes` to its memory (`storage`) are those that the node knows of."""

    tensor: torch.Tensor
    node: fx.Node
    writes: int
    storage: int


class Result(NamedTuple):
    """A tensor that is one of the results of a node, and has none of its own until something reads it."""

    tensor: torch.Tensor
    node: fx.Node
    position: int


class Write(NamedTuple):
    """A write in place: through which tensor (its identity), and by which node."""

    tensor: int
    node: fx.Node


class Memory:
    """The tensors of a forward, and what was written to their memory."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}
        self._results: dict[int, Result] = {}
        self._writes: dict[int, list[Write]] = {}
        # The tensor that was last seen in each piece of memory.
        self._newest: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._held)

    def held(self, tensor: torch.Tensor) -> Held | None:
        return self._held.get(id(tensor))

    def known(self, tensor: torch.Tensor) -> tuple[fx.Node, int] | fx.Node | None:
        """What a tensor is known as: a node, or a node with several results and which of them."""
        held = self._held.get(id(tensor))
        if held is not None:
            return held.node
        result = self._results.get(id(tensor))
        return None if result is None else (result.node, result.position)

    def hold(self, tensor: torch.Tensor, node: fx.Node) -> None:
        """A tensor is a node from now on, which knows of all writes to its memory."""
        storage = storage_of(tensor)
        self._newest[storage] = tensor
        self._held[id(tensor)] = Held(tensor, node, len(self._writes.get(storage, ())), storage)

    def hold_results(self, tensors: Sequence[Any], node: fx.Node) -> None:
        """The tensors among these are results of a node."""
        for index, tensor in enumerate(tensors):
            if isinstance(tensor, torch.Tensor):
                self._results[id(tensor)] = Result(tensor, node, index)
                self._held.pop(id(tensor), None)

    def take(self, tensor: torch.Tensor) -> Result | None:
        """Which result a tensor is, if it is one; from now on it is none."""
        return self._results.pop(id(tensor), None)

    def write(self, tensor: torch.Tensor, node: fx.Node) -> None:
        """A node writes to the memory of a tensor, through it."""
        self._writes.setdefault(storage_of(tensor), []).append(Write(id(tensor), node))

    def missed(self, held: Held) -> Sequence[Write]:
        """Writes to a tensor's memory that its node does not know of."""
        writes = self._writes.get(held.storage, ())
        return writes[held.writes :] if held.writes != len(writes) else ()

    def newest(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The tensor that was last seen in the memory of this one."""
        return self._newest.get(storage_of(tensor))

    def release(self) -> None:
        """Let go of all tensors."""
        for found in (self._held, self._results, self._newest):
            found.clear()


def storage_of(tensor: torch.Tensor) -> int:
    """The memory that a tensor lies in; its own identity if it is not strided."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


def same_elements(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Of tensors in one memory: whether they are of the same elements, in the same shape."""
    if a.layout != torch.strided or b.layout != torch.strided:
        return False
    return a.shape == b.shape and bool(a.storage_offset() == b.storage_offset()) and a.stride() == b.stride()
