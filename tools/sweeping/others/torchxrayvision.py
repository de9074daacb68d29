"""torchxrayvision: the networks of its models that can be made without their weights."""

from __future__ import annotations

from typing import Any

_NAMES = ("DenseNet", "DenseNet-sigmoid", "ResNetAE50", "ResNetAE101", "BackboneUNet", "VQModel")
_SIDES = {"ResNetAE50": 224, "ResNetAE101": 224, "VQModel": 64}


def names() -> list[str]:
    return list(_NAMES)


def create(name: str) -> Any:
    from torchxrayvision import autoencoders, models
    from torchxrayvision.baseline_models.chestx_anatomy import BackboneUNet
    from torchxrayvision.baseline_models.ieee8023.vqgan import VQModel

    if name.startswith("DenseNet"):
        return models.DenseNet(weights=None, apply_sigmoid=name.endswith("sigmoid"))
    if name.startswith("ResNetAE"):
        return getattr(autoencoders, name)()
    if name == "BackboneUNet":
        return BackboneUNet()
    config = {"double_z": False, "z_channels": 32, "resolution": 64, "in_channels": 1, "out_ch": 1, "ch": 32}
    return VQModel(
        {**config, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (32,), "dropout": 0.0}, 64, 32
    )


def inputs(name: str, model: Any) -> Any:
    import torch

    if name == "BackboneUNet":
        return ({"data": torch.rand(1, 3, 128, 128)},)
    side = _SIDES.get(name, 128)
    return torch.rand(1, 1, side, side)
