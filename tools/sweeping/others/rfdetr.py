"""rfdetr: the detectors and a segmenter, with random weights, few queries and images of 128 pixels."""

from __future__ import annotations

from typing import Any

SIDE = 128

_CONFIGS = {
    "nano": "RFDETRNanoConfig",
    "small": "RFDETRSmallConfig",
    "medium": "RFDETRMediumConfig",
    "seg_nano": "RFDETRSegNanoConfig",
}


def names() -> list[str]:
    return list(_CONFIGS)


def create(name: str) -> Any:
    from rfdetr import config
    from rfdetr.models.lwdetr import build_model_from_config

    kind = getattr(config, _CONFIGS[name])
    side = kind(pretrain_weights="none").patch_size * 8
    # A path of weights keeps those of the encoder from being fetched; nothing is read from it here.
    return build_model_from_config(
        kind(
            pretrain_weights="none",
            resolution=side,
            positional_encoding_size=8,
            num_queries=20,
            num_select=20,
            num_classes=5,
            group_detr=2,
            device="cpu",
        )
    )


def inputs(name: str, model: Any) -> Any:
    import torch

    side = 8 * model.backbone[0].encoder.patch_size
    return torch.rand(1, 3, side, side)
