"""segment_anything: its parts, small: the encoder of images, that of prompts, the decoder of masks."""

from __future__ import annotations

from typing import Any


def names() -> list[str]:
    return ["ImageEncoderViT", "ImageEncoderViT-window", "MaskDecoder", "PromptEncoder", "TwoWayTransformer"]


def create(name: str) -> Any:
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer

    if name.startswith("ImageEncoder"):
        windows = {"window_size": 4, "global_attn_indexes": (1,)} if name.endswith("window") else {}
        return ImageEncoderViT(96, 16, 3, 64, 3, 4, out_chans=32, use_rel_pos=True, **windows)
    transformer = TwoWayTransformer(2, 32, 4, 64)
    if name == "MaskDecoder":
        return MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=48)
    return PromptEncoder(32, (6, 6), (96, 96), 16) if name == "PromptEncoder" else transformer


def inputs(name: str, model: Any) -> Any:
    import torch

    if name.startswith("ImageEncoder"):
        return torch.rand(1, 3, 96, 96)
    if name == "TwoWayTransformer":
        return torch.randn(1, 32, 6, 6), torch.randn(1, 32, 6, 6), torch.randn(1, 5, 32)
    if name == "PromptEncoder":
        return (96 * torch.rand(1, 2, 2), torch.tensor([[0, 1]])), 96 * torch.rand(1, 4), torch.randn(1, 1, 24, 24)
    image = torch.randn(1, 32, 6, 6)
    return image, torch.randn(1, 32, 6, 6), torch.randn(1, 5, 32), torch.randn(1, 32, 6, 6), True
