"""resnest: split attention in all its forms."""

from __future__ import annotations

from typing import Any

_NAMES = """
resnest50 resnest101 resnest50_fast_1s1x64d resnest50_fast_1s2x40d resnest50_fast_1s4x24d resnest50_fast_2s1x64d
resnest50_fast_2s2x40d resnest50_fast_4s1x64d resnest50_fast_4s2x40d
"""


def names() -> list[str]:
    return _NAMES.split()


def create(name: str) -> Any:
    import resnest.torch

    return getattr(resnest.torch, name)(pretrained=False)


def inputs(name: str, model: Any) -> Any:
    import torch

    return torch.rand(1, 3, 128, 128)
