"""vit_pytorch: a network of every module that has one, with two layers and inputs of a few patches."""

from __future__ import annotations

import importlib
from typing import Any

SIDE = 64

_IMAGE = {"image_size": SIDE, "num_classes": 10}
_WIDTHS = {"dim": 96, "depth": 2, "heads": 4, "mlp_dim": 192}
_VIT = {**_IMAGE, **_WIDTHS, "patch_size": 16, "dim_head": 24}
_SERIES = {**_WIDTHS, "seq_len": 64, "patch_size": 8, "num_classes": 10, "dim_head": 24}
_VIDEO = {**_IMAGE, **_WIDTHS, "image_patch_size": 16, "frames": 4, "frame_patch_size": 2, "dim_head": 24}
_ND = {**_WIDTHS, "ndim": 3, "input_shape": (8, 32, 32), "patch_size": (2, 8, 8), "num_classes": 10, "dim_head": 24}
_FOUR = {"dim": (32, 64, 96, 128), "depth": (1, 1, 2, 1), "num_classes": 10}
_PIXELS = (1, 3, SIDE, SIDE)
_FRAMES = (1, 3, 4, SIDE, SIDE)
_NARROW = {"depth": 2, "dim_head": 24, "dim_action": 7, "mlp_dim": 192, "time_seq_len": 2, "dim": 96, "heads": 4}
_VIEWS = (1, 2, 3, 2, SIDE, SIDE)  # Of two cameras, two frames.

