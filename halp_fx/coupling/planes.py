"""Planes: the labels beside one tensor, and what can be read off them without writing them out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

Plane = torch.Tensor
Planes = tuple[Plane, ...]


def along(labels: torch.Tensor, dim: int, shape: Sequence[int]) -> Plane:
    """A plane of `shape` that varies along `dim` only: `labels` has shape (shape[dim],)."""
    view = [1] * len(shape)
    view[dim] = -1
    return labels.reshape(view).expand(tuple(shape))


def varying(plane: Plane) -> tuple[int, ...]:
    """Dimensions along which a plane can vary."""
    # A list: this is called more than anything else, and generators are slower.
    shape = plane.shape
    return tuple([d for d, s in enumerate(plane.stride()) if s and shape[d] > 1])


def compact(plane: Plane) -> Plane:
    """The plane with length 1 along every dimension that it does not vary along."""
    strides = plane.stride()
    if 0 not in strides:
        return plane
    return plane.as_strided([1 if s == 0 and n > 1 else n for n, s in zip(plane.shape, strides, strict=True)], strides)


def simplify(plane: Plane) -> Plane:
    """Find the dimensions along which a materialised plane is constant, and give them stride 0 again."""
    small = compact(plane)
    labels = small.numpy()
    sizes = list(labels.shape)
    for dim, size in enumerate(sizes):
        if size > 1:
            first = labels[(slice(None),) * dim + (slice(0, 1),)]
            if (labels == first).all():
                labels, sizes[dim] = first, 1
    return small.as_strided(sizes, small.stride()).expand(plane.shape)


def independent(a: Plane, b: Plane) -> bool:
    """Whether every label of one plane meets every label of the other (a row and a column of one flattened matrix):
    coupled, they would all be one."""
    if a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride():
        return False  # Each meets itself alone. Of masks half of all that is asked for are the same.
    dims = varying(a)
    if len(dims) == 1 and varying(b) == dims:
        left, right = vector(a, dims[0]).numpy(), vector(b, dims[0]).numpy()
        # Most are a range of different labels.
        if any(int(row[-1]) - int(row[0]) == len(row) - 1 for row in (left, right)):
            return False
    else:
        small = shrunk(a, b)
        left, right = (np.ascontiguousarray(p.numpy()).reshape(-1) for p in small)
    left, right = once(left, right)
    # Most are told by the two outermost labels, and planes may have millions (a product for every pixel).
    met = right[left == left[0]]
    if met.min() != right.min() or met.max() != right.max():
        return False
    (rows, first), (columns, second) = _numbered(left), _numbered(right)
    if first < 2 or second < 2 or first * second > len(left) or _numbered(right[rows == rows[0]])[1] < second:
        return False
    pairs = np.zeros(first * second, dtype=bool)
    pairs[rows * second + columns] = True
    return bool(pairs.all())


def _numbered(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels numbered without gaps, and how many there are: without sorting, for they are of one narrow range."""
    offset = labels - labels.min()
    seen = np.zeros(int(offset.max()) + 1, dtype=np.int64)
    seen[offset] = 1
    return (np.cumsum(seen) - 1)[offset], int(seen.sum())


def broadcast(plane: Plane, shape: Sequence[int]) -> Plane:
    """Expand to the shape of a result, as elementwise operators do."""
    return plane.expand(tuple(shape))


def vector(plane: Plane, dim: int) -> torch.Tensor:
    """The labels along `dim`, shape (size,), of a plane that varies along `dim` only (0 if the tensor is empty)."""
    if plane.numel() == 0:
        return torch.zeros(plane.shape[dim], dtype=plane.dtype, device="cpu")
    return plane.as_strided((plane.shape[dim],), (plane.stride(dim),))


def shrunk(a: Plane, b: Plane) -> tuple[Plane, Plane]:
    """Both planes with length 1 along dimensions that neither varies along, broadcast to each other."""
    if a.dim() == 1 and a.shape == b.shape:
        return a, b
    dims = set(varying(a)) | set(varying(b))
    index = tuple(slice(None) if d in dims else slice(0, 1) for d in range(a.dim()))
    a, b = torch.broadcast_tensors(a[index], b[index])
    return a, b


def once(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two rows as long as what they repeat together, as far as their first pair tells: where positions of an image and
    channels are one dimension, the same pairs meet at every position."""
    again = np.flatnonzero((a[1:] == a[0]) & (b[1:] == b[0]))
    period = int(again[0]) + 1 if len(again) else len(a)
    if len(a) % period or not all(bool((row.reshape(-1, period) == row[:period]).all()) for row in (a, b)):
        return a, b
    return a[:period], b[:period]


def distinct(values: np.ndarray) -> np.ndarray:
    """The different values, sorted: in a third of the time of `np.unique`, which hashes."""
    ordered = np.sort(values)
    first: np.ndarray = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    return np.asarray(ordered[first])
