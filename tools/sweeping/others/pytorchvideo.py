"""PyTorchVideo: its networks of clips, with few classes and short, small clips."""

from __future__ import annotations

from typing import Any

_CLIPS = {  # Frames, side.
    **dict.fromkeys(("c2d_r50", "i3d_r50", "slow_r50"), (8, 224)),
    **dict.fromkeys(("slowfast_r50", "slowfast_r101", "csn_r101"), (32, 224)),
    **dict.fromkeys(("x3d_xs", "efficient_x3d_xs"), (4, 160)),
    **dict.fromkeys(("x3d_s", "efficient_x3d_s"), (13, 160)),
    **dict.fromkeys(("x3d_m", "mvit_base_16x4", "r2plus1d_r50"), (16, 224)),
    "slowfast_16x8_r101_50_50": (64, 224),
    "mvit_base_16": (1, 224),
}


def names() -> list[str]:
    return list(_CLIPS)


def create(name: str) -> Any:
    from pytorchvideo.models import hub

    return getattr(hub, name)(pretrained=False)


def inputs(name: str, model: Any) -> Any:
    import torch

    frames, side = _CLIPS[name]
    if name == "mvit_base_16":
        return torch.randn(1, 3, side, side)
    clip = torch.randn(1, 3, frames, side, side)
    return ([clip[:, :, ::4], clip],) if name.startswith("slowfast") else clip