# Name -> module, class, what it is given, shape of the input.
_MODELS: dict[str, tuple[str, str, dict[str, Any], tuple[int, ...]]] = {
    "ats_vit": ("ats_vit", "ViT", {**_VIT, "max_tokens_per_depth": (12, 8)}, _PIXELS),
    "attn_residual_with_dca_simple_vit": ("attn_residual_with_dca_simple_vit", "SimpleViT", _VIT, _PIXELS),
    "cait": ("cait", "CaiT", {**_VIT, "cls_depth": 2}, _PIXELS),
    "cct": (
        "cct",
        "CCT",
        {"img_size": SIDE, "embedding_dim": 96, "num_layers": 2, "num_heads": 4, "mlp_ratio": 2, "num_classes": 10},
        _PIXELS,
    ),
    "cct_3d": (
        "cct_3d",
        "CCT",
        {
            "img_size": SIDE,
            "num_frames": 4,
            "embedding_dim": 96,
            "num_layers": 2,
            "num_heads": 4,
            "num_classes": 10,
            "positional_embedding": "learnable",
        },
        _FRAMES,
    ),
    "cross_vit": (
        "cross_vit",
        "CrossViT",
        {
            **_IMAGE,
            "sm_dim": 64,
            "lg_dim": 96,
            "sm_patch_size": 8,
            "lg_patch_size": 16,
            "depth": 2,
            "sm_enc_mlp_dim": 128,
            "lg_enc_mlp_dim": 192,
            "lg_enc_depth": 2,
            "sm_enc_heads": 4,
            "lg_enc_heads": 4,
        },
        _PIXELS,
    ),
    "crossformer": (
        "crossformer",
        "CrossFormer",
        {**_FOUR, "global_window_size": (4, 2, 2, 1), "local_window_size": 2},
        _PIXELS,
    ),
    "cvt": (
        "cvt",
        "CvT",
        {"num_classes": 10, "s2_depth": 1, "s3_depth": 2, "s2_emb_dim": 96, "s3_emb_dim": 192},
        _PIXELS,
    ),
    "deepvit": ("deepvit", "DeepViT", _VIT, _PIXELS),
    "distillable_vit": ("distill", "DistillableViT", _VIT, _PIXELS),
    "efficient": ("efficient", "ViT", {**_IMAGE, "patch_size": 16, "dim": 96}, _PIXELS),
    "jet_vit": ("jet_vit", "JetViT", {**_VIT, "window_size": 2}, _PIXELS),
    "jumbo_vit": ("jumbo_vit", "JumboViT", {**_VIT, "jumbo_cls_k": 2}, _PIXELS),
    "learnable_memory_vit": ("learnable_memory_vit", "ViT", _VIT, _PIXELS),
    "learnable_memory_vit_adapter": ("learnable_memory_vit", "Adapter", {}, _PIXELS),
    "levit": (
        "levit",
        "LeViT",
        {**_IMAGE, "dim": (64, 96, 128), "depth": 2, "heads": (2, 3, 4), "mlp_mult": 2, "num_distill_classes": 10},
        _PIXELS,
    ),
    "levjepa_nd": (
        "levjepa_nd",
        "NDTransformer",
        {k: v for k, v in _ND.items() if k != "num_classes"},
        (1, 3, 8, 32, 32),
    ),
    "look_vit": (
        "look_vit",
        "LookViT",
        {**_IMAGE, "dim": 96, "depth": 2, "heads": 4, "dim_head": 24, "patch_size": 16, "highres_patch_size": 8},
        _PIXELS,
    ),
    "looped_vit": (
        "looped_vit",
        "LoopedViT",
        {
            **_IMAGE,
            "dim": 96,
            "heads": 4,
            "dim_head": 24,
            "mlp_dim": 192,
            "patch_size": 16,
            "pre_loop_depth": 1,
            "num_looped_blocks": 2,
            "post_loop_depth": 1,
            "loop_depth": 2,
        },
        _PIXELS,
    ),
    "mae": ("mae", "MAE", {"decoder_dim": 64, "decoder_heads": 4, "decoder_dim_head": 16}, _PIXELS),
    "max_vit": (
        "max_vit",
        "MaxViT",
        {"num_classes": 10, "dim": 32, "depth": (1, 1, 2), "dim_head": 16, "dim_conv_stem": 32, "window_size": 2},
        _PIXELS,
    ),
    "max_vit_with_registers": (
        "max_vit_with_registers",
        "MaxViT",
        {"num_classes": 10, "dim": 32, "depth": (1, 1, 2), "dim_head": 16, "dim_conv_stem": 32, "window_size": 2},
        _PIXELS,
    ),
    "mobile_vit": (
        "mobile_vit",
        "MobileViT",
        {
            "image_size": (SIDE, SIDE),
            "dims": [96, 120, 144],
            "num_classes": 10,
            "depths": (1, 2, 1),
            "channels": [16, 32, 48, 48, 64, 64, 80, 80, 96, 96, 384],
        },
        _PIXELS,
    ),
    "mp3": ("mp3", "ViT", _VIT, _PIXELS),
    "na_vit": ("na_vit", "NaViT", _VIT, ()),
    "na_vit_nested_tensor": ("na_vit_nested_tensor", "NaViT", _VIT, ()),
    "na_vit_nested_tensor_3d": (
        "na_vit_nested_tensor_3d",
        "NaViT",
        {**_VIT, "max_frames": 4, "frame_patch_size": 2},
        (),
    ),
    "nest": (
        "nest",
        "NesT",
        {**_IMAGE, "patch_size": 4, "dim": 32, "heads": 2, "num_hierarchies": 3, "block_repeats": (1, 1, 2)},
        _PIXELS,
    ),
    "normalized_vit": ("normalized_vit", "nViT", _VIT, _PIXELS),
    "parallel_vit": ("parallel_vit", "ViT", _VIT, _PIXELS),
    "pit": ("pit", "PiT", {**_VIT, "depth": (1, 2, 1), "dim": 64}, _PIXELS),
    "regionvit": ("regionvit", "RegionViT", {**_FOUR, "window_size": 2, "use_peg": True}, _PIXELS),
    "rvt": ("rvt", "RvT", _VIT, _PIXELS),
    "rvt_plain": ("rvt", "RvT", {**_VIT, "use_rotary": False, "use_ds_conv": False, "use_glu": False}, _PIXELS),
    "scalable_vit": (
        "scalable_vit",
        "ScalableViT",
        {
            "num_classes": 10,
            "dim": 32,
            "heads": (1, 2, 3, 4),
            "depth": (1, 1, 2, 1),
            "reduction_factor": (4, 2, 1, 1),
            "window_size": (4, 2, None, None),
        },
        _PIXELS,
    ),
    "sep_vit": (
        "sep_vit",
        "SepViT",
        {"num_classes": 10, "dim": 32, "heads": (1, 2, 3, 4), "depth": (1, 1, 2, 1)},
        (1, 3, 224, 224),
    ),
    "simmim": ("simmim", "SimMIM", {}, _PIXELS),
    "simple_flash_attn_vit": ("simple_flash_attn_vit", "SimpleViT", _VIT, _PIXELS),
    "simple_flash_attn_vit_3d": ("simple_flash_attn_vit_3d", "SimpleViT", _VIDEO, _FRAMES),
    "simple_uvit": ("simple_uvit", "SimpleUViT", {**_VIT, "depth": 4}, _PIXELS),
    "simple_vit": ("simple_vit", "SimpleViT", _VIT, _PIXELS),
    "simple_vit_1d": ("simple_vit_1d", "SimpleViT", _SERIES, (1, 3, 64)),
    "simple_vit_3d": ("simple_vit_3d", "SimpleViT", _VIDEO, _FRAMES),
    "simple_vit_attn_residual": ("simple_vit_attn_residual", "SimpleViTAttnResidual", _VIT, _PIXELS),
    "simple_vit_orthog_residual_update": ("simple_vit_orthog_residual_update", "SimpleViT", _VIT, _PIXELS),
    "simple_vit_with_fft": ("simple_vit_with_fft", "SimpleViT", {**_VIT, "freq_patch_size": 16}, _PIXELS),
    "simple_vit_with_hyper_connections": (
        "simple_vit_with_hyper_connections",
        "SimpleViT",
        {**_VIT, "num_residual_streams": 4},
        _PIXELS,
    ),
    "simple_vit_with_patch_dropout": ("simple_vit_with_patch_dropout", "SimpleViT", _VIT, _PIXELS),
    "simple_vit_with_qk_norm": ("simple_vit_with_qk_norm", "SimpleViT", _VIT, _PIXELS),
    "simple_vit_with_register_tokens": ("simple_vit_with_register_tokens", "SimpleViT", _VIT, _PIXELS),
    "simple_vit_with_relative_proj_pos_bias": ("simple_vit_with_relative_proj_pos_bias", "SimpleViT", _VIT, _PIXELS),
    "simple_vit_with_sparse_gating": ("simple_vit_with_sparse_gating", "SimpleViTWithSparseGating", _VIT, _PIXELS),
    "simple_vit_with_specialized_cls": (
        "simple_vit_with_specialized_cls",
        "SimpleViT",
        {**_VIT, "specialize_qkv_depth": 1},
        _PIXELS,
    ),
    "simple_vit_with_value_residual": ("simple_vit_with_value_residual", "SimpleViT", _VIT, _PIXELS),
    "t2t": ("t2t", "T2TViT", {**_IMAGE, **_WIDTHS}, _PIXELS),
    "twins_svt": (
        "twins_svt",
        "TwinsSVT",
        {
            "num_classes": 10,
            "s2_emb_dim": 96,
            "s3_emb_dim": 128,
            "s4_emb_dim": 160,
            "s3_depth": 2,
            "s4_depth": 1,
            **{f"s{i}_local_patch_size": n for i, n in enumerate((4, 4, 2, 2), 1)},
            **{f"s{i}_global_k": n for i, n in enumerate((4, 4, 2, 2), 1)},
        },
        _PIXELS,
    ),
    "vaat_ast": (
        "vaat",
        "AST",
        {"dim": 96, "depth": 2, "mlp_dim": 192, "num_classes": 10, "dim_head": 24, "heads": 4, "accept_spec": True},
        (1, 64, 48),
    ),
    "vat": ("vat", "VAT", {**_NARROW, "vit_layer_indices": (0, 1), "num_views": 2}, _VIEWS),
    "vat_siglip": (
        "vat_siglip",
        "SigLIPVAT",
        {
            **_NARROW,
            "siglip_image_size": SIDE,
            "siglip_patch_size": 16,
            "siglip_dim": 96,
            "siglip_depth": 2,
            "siglip_heads": 4,
            "siglip_mlp_dim": 192,
            "vit_layer_indices": (0, 1),
            "num_views": 2,
        },
        _VIEWS,
    ),
    "vit": ("vit", "ViT", _VIT, _PIXELS),
    "vit_mean": ("vit", "ViT", {**_VIT, "pool": "mean"}, _PIXELS),
    "vit_1d": ("vit_1d", "ViT", _SERIES, (1, 3, 64)),
    "vit_3d": ("vit_3d", "ViT", _VIDEO, _FRAMES),
    "vit_5": ("vit_5", "ViT", _VIT, _PIXELS),
    "vit_detpool": ("vit_detpool", "ViTDetPool", _VIT, _PIXELS),
    "vit_for_small_dataset": ("vit_for_small_dataset", "ViT", _VIT, _PIXELS),
    "vit_nd": ("vit_nd", "ViTND", _ND, (1, 3, 8, 32, 32)),
    "vit_nd_pope": ("vit_nd_pope", "ViTND", _ND, (1, 3, 8, 32, 32)),
    "vit_nd_rotary": ("vit_nd_rotary", "ViTND", _ND, (1, 3, 8, 32, 32)),
    "vit_with_decorr": ("vit_with_decorr", "ViT", _VIT, _PIXELS),
    "vit_with_keel_post_ln": ("vit_with_keel_post_ln", "ViT", _VIT, _PIXELS),
    "vit_with_patch_dropout": ("vit_with_patch_dropout", "ViT", _VIT, _PIXELS),
    "vit_with_patch_merger": ("vit_with_patch_merger", "ViT", _VIT, _PIXELS),
    "vivit": (
        "vivit",
        "ViViT",
        {**{k: v for k, v in _VIDEO.items() if k != "depth"}, "spatial_depth": 2, "temporal_depth": 2},
        _FRAMES,
    ),
    "vivit_factorized_self_attention": (
        "vivit",
        "ViViT",
        {
            **{k: v for k, v in _VIDEO.items() if k != "depth"},
            "spatial_depth": 2,
            "temporal_depth": 2,
            "variant": "factorized_self_attention",
            "use_flash_attn": False,
        },
        _FRAMES,
    ),
    "vivit_with_moss": (
        "vivit_with_moss",
        "ViViT",
        {**{k: v for k, v in _VIDEO.items() if k != "depth"}, "spatial_depth": 2, "temporal_depth": 2, "pool": "mean"},
        _FRAMES,
    ),
    "wwt": ("wwt", "WWT", {**_VIT, "num_slots": (8, 4)}, _PIXELS),
    "xcit": ("xcit", "XCiT", {**_VIT, "cls_depth": 2}, _PIXELS),
}


