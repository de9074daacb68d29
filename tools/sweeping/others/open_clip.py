"""open_clip: image towers by themselves, and whole models of images and words, small."""

from __future__ import annotations

from typing import Any

SIDE = 64
_WORDS = 16

_VIT = {"layers": 2, "width": 64, "head_width": 16, "patch_size": 16, "image_size": SIDE}
_RESNET = {"layers": (1, 1, 1, 1), "width": 16, "patch_size": None, "image_size": SIDE, "head_width": 16}
_EVERY_SCALE = {"scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True}
_TEXT = {"context_length": _WORDS, "vocab_size": 100, "width": 64, "heads": 4, "layers": 2}

_TOWERS: dict[str, dict[str, Any]] = {
    "vit": _VIT,
    "vit_pooler": {**_VIT, "attentional_pool": True, "attn_pooler_queries": 8, "attn_pooler_heads": 4},
    "vit_average": {**_VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
    "vit_sincos": {**_VIT, "pos_embed_type": "sin_cos_2d", "ls_init_value": 0.1},
    "vit_scaled": {**_VIT, **_EVERY_SCALE},
    "vit_qk_norm": {**_VIT, "qk_norm": True},
    "resnet": _RESNET,
    "timm_vit": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224},
    "timm_resnet": {"timm_model_name": "resnet18", "timm_pool": "abs_attn", "timm_proj": "linear", "image_size": SIDE},
    "timm_rotary": {"timm_model_name": "resnet18", "timm_pool": "rot_attn", "timm_proj": "mlp", "image_size": SIDE},
    "timm_convnext": {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear", "image_size": SIDE},
}
# Name -> class, tower of images, words.
_PAIRS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "clip": ("CLIP", _VIT, _TEXT),
    "clip_resnet": ("CLIP", _RESNET, _TEXT),
    "clip_custom_text": ("CustomTextCLIP", _VIT, {**_TEXT, "pool_type": "last", "no_causal_mask": True}),
    "clip_scaled": ("CustomTextCLIP", {**_VIT, **_EVERY_SCALE}, {**_TEXT, **_EVERY_SCALE}),
    "siglip": (
        "CustomTextCLIP",
        {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "avg", "timm_proj": "none", "image_size": 224},
        {**_TEXT, "width": 192, "heads": 4, "pool_type": "last", "proj_bias": True, "no_causal_mask": True},
    ),
    "coca": ("CoCa", {**_VIT, "attentional_pool": True, "output_tokens": True}, {**_TEXT, "embed_cls": True}),
}


def names() -> list[str]:
    return [*_TOWERS, *_PAIRS]


def create(name: str) -> Any:
    from open_clip import coca_model, model

    if name in _TOWERS:
        return model._build_vision_tower(48, model.CLIPVisionCfg(**_TOWERS[name]))
    kind, images, words = _PAIRS[name]
    if kind == "CoCa":
        images = {**images, "attn_pooler_queries": 8, "attn_pooler_heads": 4}
        words = {**words, "output_tokens": True, "pad_id": 0}
        both = {"width": 64, "heads": 4, "layers": 2, "context_length": _WORDS, "vocab_size": 100}
        return coca_model.CoCa(64, both, words, images)
    return getattr(model, kind)(192 if name == "siglip" else 48, images, words)


def inputs(name: str, model: Any) -> Any:
    import torch

    side = 224 if name in ("timm_vit", "siglip") else SIDE
    images = torch.rand(1, 3, side, side)
    if name in _TOWERS:
        return images
    return images, torch.tensor([[*range(1, _WORDS), 99]])
