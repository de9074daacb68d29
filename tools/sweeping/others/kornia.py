"""kornia: its networks for features, matching, edges, faces, detection and classification, with random weights."""

from __future__ import annotations

import importlib
from typing import Any

_PATCHES = (4, 1, 32, 32)
_DEFORMABLE = {"neck_hidden_dim": 64, "neck_dim_feedforward": 128, "head_hidden_dim": 64, "head_num_queries": 20}

# Name -> module, class, what it is given, shape of its input.
_MODELS: dict[str, tuple[str, str, dict[str, Any], tuple[int, ...]]] = {
    "HardNet": ("feature", "HardNet", {"pretrained": False}, _PATCHES),
    "HardNet8": ("feature", "HardNet8", {"pretrained": False}, _PATCHES),
    "HyNet": ("feature", "HyNet", {"pretrained": False}, _PATCHES),
    "SOSNet": ("feature", "SOSNet", {"pretrained": False}, _PATCHES),
    "TFeat": ("feature", "TFeat", {"pretrained": False}, _PATCHES),
    "OriNet": ("feature", "OriNet", {"pretrained": False}, _PATCHES),
    "KeyNet": ("feature", "KeyNet", {"pretrained": False}, (1, 1, 64, 64)),
    "DISK-unet": (
        "feature.disk._unets",
        "Unet",
        {"in_features": 3, "up": [64, 64, 64, 129], "down": [16, 32, 64, 64, 64]},
        (1, 3, 64, 64),
    ),
    "DeFMO": ("feature", "DeFMO", {"pretrained": False}, (1, 6, 64, 64)),
    "DeDoDe-detector": ("feature.dedode.dedode_models", "dedode_detector_L", {}, (1, 3, 56, 56)),
    "DeDoDe-descriptor": ("feature.dedode.dedode_models", "dedode_descriptor_B", {}, (1, 3, 56, 56)),
    "XFeatModel": ("feature.xfeat", "XFeatModel", {}, (1, 3, 64, 64)),
    "ResNetFPN_8_2": (
        *("feature.loftr.backbone.resnet_fpn", "ResNetFPN_8_2"),
        {"config": {"initial_dim": 32, "block_dims": [32, 48, 64]}},
        (1, 1, 64, 64),
    ),
    "ResNetFPN_16_4": (
        *("feature.loftr.backbone.resnet_fpn", "ResNetFPN_16_4"),
        {"config": {"initial_dim": 32, "block_dims": [32, 48, 64, 96]}},
        (1, 1, 64, 64),
    ),
    "DexiNed": ("models.dexined", "DexiNed", {"pretrained": False}, (1, 3, 64, 64)),
    "RRDBNet": ("models.rrdbnet", "RRDBNet", {"num_in_ch": 3, "num_out_ch": 3, "num_block": 4}, (1, 3, 32, 32)),
    "SmallSRNet": ("models.small_sr", "SmallSRNet", {"upscale_factor": 2, "pretrained": False}, (1, 1, 32, 32)),
    "YuNet": ("models.yunet", "YuNet", {"phase": "train", "pretrained": False}, (1, 3, 64, 64)),
    "TinyViT": ("models.tiny_vit", "TinyViT", {"img_size": 224, "num_classes": 10}, (1, 3, 224, 224)),
    "VisionTransformer": (
        *("models.vit", "VisionTransformer", {"image_size": 64, "embed_dim": 96, "depth": 2, "num_heads": 4}),
        (1, 3, 64, 64),
    ),
    "MobileViT-xxs": ("models.vit_mobile", "MobileViT", {"mode": "xxs"}, (1, 3, 256, 256)),
    "MobileViT-xs": ("models.vit_mobile", "MobileViT", {"mode": "xs"}, (1, 3, 256, 256)),
    "EfficientViT-b0": ("models.efficient_vit.backbone", "efficientvit_backbone_b0", {}, (1, 3, 128, 128)),
    "EfficientViT-b1": ("models.efficient_vit.backbone", "efficientvit_backbone_b1", {}, (1, 3, 128, 128)),
    "EfficientViT-l0": ("models.efficient_vit.backbone", "efficientvit_backbone_l0", {}, (1, 3, 128, 128)),
}


def names() -> list[str]:
    return [*_MODELS, "RTDETR", "LoFTR-coarse", "LightGlue", "SOLD2"]


def create(name: str) -> Any:
    if name == "RTDETR":
        from kornia.models.rt_detr import RTDETR, RTDETRConfig

        return RTDETR.from_config(
            RTDETRConfig("resnet18d", 5, input_size=128, head_num_decoder_layers=2, **_DEFORMABLE)
        )
    if name == "LoFTR-coarse":
        from kornia.feature import LoFTR

        return LoFTR(pretrained=None).loftr_coarse  # All of it finds no matches with random weights.
    if name == "SOLD2":
        from kornia.feature import SOLD2_detector

        return SOLD2_detector(pretrained=False).model
    if name == "LightGlue":
        from kornia.feature import LightGlue

        return LightGlue(None, input_dim=64, descriptor_dim=64, n_layers=2, depth_confidence=-1, width_confidence=-1)
    module, kind, options, _ = _MODELS[name]
    return getattr(importlib.import_module(f"kornia.{module}"), kind)(**options)


def inputs(name: str, model: Any) -> Any:
    import torch

    if name == "RTDETR":
        return torch.rand(1, 3, 128, 128)
    if name == "LoFTR-coarse":
        return torch.randn(1, 64, 256), torch.randn(1, 64, 256)
    if name == "SOLD2":
        return torch.rand(1, 1, 64, 64)
    if name == "LightGlue":
        return ({f"image{i}": _points(torch) for i in range(2)},)
    return torch.rand(_MODELS[name][3])


def _points(torch: Any) -> dict[str, Any]:
    size = torch.tensor([[64, 64]])
    return {"keypoints": 64 * torch.rand(1, 30, 2), "descriptors": torch.randn(1, 30, 64), "image_size": size}
