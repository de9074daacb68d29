"""Tensors without elements beside others: a skip connection without channels, boxes that were not found."""

from __future__ import annotations

import pytest
import torch
from test_operators import Case, assert_right, between, tokens
from torch import nn


def no_channels(x):
    """As encoders put out for a scale that they do not have."""
    return torch.empty(x.shape[0], 0, *x.shape[2:], dtype=x.dtype)


def no_rows(x):
    """Tokens of which there are none, as wide as others."""
    return torch.empty(x.shape[0], 0, x.shape[2], dtype=x.dtype)


def no_boxes(x):
    return torch.empty(0, 3, dtype=x.dtype)


CASES = {
    "a skip without channels": Case(lambda: between(lambda s, x: torch.cat([x, no_channels(x)], 1).relu()), {"a": 8}),
    "the skip first": Case(lambda: between(lambda s, x: torch.cat([no_channels(x), x, x.cos()], 1), 8, 16), {"a": 8}),
    "nothing but skips without channels": Case(
        lambda: between(lambda s, x: torch.cat([x, torch.cat([no_channels(x), no_channels(x)], 1)], 1)), {"a": 8}
    ),
    "a tensor of no shape": Case(
        lambda: between(lambda s, x: torch.cat([torch.empty(0, dtype=x.dtype), x], 1)), {"a": 8}
    ),
    "no rows": Case(lambda: tokens(lambda s, x: torch.cat([no_rows(x), x], 1)), {"a": 8}),
    "a layer's result for no boxes": Case(
        lambda: tokens(lambda s, x: torch.cat([s.b(no_boxes(x)), x.mean(1)]), b=nn.Linear(3, 8)), {"a": 8}
    ),
    "two layers' results for no boxes": Case(
        lambda: tokens(
            lambda s, x: torch.cat([torch.cat([s.b(no_boxes(x)), s.d(no_boxes(x))]), x.mean(1)]),
            b=nn.Linear(3, 8),
            d=nn.Linear(3, 8),
        ),
        {"a": 8},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_stands_beside_nothing_shrinks(name):
    assert_right(CASES[name])
