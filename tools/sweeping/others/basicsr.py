"""basicsr: networks that enlarge and repair images and videos, generators, discriminators.

It asks torchvision for a module that went in 0.17; its networks do not need it. Those that ask for operators that are
to be compiled are left out (StyleGAN2, deformable convolutions).
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torchvision.transforms.functional

sys.modules.setdefault("torchvision.transforms.functional_tensor", torchvision.transforms.functional)

# Name -> module, class, arguments, shape of the input.
_MODELS: dict[str, tuple[str, str, dict[str, Any], tuple[int, ...]]] = {
    "BasicVSR": ("basicvsr", "BasicVSR", {"num_feat": 16, "num_block": 2}, (1, 3, 3, 64, 64)),
    "DUF": ("duf", "DUF", {"num_layer": 16}, (1, 7, 3, 16, 16)),
    "DUF-52": ("duf", "DUF", {"num_layer": 52, "scale": 2}, (1, 7, 3, 16, 16)),
    "ECBSR": (
        "ecbsr",
        "ECBSR",
        {
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_block": 4,
            "num_channel": 16,
            "with_idt": True,
            "act_type": "prelu",
            "scale": 4,
        },
        (1, 3, 32, 32),
    ),
    "EDSR": ("edsr", "EDSR", {"num_in_ch": 3, "num_out_ch": 3, "num_block": 4}, (1, 3, 32, 32)),
    "HiFaceGAN": ("hifacegan", "HiFaceGAN", {"num_feat": 16, "is_train": False, "crop_size": 128}, (1, 3, 128, 128)),
    "HiFaceGANDiscriminator": (
        "hifacegan",
        "HiFaceGANDiscriminator",
        {"num_feat": 16, "keep_features": False},
        (1, 6, 64, 64),
    ),
    "MSRResNet": ("srresnet", "MSRResNet", {"num_block": 4}, (1, 3, 32, 32)),
    "RCAN": (
        "rcan",
        "RCAN",
        {"num_in_ch": 3, "num_out_ch": 3, "num_group": 2, "num_block": 2},
        (1, 3, 32, 32),
    ),
    "RIDNet": ("ridnet", "RIDNet", {"in_channels": 3, "mid_channels": 32, "out_channels": 3}, (1, 3, 32, 32)),
    "RRDBNet": ("rrdbnet", "RRDBNet", {"num_in_ch": 3, "num_out_ch": 3, "num_block": 2}, (1, 3, 32, 32)),
    "SRVGGNetCompact": ("srvgg", "SRVGGNetCompact", {"num_conv": 4}, (1, 3, 32, 32)),
    "SpyNet": ("spynet", "SpyNet", {}, (1, 3, 64, 64)),
    "SwinIR": (
        "swinir",
        "SwinIR",
        {"img_size": 32, "embed_dim": 32, "depths": (2, 2), "num_heads": (4, 4), "window_size": 8, "upscale": 2},
        (1, 3, 32, 32),
    ),
    "TOFlow": ("tof", "TOFlow", {}, (1, 7, 3, 32, 32)),
    "UNetDiscriminatorSN": ("discriminator", "UNetDiscriminatorSN", {"num_in_ch": 3, "num_feat": 16}, (1, 3, 64, 64)),
    "VGGStyleDiscriminator": (
        "discriminator",
        "VGGStyleDiscriminator",
        {"num_in_ch": 3, "num_feat": 16},
        (1, 3, 128, 128),
    ),
}


def names() -> list[str]:
    return list(_MODELS)


def create(name: str) -> Any:
    module, kind, options, _ = _MODELS[name]
    return getattr(importlib.import_module(f"basicsr.archs.{module}_arch"), kind)(**options)


def inputs(name: str, model: Any) -> Any:
    import torch

    shape = _MODELS[name][-1]
    if name == "SpyNet":
        return torch.rand(*shape), torch.rand(*shape)
    return torch.rand(*shape)
