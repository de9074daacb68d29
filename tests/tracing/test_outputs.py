"""What a network puts out keeps its widths, whatever holds it."""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import halp_fx

Pair = namedtuple("Pair", "scores features")


@dataclass
class Plain:
    scores: Any
    name: str = "plain"


@dataclass(frozen=True, slots=True)
class Slotted:
    scores: Any


class Attributes:
    __slots__ = ("scores",)

    def __init__(self, scores):
        self.scores = scores


def looped(scores):
    found = Plain(scores)
    found.name = found
    return found


KINDS = {
    "tensor": lambda y: y,
    "dict": lambda y: {"scores": y, "size": 3},
    "list in a tuple": lambda y: (None, [y]),
    "named tuple": lambda y: Pair(y, None),
    "mapping of its own": lambda y: UserDict(scores=y),
    "dataclass": Plain,
    "dataclass with slots": Slotted,
    "dataclass in a dataclass": lambda y: Plain(Slotted(y)),
    "dataclasses in a list in a dataclass": lambda y: Plain([Slotted(y)]),
    "dataclass that holds itself": looped,
    "object": lambda y: SimpleNamespace(scores=y),
    "object with slots": Attributes,
}


class Net(nn.Module):
    def __init__(self, wrapped):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 32)
        self.wrapped = wrapped

    def forward(self, x):
        return self.wrapped(self.head(self.norm(self.conv(x)).relu().mean((2, 3))))


X = torch.rand(1, 3, 8, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_scores_keep_their_width(kind):
    found = halp_fx.channel_groups(Net(KINDS[kind]), X)
    assert dict(found.frozen) == {"head": "reaches the model's output"}
    assert [g.name for g in found.prunable] == ["conv"]


@pytest.mark.parametrize("kind", ["dataclass with slots", "dataclass in a dataclass", "dataclass that holds itself"])
def test_images_alone_say_what_channels_are_worth(kind):
    """As with outputs that are a tensor: a network's outputs are found wherever they are."""
    data = [torch.rand(16, 3, 8, 8) for _ in range(4)]
    options = {"latency": "macs", "data": data, "progress": False}
    small = halp_fx.prune(Net(KINDS[kind]), 0.5, X, **options)
    assert small.halp.met
    assert small.head.out_features == 32
