"""Networks in a file, and what a command said, for the tests of commands."""

from __future__ import annotations

import json
from dataclasses import dataclass

NETS = """
import torch
from torch import nn

def make(width=16, classes=4):
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                         nn.Conv2d(width, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, classes))

def bare():
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))

def batches():
    return [(torch.rand(4, 3, 8, 8), torch.randint(0, 4, (4,))) for _ in range(2)]

def fails():
    raise RuntimeError("no such luck")

number = 3
network = make()
"""
SMALL = ("nets.py:make", "--input", "1x3x8x8")
COUNTED = (*SMALL, "--cost", "macs")
COMMANDS = (
    "demo",
    "prune",
    "sweep",
    "apply",
    "export",
    "report",
    "compare",
    "bench",
    "profile",
    "explain",
    "solve",
    "info",
)


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)
