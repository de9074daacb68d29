"""pyiqa: networks that judge images, of those that can be made without their weights."""

from __future__ import annotations

import importlib
from typing import Any

# Name -> module, class, what it is given, how many images, their side.
_MODELS: dict[str, tuple[str, str, dict[str, Any], int, int]] = {
    "CNNIQA": ("cnniqa_arch", "CNNIQA", {"pretrained": None}, 1, 32),
    "DBCNN-SCNN": ("dbcnn_arch", "SCNN", {}, 1, 64),
    "CKDN-ResNet": ("ckdn_arch", "ResNet", {"layers": [1, 1, 1, 1], "block": "Bottleneck"}, 2, 64),
    "WaDIQaM-FR": ("wadiqam_arch", "WaDIQaM", {"metric_type": "FR", "pretrained": False, "train_patch_num": 4}, 2, 64),
    "WaDIQaM-NR": (
        *("wadiqam_arch", "WaDIQaM"),
        *({"metric_type": "NR", "pretrained": False, "train_patch_num": 4, "model_name": None}, 1, 64),
    ),
    "PieAPP": ("pieapp_arch", "PieAPP", {"pretrained": False}, 2, 64),
    "MUSIQ": (
        *("musiq_arch", "MUSIQ"),
        *({"pretrained": False, "hidden_size": 48, "mlp_dim": 96, "num_layers": 2}, 1, 64),
    ),
    "URanker": (
        *("uranker_arch", "URanker"),
        *({"embed_dims": [32, 48, 48, 48], "serial_depths": [1, 1, 1, 1], "parallel_depth": 1, "pretrained": False}, 1),
        64,
    ),
    "MetaIQA": ("metaiqa_arch", "MetaIQA", {"pretrained": False}, 1, 64),
    "STLPIPS-vgg": ("stlpips_arch", "vggnet", {"requires_grad": True}, 1, 64),
    "MANIQA-swin": (
        *("maniqa_swin", "SwinTransformer"),
        *({"patches_resolution": (8, 8), "depths": [2, 2], "num_heads": [4, 4], "embed_dim": 32, "window_size": 4}, 1),
        8,
    ),
    "TOPIQ-swin": (
        *("topiq_swin", "SwinTransformer"),
        *({"img_size": 64, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}, 1, 64),
    ),
    "TReS-encoder": ("tres_arch", "Transformer", {"d_model": 32, "nhead": 4, "num_encoder_layers": 2}, 1, 8),
    "CLIP-resnet": (
        *("clip_model", "ModifiedResNet"),
        *({"layers": (1, 1, 1, 1), "output_dim": 32, "heads": 4, "input_resolution": 64, "width": 16}, 1, 64),
    ),
    "CLIP-vit": (
        *("clip_model", "VisionTransformer"),
        *({"input_resolution": 64, "patch_size": 16, "width": 64, "layers": 2, "heads": 4, "output_dim": 32}, 1, 64),
    ),
    "MS_SWD_learned": ("msswd_arch", "MS_SWD_learned", {"pretrained": False}, 2, 64),
}


def names() -> list[str]:
    return list(_MODELS)


def create(name: str) -> Any:
    module, kind, options, _, _ = _MODELS[name]
    room = importlib.import_module(f"pyiqa.archs.{module}")
    if "block" in options:
        options = {**options, "block": getattr(room, options["block"])}
    return getattr(room, kind)(**options)


def inputs(name: str, model: Any) -> Any:
    import torch

    _, _, _, count, side = _MODELS[name]
    if name == "MANIQA-swin":
        return torch.rand(1, 32, 8, 8)
    if name == "TReS-encoder":
        return torch.rand(1, 32, 8, 8), torch.rand(1, 32, 8, 8)
    return tuple(torch.rand(1, 3, side, side) for _ in range(count))
