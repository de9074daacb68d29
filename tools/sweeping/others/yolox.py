"""yolox: detectors, with boxes decoded and not, depthwise, and on Darknet-53."""

from __future__ import annotations

from typing import Any

_NAMES = ("nano", "tiny", "s", "m", "s-raw", "darknet53", "darknet21-backbone")


def names() -> list[str]:
    return list(_NAMES)


def create(name: str) -> Any:
    from yolox.models import YOLOFPN, YOLOPAFPN, YOLOX, Darknet, YOLOXHead

    if name == "darknet21-backbone":
        return Darknet(21)
    if name == "darknet53":
        return YOLOX(YOLOFPN(53), YOLOXHead(80, 1.0, in_channels=[128, 256, 512], act="lrelu"))
    depth, width = {"nano": (0.33, 0.25), "tiny": (0.33, 0.375), "s": (0.33, 0.5), "m": (0.67, 0.75)}[
        name.split("-")[0]
    ]
    options = {"in_channels": [256, 512, 1024], "act": "silu", "depthwise": name == "nano"}
    model = YOLOX(YOLOPAFPN(depth, width, **options), YOLOXHead(80, width, **options))
    model.head.decode_in_inference = not name.endswith("raw")
    return model


def inputs(name: str, model: Any) -> Any:
    import torch

    return torch.rand(1, 3, 128, 128)
