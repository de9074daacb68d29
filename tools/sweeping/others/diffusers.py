"""diffusers: networks that remove noise, autoencoders and their companions, each in a small configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_WORDS = 6
_BLOCKS_2D = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 48,
    "norm_num_groups": 8,
    "sample_size": 16,
}
_AUTOENCODER = {
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "block_out_channels": (32, 64),
    "norm_num_groups": 8,
}
_TWO_HEADS = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2}
_JOINT = {
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}
_VIDEO_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}

# Name -> class, what it is given, what its forward is given: shapes of floats, or values.
_MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "unet_1d": (
        "UNet1DModel",
        {
            "block_out_channels": (32, 64),
            "in_channels": 4,
            "out_channels": 4,
            "extra_in_channels": 64,
            "sample_size": 64,
            "down_block_types": ("DownBlock1DNoSkip", "DownBlock1D"),
            "up_block_types": ("UpBlock1D", "UpBlock1DNoSkip"),
        },
        {"sample": (1, 4, 64), "timestep": 10},
    ),
    "unet_1d_value": (
        "UNet1DModel",
        {
            "in_channels": 14,
            "out_channels": 14,
            "down_block_types": ("DownResnetBlock1D", "DownResnetBlock1D"),
            "up_block_types": (),
            "out_block_type": "ValueFunction",
            "mid_block_type": "ValueFunctionMidBlock1D",
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "downsample_each_block": True,
            "use_timestep_embedding": True,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "act_fn": "mish",
            "norm_num_groups": 8,
            "time_embedding_type": "positional",
        },
        {"sample": (1, 14, 16), "timestep": [10]},
    ),
    "unet_2d": (
        "UNet2DModel",
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "sample_size": 32,
        },
        {"sample": (1, 3, 32, 32), "timestep": 10},
    ),
    "unet_2d_resnet": (
        "UNet2DModel",
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "resnet_time_scale_shift": "scale_shift",
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "num_class_embeds": 10,
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "sample_size": 32,
        },
        {"sample": (1, 3, 32, 32), "timestep": 10, "class_labels": [3]},
    ),
    "unet_2d_skip": (
        "UNet2DModel",
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
            "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
            "time_embedding_type": "fourier",
            "mid_block_scale_factor": 1.414,
            "norm_num_groups": None,
            "layers_per_block": 1,
            "sample_size": 32,
        },
        {"sample": (1, 3, 32, 32), "timestep": [10.0]},
    ),
    "unet_2d_condition": (
        "UNet2DConditionModel",
        {**_BLOCKS_2D, "attention_head_dim": 4},
        {"sample": (1, 4, 16, 16), "timestep": 10, "encoder_hidden_states": (1, _WORDS, 48)},
    ),
    "unet_2d_condition_xl": (
        "UNet2DConditionModel",
        {
            **_BLOCKS_2D,
            "attention_head_dim": (2, 4),
            "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        },
        {
            "sample": (1, 4, 16, 16),
            "timestep": 10,
            "encoder_hidden_states": (1, _WORDS, 48),
            "added_cond_kwargs": {"text_embeds": (1, 32), "time_ids": (1, 6)},
        },
    ),
    "unet_2d_condition_simple": (
        "UNet2DConditionModel",
        {
            **_BLOCKS_2D,
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "resnet_time_scale_shift": "scale_shift",
            "attention_head_dim": 8,
            "encoder_hid_dim": 24,
            "encoder_hid_dim_type": "text_proj",
        },
        {"sample": (1, 4, 16, 16), "timestep": 10, "encoder_hidden_states": (1, _WORDS, 24)},
    ),
    "unet_3d": (
        "UNet3DConditionModel",
        {**_VIDEO_BLOCKS, "sample_size": 16},
        {"sample": (1, 4, 3, 16, 16), "timestep": 10, "encoder_hidden_states": (1, _WORDS, 32)},
    ),
    "unet_motion": (
        "UNetMotionModel",
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
            "cross_attention_dim": 32,
            "num_attention_heads": 4,
            "motion_num_attention_heads": 4,
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "sample_size": 16,
        },
        {"sample": (1, 4, 3, 16, 16), "timestep": 10, "encoder_hidden_states": (3, _WORDS, 32)},
    ),
    "unet_spatio_temporal": (
        "UNetSpatioTemporalConditionModel",
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            "cross_attention_dim": 32,
            "num_attention_heads": (4, 4),
            "layers_per_block": 1,
            "projection_class_embeddings_input_dim": 32,
            "addition_time_embed_dim": 16,
            "sample_size": 16,
        },
        {
            "sample": (1, 2, 8, 16, 16),
            "timestep": 10,
            "encoder_hidden_states": (1, _WORDS, 32),
            "added_time_ids": (1, 2),
        },
    ),
    "unet_kandinsky3": (
        "Kandinsky3UNet",
        {
            "time_embedding_dim": 32,
            "groups": 4,
            "attention_head_dim": 8,
            "layers_per_block": 3,
            "block_out_channels": (16, 32, 32, 48),
            "cross_attention_dim": 24,
            "encoder_hid_dim": 24,
        },
        {
            "sample": (1, 4, 16, 16),
            "timestep": [10],
            "encoder_hidden_states": (1, _WORDS, 24),
            "encoder_attention_mask": [[1] * _WORDS],
        },
    ),
    "unet_stable_cascade": (
        "StableCascadeUNet",
        {
            "conditioning_dim": 32,
            "block_out_channels": (32, 64),
            "num_attention_heads": (2, 4),
            "down_num_layers_per_block": (1, 2),
            "up_num_layers_per_block": (2, 1),
            "clip_text_pooled_in_channels": 24,
            "clip_text_in_channels": 24,
            "clip_image_in_channels": 16,
            "switch_level": (False,),
        },
        {
            "sample": (1, 16, 8, 8),
            "timestep_ratio": (1,),
            "clip_text_pooled": (1, 1, 24),
            "clip_text": (1, _WORDS, 24),
            "clip_img": (1, 1, 16),
        },
    ),
    "unet_controlnet_xs": (
        "UNetControlNetXSModel",
        {
            "sample_size": 16,
            "block_out_channels": (32, 64),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 24,
            "num_attention_heads": 4,
            "norm_num_groups": 8,
            "ctrl_block_out_channels": (8, 16),
            "ctrl_num_attention_heads": 2,
            "ctrl_max_norm_num_groups": 4,
            "ctrl_conditioning_embedding_out_channels": (8, 16),
        },
        {
            "sample": (1, 4, 16, 16),
            "timestep": 10,
            "encoder_hidden_states": (1, _WORDS, 24),
            "controlnet_cond": (1, 3, 32, 32),
        },
    ),
    "controlnet": (
        "ControlNetModel",
        {
            **{k: v for k, v in _BLOCKS_2D.items() if k not in ("up_block_types", "sample_size")},
            "attention_head_dim": 4,
            "conditioning_embedding_out_channels": (16, 32),
        },
        {
            "sample": (1, 4, 16, 16),
            "timestep": 10,
            "encoder_hidden_states": (1, _WORDS, 48),
            "controlnet_cond": (1, 3, 32, 32),
        },
    ),
    "controlnet_sd3": (
        "SD3ControlNetModel",
        {
            "sample_size": 16,
            "in_channels": 8,
            "out_channels": 8,
            **_TWO_HEADS,
            "joint_attention_dim": 32,
            "caption_projection_dim": 64,
            "pooled_projection_dim": 24,
            "pos_embed_max_size": 16,
        },
        {
            "hidden_states": (1, 8, 16, 16),
            "controlnet_cond": (1, 8, 16, 16),
            "encoder_hidden_states": (1, _WORDS, 32),
            "pooled_projections": (1, 24),
            "timestep": [10],
        },
    ),
    "t2i_adapter": ("T2IAdapter", {"channels": [32, 48, 64, 64]}, {"x": (1, 3, 64, 64)}),
    "t2i_adapter_light": (
        "T2IAdapter",
        {"channels": [32, 48, 64, 64], "adapter_type": "light_adapter", "num_res_blocks": 2},
        {"x": (1, 3, 64, 64)},
    ),
    "uvit_2d": (
        "UVit2DModel",
        {
            "hidden_size": 64,
            "cond_embed_dim": 32,
            "micro_cond_encode_dim": 8,
            "micro_cond_embed_dim": 40,
            "encoder_hidden_size": 32,
            "vocab_size": 33,
            "codebook_size": 32,
            "in_channels": 48,
            "block_out_channels": 48,
            "num_res_blocks": 1,
            "block_num_heads": 4,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "sample_size": 8,
        },
        {
            "input_ids": [[[(3 * i + j) % 32 for j in range(8)] for i in range(8)]],
            "encoder_hidden_states": (1, _WORDS, 32),
            "pooled_text_emb": (1, 32),
            "micro_conds": (1, 5),
        },
    ),
    "dit": (
        "DiTTransformer2DModel",
        {**_TWO_HEADS, "sample_size": 16, "norm_num_groups": 8, "num_embeds_ada_norm": 10},
        {"hidden_states": (1, 4, 16, 16), "timestep": [10], "class_labels": [3]},
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        {**_TWO_HEADS, "sample_size": 16, "cross_attention_dim": 64, "caption_channels": 24, "norm_num_groups": 8},
        {
            "hidden_states": (1, 4, 16, 16),
            "timestep": [10],
            "encoder_hidden_states": (1, _WORDS, 24),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    "sd3": (
        "SD3Transformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            **_TWO_HEADS,
            "joint_attention_dim": 32,
            "caption_projection_dim": 64,
            "pooled_projection_dim": 24,
            "pos_embed_max_size": 16,
        },
        {
            "hidden_states": (1, 4, 16, 16),
            "encoder_hidden_states": (1, _WORDS, 32),
            "pooled_projections": (1, 24),
            "timestep": [10],
        },
    ),
    "sd35": (
        "SD3Transformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            **_TWO_HEADS,
            "joint_attention_dim": 32,
            "caption_projection_dim": 64,
            "pooled_projection_dim": 24,
            "pos_embed_max_size": 16,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        {
            "hidden_states": (1, 4, 16, 16),
            "encoder_hidden_states": (1, _WORDS, 32),
            "pooled_projections": (1, 24),
            "timestep": [10],
        },
    ),
    "flux": (
        "FluxTransformer2DModel",
        {**_JOINT, "in_channels": 8, "pooled_projection_dim": 24},
        {
            "hidden_states": (1, 16, 8),
            "encoder_hidden_states": (1, _WORDS, 32),
            "pooled_projections": (1, 24),
            "timestep": [1.0],
        },
    ),
    "chroma": (
        "ChromaTransformer2DModel",
        {
            **_JOINT,
            "in_channels": 8,
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 32,
            "approximator_layers": 1,
        },
        {
            "hidden_states": (1, 16, 8),
            "encoder_hidden_states": (1, _WORDS, 32),
            "timestep": [1.0],
        },
    ),
    "auraflow": (
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 16,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "joint_attention_dim": 32,
            "caption_projection_dim": 64,
            "pos_embed_max_size": 256,
        },
        {"hidden_states": (1, 4, 16, 16), "encoder_hidden_states": (1, _WORDS, 32), "timestep": [10.0]},
    ),
    "sana": (
        "SanaTransformer2DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "num_cross_attention_heads": 4,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 64,
            "caption_channels": 24,
            "sample_size": 16,
        },
        {"hidden_states": (1, 4, 16, 16), "encoder_hidden_states": (1, _WORDS, 24), "timestep": [10]},
    ),
    "hunyuan_dit": (
        "HunyuanDiT2DModel",
        {
            "sample_size": 16,
            "num_layers": 2,
            "patch_size": 2,
            "num_attention_heads": 4,
            "in_channels": 4,
            "attention_head_dim": 16,
            "hidden_size": 64,
            "mlp_ratio": 2.0,
            "cross_attention_dim": 32,
            "cross_attention_dim_t5": 24,
            "pooled_projection_dim": 16,
            "text_len": 5,
            "text_len_t5": 4,
            "activation_fn": "gelu-approximate",
            "use_style_cond_and_image_meta_size": False,
        },
        {
            "hidden_states": (1, 4, 16, 16),
            "timestep": [10.0],
            "encoder_hidden_states": (1, 5, 32),
            "text_embedding_mask": [[1] * 5],
            "encoder_hidden_states_t5": (1, 4, 24),
            "text_embedding_mask_t5": [[1] * 4],
            "image_rotary_emb": None,
        },
    ),
    "prior": (
        "PriorTransformer",
        {**_TWO_HEADS, "embedding_dim": 32, "num_embeddings": 7, "additional_embeddings": 4},
        {
            "hidden_states": (1, 32),
            "timestep": 2,
            "proj_embedding": (1, 32),
            "encoder_hidden_states": (1, 7, 32),
        },
    ),
    "transformer_2d": (
        "Transformer2DModel",
        {**_TWO_HEADS, "in_channels": 64, "norm_num_groups": 8, "cross_attention_dim": 32},
        {"hidden_states": (1, 64, 8, 8), "encoder_hidden_states": (1, _WORDS, 32)},
    ),
    "stable_audio": (
        "StableAudioDiTModel",
        {
            "sample_size": 16,
            "in_channels": 8,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "num_key_value_attention_heads": 2,
            "out_channels": 8,
            "cross_attention_dim": 64,
            "time_proj_dim": 32,
            "global_states_input_dim": 24,
            "cross_attention_input_dim": 24,
        },
        {
            "hidden_states": (1, 8, 16),
            "timestep": [0.5],
            "encoder_hidden_states": (1, _WORDS, 24),
            "global_hidden_states": (1, 1, 24),
        },
    ),
    "latte": (
        "LatteTransformer3DModel",
        {
            **_TWO_HEADS,
            "num_layers": 1,
            "in_channels": 4,
            "out_channels": 8,
            "sample_size": 8,
            "patch_size": 2,
            "attention_bias": True,
            "caption_channels": 24,
            "cross_attention_dim": 64,
            "norm_type": "ada_norm_single",
            "activation_fn": "gelu-approximate",
            "norm_elementwise_affine": False,
            "video_length": 2,
        },
        {"hidden_states": (1, 4, 2, 8, 8), "timestep": [10], "encoder_hidden_states": (1, _WORDS, 24)},
    ),
    "lumina2": (
        "Lumina2Transformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "hidden_size": 48,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 16,
            "axes_dim_rope": (4, 4, 4),
            "axes_lens": (32, 32, 32),
            "cap_feat_dim": 24,
        },
        {
            "hidden_states": (1, 4, 16, 16),
            "timestep": [0.5],
            "encoder_hidden_states": (1, _WORDS, 24),
            "encoder_attention_mask": [[True] * _WORDS],
        },
    ),
    "cogvideox": (
        "CogVideoXTransformer3DModel",
        {
            **_TWO_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 24,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 9,
            "max_text_seq_length": _WORDS,
        },
        {"hidden_states": (1, 3, 4, 8, 8), "encoder_hidden_states": (1, _WORDS, 24), "timestep": [10]},
    ),
    "cogview3plus": (
        "CogView3PlusTransformer2DModel",
        {
            **_TWO_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "text_embed_dim": 24,
            "time_embed_dim": 16,
            "condition_dim": 8,
            "pos_embed_max_size": 8,
            "sample_size": 8,
        },
        {
            "hidden_states": (1, 4, 16, 16),
            "encoder_hidden_states": (1, _WORDS, 24),
            "timestep": [10],
            "original_size": [[20.0, 20.0]],
            "target_size": [[16.0, 16.0]],
            "crop_coords": [[0.0, 0.0]],
        },
    ),
    "cogview4": (
        "CogView4Transformer2DModel",
        {
            **_TWO_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "text_embed_dim": 24,
            "time_embed_dim": 16,
            "condition_dim": 8,
            "pos_embed_max_size": 8,
            "sample_size": 8,
            "rope_axes_dim": (8, 8),
        },
        {
            "hidden_states": (1, 4, 16, 16),
            "encoder_hidden_states": (1, _WORDS, 24),
            "timestep": [10],
            "original_size": [[20.0, 20.0]],
            "target_size": [[16.0, 16.0]],
            "crop_coords": [[0.0, 0.0]],
        },
    ),
    "wan": (
        "WanTransformer3DModel",
        {
            **_TWO_HEADS,
            "patch_size": (1, 2, 2),
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 24,
            "freq_dim": 32,
            "ffn_dim": 96,
            "rope_max_seq_len": 32,
        },
        {"hidden_states": (1, 4, 2, 8, 8), "timestep": [10], "encoder_hidden_states": (1, _WORDS, 24)},
    ),
    "ltx": (
        "LTXVideoTransformer3DModel",
        {**_TWO_HEADS, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 64, "caption_channels": 24},
        {
            "hidden_states": (1, 32, 8),
            "encoder_hidden_states": (1, _WORDS, 24),
            "timestep": [10],
            "encoder_attention_mask": [[True] * _WORDS],
            "num_frames": 2,
            "height": 4,
            "width": 4,
        },
    ),
    "mochi": (
        "MochiTransformer3DModel",
        {
            **_TWO_HEADS,
            "patch_size": 2,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 24,
            "time_embed_dim": 8,
            "max_sequence_length": _WORDS,
        },
        {
            "hidden_states": (1, 4, 2, 8, 8),
            "encoder_hidden_states": (1, _WORDS, 24),
            "timestep": [10],
            "encoder_attention_mask": [[True] * _WORDS],
        },
    ),
    "hunyuan_video": (
        "HunyuanVideoTransformer3DModel",
        {
            **_TWO_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 24,
            "pooled_projection_dim": 16,
            "rope_axes_dim": (4, 6, 6),
            "guidance_embeds": True,
        },
        {
            "hidden_states": (1, 4, 2, 8, 8),
            "timestep": [10],
            "encoder_hidden_states": (1, _WORDS, 24),
            "encoder_attention_mask": [[1] * _WORDS],
            "pooled_projections": (1, 16),
            "guidance": [1.0],
        },
    ),
    "qwen_image": (
        "QwenImageTransformer2DModel",
        {
            "in_channels": 16,
            "out_channels": 4,
            **_TWO_HEADS,
            "joint_attention_dim": 24,
            "axes_dims_rope": (4, 6, 6),
        },
        {
            "hidden_states": (1, 16, 16),
            "encoder_hidden_states": (1, _WORDS, 24),
            "encoder_hidden_states_mask": [[1] * _WORDS],
            "timestep": [1.0],
            "img_shapes": None,
        },
    ),
    "prx": (
        "PRXTransformer2DModel",
        {
            "in_channels": 4,
            "context_in_dim": 24,
            "hidden_size": 48,
            "mlp_ratio": 2.0,
            "num_heads": 4,
            "depth": 2,
            "axes_dim": [6, 6],
        },
        {"hidden_states": (1, 4, 16, 16), "timestep": [0.5], "encoder_hidden_states": (1, _WORDS, 24)},
    ),
    "autoencoder_kl": ("AutoencoderKL", _AUTOENCODER, {"sample": (1, 3, 32, 32)}),
    "autoencoder_kl_asymmetric": (
        "AsymmetricAutoencoderKL",
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "down_block_out_channels": (32, 64),
            "up_block_out_channels": (32, 64),
            "norm_num_groups": 8,
        },
        {"sample": (1, 3, 32, 32), "mask": (1, 1, 32, 32)},
    ),
    "autoencoder_kl_temporal": (
        "AutoencoderKLTemporalDecoder",
        {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2},
        {"sample": (2, 3, 32, 32), "num_frames": 2},
    ),
    "autoencoder_kl_cogvideox": (
        "AutoencoderKLCogVideoX",
        {
            "down_block_types": ("CogVideoXDownBlock3D",) * 3,
            "up_block_types": ("CogVideoXUpBlock3D",) * 3,
            "block_out_channels": (16, 32, 32),
            "latent_channels": 4,
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "sample_height": 16,
            "sample_width": 16,
        },
        {"sample": (1, 3, 5, 16, 16)},
    ),
    "autoencoder_kl_wan": (
        "AutoencoderKLWan",
        {"base_dim": 16, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [False, True]},
        {"sample": (1, 3, 5, 16, 16)},
    ),
    "autoencoder_kl_ltx": (
        "AutoencoderKLLTXVideo",
        {
            "latent_channels": 8,
            "block_out_channels": (16, 32, 32),
            "decoder_block_out_channels": (16, 32, 32),
            "down_block_types": ("LTXVideoDownBlock3D",) * 3,
            "layers_per_block": (1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1),
            "spatio_temporal_scaling": (True, True, False),
            "decoder_spatio_temporal_scaling": (True, True, False),
            "decoder_inject_noise": (False,) * 4,
            "downsample_type": ("conv",) * 3,
            "upsample_residual": (False,) * 3,
            "upsample_factor": (1,) * 3,
        },
        {"sample": (1, 3, 9, 32, 32)},
    ),
    "autoencoder_kl_mochi": (
        "AutoencoderKLMochi",
        {
            "encoder_block_out_channels": (32,) * 4,
            "decoder_block_out_channels": (32,) * 4,
            "latent_channels": 12,
            "layers_per_block": (1, 1, 1, 1, 1),
        },
        {"sample": (1, 3, 7, 16, 16)},
    ),
    "autoencoder_kl_hunyuan_video": (
        "AutoencoderKLHunyuanVideo",
        {
            "latent_channels": 4,
            "down_block_types": ("HunyuanVideoDownBlock3D",) * 4,
            "layers_per_block": 1,
            "up_block_types": ("HunyuanVideoUpBlock3D",) * 4,
            "block_out_channels": (16, 16, 32, 32),
            "norm_num_groups": 8,
        },
        {"sample": (1, 3, 5, 16, 16)},
    ),
    "autoencoder_kl_magvit": (
        "AutoencoderKLMagvit",
        {
            "block_out_channels": [16, 32, 32, 32],
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "latent_channels": 4,
            "spatial_group_norm": False,
        },
        {"sample": (1, 3, 5, 16, 16)},
    ),
    "autoencoder_kl_cosmos": (
        "AutoencoderKLCosmos",
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (16, 32, 32, 32),
            "num_layers": 1,
            "decode_block_out_channels": (16, 32, 32, 32),
            "attention_resolutions": (8,),
            "resolution": 64,
            "patch_size": 4,
        },
        {"sample": (1, 3, 9, 32, 32)},
    ),
    "autoencoder_dc": (
        "AutoencoderDC",
        {
            "latent_channels": 8,
            "attention_head_dim": 8,
            **{f"{p}_block_types": ("ResBlock", "EfficientViTBlock") for p in ("encoder", "decoder")},
            **{f"{p}_block_out_channels": (32, 64) for p in ("encoder", "decoder")},
            **{f"{p}_layers_per_block": (1, 1) for p in ("encoder", "decoder")},
            **{f"{p}_qkv_multiscales": ((), (5,)) for p in ("encoder", "decoder")},
        },
        {"sample": (1, 3, 32, 32)},
    ),
    "autoencoder_tiny": (
        "AutoencoderTiny",
        {
            **{f"{p}_block_out_channels": (32, 32) for p in ("encoder", "decoder")},
            "num_encoder_blocks": (1, 2),
            "num_decoder_blocks": (2, 1),
        },
        {"sample": (1, 3, 32, 32)},
    ),
    "autoencoder_oobleck": (
        "AutoencoderOobleck",
        {
            "encoder_hidden_size": 16,
            "downsampling_ratios": [2, 4],
            "channel_multiples": [1, 2],
            "decoder_channels": 16,
            "decoder_input_channels": 8,
        },
        {"sample": (1, 2, 256)},
    ),
    "autoencoder_consistency": (
        "ConsistencyDecoderVAE",
        {
            "encoder_block_out_channels": [16, 32],
            "encoder_layers_per_block": 1,
            "encoder_norm_num_groups": 8,
            "encoder_down_block_types": ["DownEncoderBlock2D"] * 2,
            "decoder_block_out_channels": [32, 64],
            "decoder_down_block_types": ["ResnetDownsampleBlock2D"] * 2,
            "decoder_layers_per_block": 1,
            "decoder_up_block_types": ["ResnetUpsampleBlock2D"] * 2,
            "latent_channels": 4,
        },
        {"sample": (1, 3, 32, 32)},
    ),
    "vq_model": ("VQModel", {**_AUTOENCODER, "num_vq_embeddings": 64}, {"sample": (1, 3, 32, 32)}),
    "vq_model_spatial": (
        "VQModel",
        {**_AUTOENCODER, "norm_type": "spatial", "vq_embed_dim": 4, "latent_channels": 4, "num_vq_embeddings": 64},
        {"sample": (1, 3, 32, 32)},
    ),
}


def names() -> list[str]:
    return list(_MODELS)


class _Placed(nn.Module):
    """A network that is told where its tokens lie, whatever the batch."""

    def __init__(self, network: nn.Module, **places: Any) -> None:
        super().__init__()
        self.network = network
        for name, place in places.items():
            self.register_buffer(name, place)
        self.places = tuple(places)

    def forward(self, **given: Any) -> Any:
        return self.network(**given, **{name: getattr(self, name) for name in self.places})


def create(name: str) -> Any:
    import diffusers

    kind, options, _ = _MODELS[name]
    if kind == "T2IAdapter":
        return diffusers.T2IAdapter(**options).adapter
    made = getattr(diffusers, kind)(**options)
    if name in ("flux", "chroma"):
        return _Placed(made, img_ids=torch.rand(16, 3), txt_ids=torch.rand(_WORDS, 3))
    return made


def inputs(name: str, model: Any) -> Any:
    given = {key: _made(value) for key, value in _MODELS[name][2].items()}
    if name == "qwen_image":
        given["img_shapes"] = [(1, 4, 4)]
    return given


def _made(value: Any) -> Any:
    """A tensor of a shape, or of numbers; dictionaries of them; what is neither as it is."""
    if isinstance(value, tuple):
        return torch.rand(value)
    if isinstance(value, list):
        return torch.tensor(value)
    return {k: _made(v) for k, v in value.items()} if isinstance(value, dict) else value
