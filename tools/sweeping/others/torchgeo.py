"""torchgeo: networks that read images of the earth, without weights and with few layers."""

from __future__ import annotations

import importlib
from typing import Any

_FEW = {"embed_dim": 64, "depth": 2, "num_heads": 4, "img_size": 64}

# Name -> class, what it is given, shapes of its inputs.
_MODELS: dict[str, tuple[str, dict[str, Any], tuple[tuple[int, ...], ...]]] = {
    "FarSeg": ("FarSeg", {"backbone": "resnet18", "classes": 4, "backbone_pretrained": False}, ((1, 3, 64, 64),)),
    "FCN": ("FCN", {"in_channels": 4, "classes": 3, "num_filters": 32}, ((1, 4, 32, 32),)),
    "FCSiamConc": ("FCSiamConc", {"encoder_name": "resnet18", "encoder_weights": None}, ((1, 2, 3, 64, 64),)),
    "FCSiamDiff": ("FCSiamDiff", {"encoder_name": "resnet18", "encoder_weights": None}, ((1, 2, 3, 64, 64),)),
    "ChangeStarFarSeg": (
        *("ChangeStarFarSeg", {"backbone": "resnet18", "backbone_pretrained": False}),
        ((1, 2, 3, 64, 64),),
    ),
    "BTC": ("BTC", {"backbone": "swin_tiny"}, ((1, 6, 64, 64),)),
    "ChangeViT": ("ChangeViT", {"backbone": "vit_tiny_patch16_224", "img_size": 64}, ((1, 2, 3, 64, 64),)),
    "ConvLSTM": (
        *("ConvLSTM", {"input_dim": 3, "hidden_dim": [16, 24], "kernel_size": 3, "num_layers": 2}),
        ((1, 4, 3, 16, 16),),
    ),
    "LTAE": ("LTAE", {"in_channels": 32, "n_head": 4, "d_k": 8, "n_neurons": (64, 32), "d_model": 64}, ((2, 24, 32),)),
    "CROMA": (
        *("CROMA", {"encoder_dim": 64, "encoder_depth": 2, "num_heads": 16, "image_size": 32}),
        ((1, 2, 32, 32), (1, 12, 32, 32)),
    ),
    "DOFA": ("DOFA", {**_FEW, "num_classes": 5}, ((1, 3, 64, 64),)),
    "CopernicusFM": ("CopernicusFM", {**_FEW, "num_classes": 5}, ((1, 3, 64, 64),)),
    "ScaleMAE": ("ScaleMAE", {**_FEW, "num_classes": 5}, ((1, 3, 64, 64),)),
    "EarthLoc": ("EarthLoc", {"pretrained": False, "desc_dim": 256}, ((1, 3, 320, 320),)),
    "Panopticon": ("Panopticon", {"attn_dim": 96, "embed_dim": 768, "img_size": 56}, ((1, 3, 56, 56),)),
    "RCF": ("RCF", {"features": 16}, ((1, 4, 32, 32),)),
    "resnet18-fuse": ("resnet18", {"in_chans": 13}, ((1, 13, 64, 64),)),
    "MixVPR": (
        *("MixVPR", {"in_channels": 64, "in_h": 10, "in_w": 10, "out_channels": 32, "mix_depth": 2}),
        ((1, 64, 10, 10),),
    ),
}


def names() -> list[str]:
    return list(_MODELS)


def create(name: str) -> Any:
    from torchgeo import models

    kind, options, _ = _MODELS[name]
    room = models if hasattr(models, kind) else importlib.import_module("torchgeo.models.earthloc")
    return getattr(room, kind)(**options)


def inputs(name: str, model: Any) -> Any:
    import torch

    images = tuple(torch.rand(shape) for shape in _MODELS[name][2])
    if name == "DOFA":
        return (*images, [0.49, 0.56, 0.66])
    if name == "CopernicusFM":
        return images[0], {"metadata": torch.rand(1, 4), "wavelengths": [490, 560, 665], "bandwidths": [60, 30, 30]}
    if name == "Panopticon":
        return ({"imgs": images[0], "chn_ids": torch.tensor([[490.0, 560.0, 665.0]])},)
    return images
