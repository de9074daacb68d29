"""transformers: vision models by their default configurations, with small images, and shrunk where they are huge."""

from __future__ import annotations

import os
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

SIDE = 128  # Of images, unless a configuration says otherwise.

_RESNET = {"backbone_config": ("ResNetConfig", {"out_features": ["stage2", "stage3", "stage4"]})}
_STAGES = {"out_features": [f"stage{i}" for i in (1, 2, 3, 4)]}
_CONVNEXT = {**_STAGES, "hidden_sizes": [96, 192, 384, 768]}
_BEIT = {"hidden_size": 192, "num_hidden_layers": 8, "num_attention_heads": 3, "intermediate_size": 768}
_BEIT |= {"out_indices": [2, 4, 6, 8], "reshape_hidden_states": False}

# Class -> what its configuration is given beyond the image size. A pair (class, arguments) stands for a configuration.
_MODELS: dict[str, dict[str, Any]] = {
    # Classifiers.
    "BeitForImageClassification": {"use_relative_position_bias": True},
    "BitForImageClassification": {},
    "CLIPForImageClassification": {"vision_config": {"image_size": SIDE, "hidden_size": 384, "num_attention_heads": 6}},
    "ConvNextForImageClassification": {},
    "ConvNextV2ForImageClassification": {},
    "CvtForImageClassification": {},
    "Data2VecVisionForImageClassification": {},
    "DeiTForImageClassification": {},
    "DeiTForImageClassificationWithTeacher": {},
    "Dinov2ForImageClassification": {},
    "Dinov2WithRegistersForImageClassification": {},
    "DonutSwinForImageClassification": {"image_size": 224},
    "EfficientNetForImageClassification": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    "FocalNetForImageClassification": {},
    "HGNetV2ForImageClassification": {},
    "HieraForImageClassification": {"image_size": [224, 224]},
    "IJepaForImageClassification": {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 8},
    "LevitForImageClassification": {"image_size": 224},
    "MobileNetV1ForImageClassification": {},
    "MobileNetV2ForImageClassification": {},
    "MobileViTForImageClassification": {},
    "MobileViTV2ForImageClassification": {},
    "PoolFormerForImageClassification": {},
    "PvtForImageClassification": {},
    "PvtV2ForImageClassification": {},
    "RegNetForImageClassification": {},
    "ResNetForImageClassification": {},
    "SegformerForImageClassification": {},
    "SiglipForImageClassification": {"vision_config": {"image_size": SIDE}},
    "SwiftFormerForImageClassification": {"image_size": 224},
    "SwinForImageClassification": {"image_size": 224},
    "SwinForMaskedImageModeling": {"image_size": 224},
    "Swinv2ForImageClassification": {},
    "TextNetForImageClassification": {},
    "ViTForImageClassification": {},
    "ViTMSNForImageClassification": {},
    # Encoders, and models that are trained by reconstruction.
    "AlignVisionModel": {},
    "Aimv2VisionModel": {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 8},
    "BlipVisionModel": {},
    "CLIPVisionModel": {},
    "CLIPVisionModelWithProjection": {},
    "ChineseCLIPVisionModel": {},
    "DINOv3ConvNextModel": {},
    "DINOv3ViTModel": {},
    "Sam2VisionModel": {},
    "SamVisionModel": {"image_size": 256, "num_hidden_layers": 4, "global_attn_indexes": [1, 3]},
    "SiglipVisionModel": {},
    "ViTMAEForPreTraining": {},
    "ViTMAEModel": {},
    "VitDetModel": {},
    # Dense prediction.
    "BeitForSemanticSegmentation": {"out_indices": [3, 5, 7, 11]},
    "DPTForDepthEstimation": {},
    "DPTForSemanticSegmentation": {},
    "DepthAnythingForDepthEstimation": {},
    "EomtForUniversalSegmentation": {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 8},
    "GLPNForDepthEstimation": {},
    "Mask2FormerForUniversalSegmentation": {},
    "MaskFormerForInstanceSegmentation": {},
    "MobileNetV2ForSemanticSegmentation": {},
    "MobileViTForSemanticSegmentation": {},
    "MobileViTV2ForSemanticSegmentation": {},
    "OneFormerForUniversalSegmentation": {},
    "SegformerForSemanticSegmentation": {},
    "Swin2SRForImageSuperResolution": {"embed_dim": 60, "image_size": 64},
    "UperNetForSemanticSegmentation": {"backbone_config": ("ResNetConfig", _STAGES)},
    "UperNetForSemanticSegmentation/convnext": {"backbone_config": ("ConvNextConfig", _CONVNEXT)},
    "UperNetForSemanticSegmentation/swin": {"backbone_config": ("SwinConfig", _STAGES)},
    "VitMatteForImageMatting": {
        "hidden_size": 768,
        "convstream_hidden_sizes": [48, 96, 192],
        "fusion_hidden_sizes": [256, 128, 64, 32],
    },
    "VitPoseForPoseEstimation": {},
    "ZoeDepthForDepthEstimation": {"backbone_config": ("BeitConfig", _BEIT)},
    # Detectors.
    "ConditionalDetrForObjectDetection": _RESNET,
    "DFineForObjectDetection": {},
    "DabDetrForObjectDetection": _RESNET,
    "DeformableDetrForObjectDetection": _RESNET,
    "DetrForObjectDetection": _RESNET,
    "DetrForSegmentation": _RESNET,
    "LwDetrForObjectDetection": {"projector_scale_factors": [1.0], "num_queries": 100},
    "OwlViTForObjectDetection": {},
    "RTDetrForObjectDetection": {},
    "RTDetrV2ForObjectDetection": {},
    "RfDetrForObjectDetection": {"num_queries": 100},
    "TableTransformerForObjectDetection": _RESNET,
    "YolosForObjectDetection": {},
    # Matching and keypoints, and clips.
    "EfficientLoFTRForKeypointMatching": {},
    "SuperPointForKeypointDetection": {},
    "TimesformerForVideoClassification": {"num_hidden_layers": 4},
    "VideoMAEForVideoClassification": {"num_hidden_layers": 4},
    "VivitForVideoClassification": {"num_hidden_layers": 4, "num_frames": 8},
}

