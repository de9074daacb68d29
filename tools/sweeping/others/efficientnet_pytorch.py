"""efficientnet_pytorch: paddings computed from sizes, a swish with a backward of its own."""

from __future__ import annotations

from typing import Any


def names() -> list[str]:
    return [f"efficientnet-b{k}" for k in range(6)]


def create(name: str) -> Any:
    from efficientnet_pytorch import EfficientNet

    return EfficientNet.from_name(name)


def inputs(name: str, model: Any) -> Any:
    import torch

    return torch.randn(1, 3, 128, 128)
