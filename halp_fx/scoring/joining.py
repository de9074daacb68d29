"""joining: batches -> one batch of as many samples as wanted, as far as they can be put together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..errors import SaliencyError
from ..internals import tree_flatten, tree_unflatten
from .losses import inputs_of, moved
from .sampled import samples_in, samples_of


def joined(data: Iterable[Any], most: int, device: torch.device) -> tuple[Any, int]:
    """What the model is called with, for at most `most` samples of the first batches; and how many they are.

    Batches that are not alike (other shapes, or what is no tensor differs) end it. Where the samples of the first batch
    cannot be counted, it is that batch, of one. Samples that are not finite are left out.

    Args:
        data: batches: inputs, or pairs whose first item is the input.

    Raises:
        StopIteration: there is no batch.
        SaliencyError: no sample is finite.
    """
    batches = iter(data)
    first = inputs_of(next(batches))
    count = samples_in(first)
    if count is None:
        return moved(first, device), 1
    if not count:
        raise SaliencyError("batch 0 of data has no samples: leave empty batches out")
    leaves, tree = tree_flatten(first)
    columns = [[leaf] for leaf in leaves]
    while count < most:
        batch = next(batches, None)
        more = inputs_of(batch) if batch is not None else None
        further = samples_in(more)
        others, other_tree = tree_flatten(more)
        if not further or other_tree != tree or not all(map(_alike, leaves, others)):
            break
        for column, leaf in zip(columns, others, strict=True):
            column.append(leaf)
        count += further
    whole = tree_unflatten([torch.cat(c) if isinstance(c[0], torch.Tensor) else c[0] for c in columns], tree)
    return _finite(moved(samples_of(whole, 0, most), device), min(count, most))


def _finite(batch: Any, count: int) -> tuple[Any, int]:
    """The samples without NaN or infinite numbers, and how many they are."""
    leaves, tree = tree_flatten(batch)
    numbers = [t for t in leaves if isinstance(t, torch.Tensor) and t.is_floating_point() and len(t) == count]
    if not numbers:
        return batch, count
    good = torch.stack([torch.isfinite(t).reshape(count, -1).all(1) for t in numbers]).all(0)
    if bool(good.all()):
        return batch, count
    if not bool(good.any()):
        raise SaliencyError(f"all {count} samples of data hold NaN or infinite numbers: they are not finite images")
    kept = [t[good] if isinstance(t, torch.Tensor) else t for t in leaves]
    return tree_unflatten(kept, tree), int(good.sum())


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.ndim > 0 and a.shape[1:] == b.shape[1:] and a.dtype == b.dtype
    return type(a) is type(b) and a == b