# What the backbone wants: so many windows of patches, or just this size.
_SIDES = {"RfDetrForObjectDetection": 224, "LwDetrForObjectDetection": 256, "VitPoseForPoseEstimation": (256, 192)}


def names() -> list[str]:
    return list(_MODELS)


def create(name: str) -> Any:
    import transformers

    kind = getattr(transformers, name.partition("/")[0])
    return kind(_config(kind.config_class, _MODELS[name]))


def _config(kind: Any, given: dict[str, Any]) -> Any:
    import transformers

    made = {k: _config(getattr(transformers, v[0]), v[1]) if isinstance(v, tuple) else v for k, v in given.items()}
    config = kind(**made)
    if hasattr(config, "image_size") and "image_size" not in given:
        config.image_size = [SIDE, SIDE] if isinstance(config.image_size, list | tuple) else SIDE
    return config


def inputs(name: str, model: Any) -> Any:
    import torch

    config = model.config
    side = _SIDES.get(name) or next(
        (v for c in (config, getattr(config, "vision_config", None)) if (v := getattr(c, "image_size", None))), SIDE
    )
    height, width = side if isinstance(side, list | tuple) else (side, side)
    channels = getattr(config, "num_channels", 3)
    image = torch.randn(1, channels if isinstance(channels, int) else 3, height, width)
    if "Video" in name:
        return {"pixel_values": image.unsqueeze(1).repeat(1, config.num_frames, 1, 1, 1)}
    if name.startswith("EfficientLoFTR"):
        return {"pixel_values": torch.randn(1, 2, 3, height, width)}
    if name.startswith("ViTMAE"):
        patches = (height // config.patch_size) ** 2
        return {"pixel_values": image, "noise": torch.rand(1, patches)}
    if name.startswith("OwlViT"):
        words = torch.arange(1, 17)[None]  # One that starts with 0 is padding.
        return {"pixel_values": image, "input_ids": words, "attention_mask": torch.ones_like(words)}
    if name.startswith("OneFormer"):
        return {"pixel_values": image, "task_inputs": torch.arange(77)[None]}
    if name == "SwinForMaskedImageModeling":
        return {
            "pixel_values": image,
            "bool_masked_pos": torch.arange((height // config.patch_size) ** 2)[None] % 3 == 0,
        }
    return {"pixel_values": image}
