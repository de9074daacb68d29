"""x_transformers: classifiers of images, each with options of its own."""

from __future__ import annotations

from typing import Any

SIDE = 64

# Name -> options of the layers.
_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flash": {"attn_flash": True},
    "glu": {"ff_glu": True, "ff_swish": True, "ff_no_bias": True},
    "glu_gated": {"ff_glu": True, "ff_glu_mult_bias": True, "ff_post_act_ln": True, "ff_relu_squared": True},
    "rmsnorm": {"use_rmsnorm": True},
    "simple_rmsnorm": {"use_simple_rmsnorm": True},
    "scalenorm": {"use_scalenorm": True},
    "dynamic_tanh": {"use_dynamic_tanh": True},
    "derf": {"use_derf": True},
    "sandwich_norm": {"sandwich_norm": True},
    "pre_and_post_norm": {"pre_and_post_norm": True},
    "post_norm": {"pre_norm": False, "residual_attn": True},
    "macaron": {"macaron": True},
    "rotary": {"rotary_pos_emb": True},
    "rotary_part": {"rotary_pos_emb": True, "rotary_emb_dim": 8},
    "polar": {"polar_pos_emb": True},
    "alibi": {"alibi_pos_bias": True, "alibi_num_heads": 2},
    "rel_pos_bias": {"rel_pos_bias": True},
    "dynamic_pos_bias": {"dynamic_pos_bias": True},
    "gate_residual": {"gate_residual": True},
    "scale_residual": {"scale_residual": True, "use_layerscale": True, "layerscale_init_value": 0.1},
    "orthog_residual": {"orthog_residual": True},
    "shift_tokens": {"shift_tokens": 1},
    "unet_skips": {"unet_skips": True},
    "integrate_layers": {"integrate_layers": True},
    "residual_streams": {"num_residual_streams": 2},
    "value_residual": {"add_value_residual": True},
    "softclamp": {"softclamp_output": True, "attn_softclamp_logits": True},
    "weight_tied": {"weight_tie_layers": True},
    "talking_heads": {"attn_pre_talking_heads": True, "attn_post_talking_heads": True},
    "head_scale": {"attn_head_scale": True},
    "sparse_topk": {"attn_sparse_topk": 8},
    "memory": {"attn_num_mem_kv": 4},
    "gate_values": {"attn_gate_values": True},
    "gate_value_heads": {"attn_gate_value_heads": True},
    "swiglu_values": {"attn_swiglu_values": True},
    "output_gate": {"attn_output_gate": True},
    "on_attn": {"attn_on_attn": True},
    "qk_norm": {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
    "qk_norm_groups": {"attn_qk_norm": True, "attn_qk_norm_groups": 4},
    "qk_rmsnorm": {"attn_qk_rmsnorm": True, "attn_value_rmsnorm": True},
    "l2_distance": {"attn_l2_distance": True},
    "sigmoid": {"attn_sigmoid": True},
    "cog_signed": {"attn_cog_signed": True},
    "one_kv_head": {"attn_one_kv_head": True},
    "kv_heads": {"attn_kv_heads": 2},
    "value_dim_head": {"attn_value_dim_head": 32},
    "zero_kv": {"attn_add_zero_kv": True},
    "learned_sink": {"attn_head_learned_sink": True},
    "latent": {
        "attn_use_latent_q": True,
        "attn_dim_latent_q": 32,
        "attn_use_latent_kv": True,
        "attn_dim_latent_kv": 32,
    },
    "orthog_values": {"attn_orthog_projected_values": True},
    "laser": {"attn_laser": True},
    "inverted": {"attn_inverted_attention": True},
    "rel_proj_pos_bias": {"attn_use_rel_proj_pos_bias": True, "attn_rel_proj_max_dist": 32},
}


def names() -> list[str]:
    return list(_OPTIONS)


def create(name: str) -> Any:
    from x_transformers import Encoder, ViTransformerWrapper

    layers = Encoder(dim=64, depth=2, heads=4, attn_dim_head=16, verbose=False, **_OPTIONS[name])
    registers = 2 if name == "plain" else 0
    return ViTransformerWrapper(
        image_size=SIDE, patch_size=16, num_classes=10, attn_layers=layers, num_register_tokens=registers
    )


def inputs(name: str, model: Any) -> Any:
    import torch

    return torch.rand(1, 3, SIDE, SIDE)
