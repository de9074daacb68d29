"""What a call of `prune` was for, in plain words and checksums: what another call must share to go on from its state.

Budgets are not part of it: one state serves many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import StateError
from ..internals import tree_leaves
from ..latency import Cost
from ..model.inputs import described
from ..model.preserving import random_kept
from ..model.tensors import every_tensor
from ..progress import length_of
from ..scoring.losses import described as batch_described
from .request import Request

_OWN = ("goals", "examples", "data", "heal", "ignore", "progress")
"""Fields of a `Request` that are compared in another way, or do not matter: a network is healed after what is kept."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a state is of.

    Attributes:
        network: its class.
        tensors: checksums of its parameters and buffers, by name.
        data: of a list of batches the checksum, of any other source its length and what its first batch looks like.
        options: everything else that was asked for, by name.
    """

    network: str
    tensors: Mapping[str, str]
    data: str
    options: Mapping[str, str]

    @classmethod
    def of(cls, model: nn.Module, request: Request, call: str = "prune") -> Asked:
        options = {f.name: _said(getattr(request, f.name)) for f in fields(request) if f.name not in _OWN}
        options["call"] = call
        options["latency"] = _cost(request.goals.cost)
        options["budgets for"] = ", ".join(cost.resource for cost, _ in request.goals.further) or "one resource"
        options["example_inputs"] = str(described(list(request.examples)))
        options["ignore"] = ", ".join(sorted(request.ignore))
        tensors = {name: digest([tensor]) for name, tensor, _ in every_tensor(model)}
        return cls(type(model).__qualname__, tensors, _data(request.data, request.batches), options)

    def check(self, other: Asked, where: str) -> None:
        """Raises StateError where this call is not the one that `other`, from the state at `where`, is of."""
        if self.network != other.network:
            raise _foreign(where, f"is of a {other.network}, and this model is a {self.network}")
        for name in (*self.tensors, *other.tensors):
            here, there = self.tensors.get(name), other.tensors.get(name)
            if here is None or there is None:
                raise _foreign(where, f"is of another model: {name} is only {'there' if here is None else 'here'}")
            if here != there:
                raise _foreign(where, f"is of another model: {name} has other values there")
        if self.data != other.data:
            raise _foreign(where, f"was made with other data: {other.data} there, {self.data} here")
        for name in (*self.options, *other.options):
            here, there = self.options.get(name, "unknown"), other.options.get(name, "unknown")
            if here != there:
                raise _foreign(where, f"was made with {name} = {there}, and this call has {name} = {here}")


def _foreign(where: str, how: str) -> StateError:
    return StateError(f"the state in {where} {how}. Nothing was changed: pass another folder, or make the same call")


def _said(value: Any) -> str:
    if callable(value):
        kind = value if hasattr(value, "__qualname__") else type(value)
        return f"{kind.__module__}.{kind.__qualname__}"
    return repr(value)


def _cost(cost: Cost) -> str:
    plain = (str, int, float, bool, type(None))
    names: list[str] = [f.name for f in fields(cost)] if is_dataclass(cost) else []
    settings = {name: value for name in names if isinstance(value := getattr(cost, name), plain)}
    return f"{type(cost).__qualname__}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"


def _data(data: Iterable[Any] | None, batches: int) -> str:
    if data is None:
        return "none"
    if isinstance(data, list | tuple):
        return f"{len(data)} batches with checksum {digest(data[:batches])}"
    count = length_of(data)
    length = "batches" if count is None else f"{count} batches"
    with random_kept():  # A loader that shuffles draws its order now.
        first = next(islice(iter(data), 1), None)
    return f"{length} from a {type(data).__qualname__}, the first {batch_described(first)}"


def digest(values: Any) -> str:
    """Of all tensors, arrays and plain values in some values. Of other objects it is the class: what they hold is not
    known, and where they lie changes from process to process."""
    found = hashlib.sha256()
    for leaf in tree_leaves(values):
        if isinstance(leaf, torch.Tensor):
            found.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            found.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:
            found.update(f"{leaf.dtype} {leaf.shape}".encode())
            found.update(np.ascontiguousarray(leaf).tobytes())
        else:
            plain = leaf is None or isinstance(leaf, str | bytes | int | float | complex)
            found.update((repr(leaf) if plain else type(leaf).__qualname__).encode())
    return found.hexdigest()[:16]
