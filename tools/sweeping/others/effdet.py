"""effdet: EfficientDets and detectors of their kind, their classes and boxes at every level, no choice among them."""

from __future__ import annotations

from typing import Any

_NAMES = """
efficientdet_d0 efficientdet_d1 efficientdetv2_dt resdet50 cspresdet50 cspresdext50 cspresdext50pan cspdarkdet53
cspdarkdet53m mixdet_m mobiledetv2_110d mobiledetv3_large efficientdet_q0 efficientdet_q1 efficientdet_w0
efficientdet_es
efficientdet_lite0 tf_efficientdet_d0 tf_efficientdet_d6 tf_efficientdet_lite0
"""


def names() -> list[str]:
    return _NAMES.split()


def create(name: str) -> Any:
    from effdet import create_model

    return create_model(name, pretrained=False, pretrained_backbone=False, image_size=(128, 128))


def inputs(name: str, model: Any) -> Any:
    import torch

    return torch.rand(1, 3, *model.config.image_size)