def names() -> list[str]:
    return list(_MODELS)


def create(name: str) -> Any:
    module, kind, options, _ = _MODELS[name]
    if module.startswith("vit_nd"):
        # PyTorch's flex attention has no backward on a CPU.
        importlib.import_module("vit_pytorch.vit_nd_masking").flex_attention_supported = lambda device: False
    return _class(module, kind)(**options, **_parts(name))


def _class(module: str, kind: str) -> Any:
    return getattr(importlib.import_module(f"vit_pytorch.{module}"), kind)


def _parts(name: str) -> dict[str, Any]:
    """The networks that a network is made around."""
    from torch import nn

    if name == "mae":
        return {"encoder": _class("vit", "ViT")(**_VIT, pool="mean")}
    if name == "simmim":  # It takes positions with a dimension for the batch, which `vit.ViT` has no more.
        return {"encoder": _class("deepvit", "DeepViT")(**_VIT)}
    if name == "learnable_memory_vit_adapter":
        return {"vit": _class("learnable_memory_vit", "ViT")(**_VIT)}
    if name == "vat":
        return {"vit": _class("vat", "ViT")(**_VIT)}
    if name == "efficient":
        layer = nn.TransformerEncoderLayer(96, 4, 192, batch_first=True, norm_first=True)
        return {"transformer": nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)}
    return {}


def inputs(name: str, model: Any) -> Any:
    import torch

    if name == "na_vit":
        return ([[torch.rand(3, 64, 32), torch.rand(3, 32, 32)], [torch.rand(3, 48, 64)]],)
    if name == "na_vit_nested_tensor":
        return ([torch.rand(3, 64, 32), torch.rand(3, 32, 32), torch.rand(3, 48, 64)],)
    if name == "na_vit_nested_tensor_3d":
        return ([torch.rand(3, 4, 64, 32), torch.rand(3, 2, 32, 32)],)
    return torch.rand(_MODELS[name][3])
