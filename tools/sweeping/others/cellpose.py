"""cellpose: the networks that earlier versions trained are gone; the transformer of this one, with few layers."""

from __future__ import annotations

from typing import Any


def names() -> list[str]:
    return ["CPSAM"]


def create(name: str) -> Any:
    from cellpose import vit

    model = vit.CPSAM()
    model.encoder.blocks = model.encoder.blocks[:2]
    return model


def inputs(name: str, model: Any) -> Any:
    import torch

    return torch.rand(1, 3, 256, 256)
