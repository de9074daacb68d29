"""Autoencoders."""

from __future__ import annotations

from typing import Any

_AUTOENCODER = {
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "block_out_channels": (32, 64),
    "norm_num_groups": 8,
}

# Name -> class, what it is given, what its forward is given: shapes of floats, or values.
AUTOENCODERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
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
