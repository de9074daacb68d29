"""dynamic_network_architectures: the networks of nnU-Net, small, in 2D and in 3D, as its plans have them and not.

Primus without rotary embeddings: those fail with timm 1.0.31.
"""

from __future__ import annotations

from typing import Any

_STAGES = (16, 32, 48, 64)

# Name -> module, class, dimensions, what else it is given.
_MODELS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "PlainConvUNet-2d": ("unet", "PlainConvUNet", 2, {}),
    "PlainConvUNet-3d": ("unet", "PlainConvUNet", 3, {}),
    "PlainConvUNet-supervised": ("unet", "PlainConvUNet", 2, {"deep_supervision": True}),
    "PlainConvUNet-nonlin_first": ("unet", "PlainConvUNet", 2, {"nonlin_first": True}),
    "PlainConvUNet-batch_norm": ("unet", "PlainConvUNet", 2, {"norm_op": "BatchNorm"}),
    "PlainConvUNet-without-norm": ("unet", "PlainConvUNet", 2, {"norm_op": None}),
    "PlainConvUNet-dropout": ("unet", "PlainConvUNet", 2, {"dropout_op": "Dropout"}),
    "PlainConvUNet-anisotropic": (
        *("unet", "PlainConvUNet", 3),
        {"kernel_sizes": [(1, 3, 3), *[(3, 3, 3)] * 3], "strides": [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)]},
    ),
    "ResidualEncoderUNet-2d": ("unet", "ResidualEncoderUNet", 2, {}),
    "ResidualEncoderUNet-3d": ("unet", "ResidualEncoderUNet", 3, {}),
    "ResidualEncoderUNet-supervised": ("unet", "ResidualEncoderUNet", 3, {"deep_supervision": True}),
    "ResidualEncoderUNet-bottleneck": (
        *("unet", "ResidualEncoderUNet", 2),
        {"block": "BottleneckD", "bottleneck_channels": 8},
    ),
    "ResidualEncoderUNet-stem": ("unet", "ResidualEncoderUNet", 2, {"stem_channels": 24}),
    "ResidualUNet-2d": ("unet", "ResidualUNet", 2, {}),
    "ResidualUNet-3d": ("unet", "ResidualUNet", 3, {}),
    "ResidualUNet-supervised": ("unet", "ResidualUNet", 2, {"deep_supervision": True}),
    "PlainConvEncoder": ("building_blocks/plain_conv_encoder", "PlainConvEncoder", 2, {"return_skips": True}),
    "PlainConvEncoder-pooled": ("building_blocks/plain_conv_encoder", "PlainConvEncoder", 2, {"pool": "max"}),
    "ResidualEncoder": ("building_blocks/residual_encoders", "ResidualEncoder", 2, {"return_skips": True}),
    "ResidualEncoder-squeeze": (
        "building_blocks/residual_encoders",
        "ResidualEncoder",
        2,
        {"squeeze_excitation": True},
    ),
    "ResidualEncoder-depth": ("building_blocks/residual_encoders", "ResidualEncoder", 2, {"stochastic_depth_p": 0.2}),
    "ResNet18": ("resnet", "ResNet18_CIFAR", 2, {}),
    "ResNet50bn": ("resnet", "ResNet50bn_CIFAR", 2, {}),
    "VGG16": ("vgg", "VGG16_cifar", 2, {}),
    "Primus": ("primus", "Primus", 3, {}),
    "Primus-registers": (
        "primus",
        "Primus",
        3,
        {"num_register_tokens": 2, "scale_attn_inner": True, "init_values": 0.1},
    ),
    "PrimusV2": ("primus", "PrimusV2", 3, {}),
    "PrimusV3": ("primus", "PrimusV3", 3, {}),
}


def names() -> list[str]:
    return list(_MODELS)


def create(name: str) -> Any:
    import importlib

    module, kind, dims, options = _MODELS[name]
    folder, _, file = (module if "/" in module else f"architectures/{module}").partition("/")
    made = getattr(importlib.import_module(f"dynamic_network_architectures.{folder}.{file}"), kind)
    if module in ("resnet", "vgg"):
        return made(10, 3)
    if module == "primus":
        given = {"eva_depth": 2, "eva_numheads": 4, "input_shape": (32, 32, 32), "use_rot_pos_emb": False}
        return made(1, 96, (8, 8, 8), 3, **given, **options)
    return made(**_convolutional(kind, dims, options))


def _convolutional(kind: str, dims: int, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments as the plans of nnU-Net have them; operators by their names without the dimensions."""
    from dynamic_network_architectures.building_blocks import residual
    from torch import nn

    stages = len(_STAGES)
    given: dict[str, Any] = {
        "input_channels": 1,
        "n_stages": stages,
        "features_per_stage": _STAGES,
        "kernel_sizes": 3,
        "conv_op": getattr(nn, f"Conv{dims}d"),
        "strides": (1, *(2,) * (stages - 1)),
        "conv_bias": True,
        "norm_op": "InstanceNorm",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "n_conv_per_stage" if "Plain" in kind else "n_blocks_per_stage": 2,
        **({"num_classes": 3, "n_conv_per_stage_decoder": 2} if "UNet" in kind else {}),
        **options,
    }
    for key in ("norm_op", "dropout_op"):
        if isinstance(given.get(key), str):
            given[key] = getattr(nn, f"{given[key]}{dims}d")
    if "dropout_op" in given:
        given["dropout_op_kwargs"] = {"p": 0.1}
    if "block" in given:
        given["block"] = getattr(residual, given["block"])
    return given


def inputs(name: str, model: Any) -> Any:
    import torch

    module, _, dims, _ = _MODELS[name]
    return torch.rand(1, 3 if module in ("resnet", "vgg") else 1, *((64, 64) if dims == 2 else (32, 32, 32)))
