"""Classes of labels, when more pairs of them go together than before."""

from __future__ import annotations

import numpy as np

from ..types.dependencies import components
from .planes import distinct


def merged(classes: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The classes when the labels `a[i]` and `b[i]` are put into one."""
    left, right = classes[a], classes[b]
    differ = left != right
    if not differ.any():
        return classes
    # Only the classes that meet are looked at, each pair once: it repeats at every position of an image.
    pairs = distinct(left[differ].astype(np.int64) << 32 | right[differ])
    met, ends = np.unique(np.concatenate([pairs >> 32, pairs & 0xFFFFFFFF]), return_inverse=True)
    component = components(len(met), *ends.reshape(2, -1))
    smallest = np.full(len(met), np.iinfo(np.int64).max)
    np.minimum.at(smallest, component, met)
    renamed = np.arange(int(classes.max()) + 1)
    renamed[met] = smallest[component]
    number = np.cumsum(renamed == np.arange(len(renamed))) - 1
    return np.asarray(number[renamed][classes])
