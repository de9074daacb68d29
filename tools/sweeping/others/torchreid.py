"""torchreid: who is seen again in another image; in eval mode features. It imports gdown and tensorboard."""

from __future__ import annotations

from typing import Any

_NAMES = """
resnet18 resnet50_fc512 resnet50mid resnext50_32x4d se_resnet50 se_resnet50_fc512 se_resnext50_32x4d densenet121
densenet121_fc512 inceptionresnetv2 inceptionv4 xception resnet50_ibn_a resnet50_ibn_b nasnsetmobile mobilenetv2_x1_0
shufflenet squeezenet1_0 squeezenet1_0_fc512 squeezenet1_1 shufflenet_v2_x0_5 mudeep hacnn pcb_p6 pcb_p4 mlfn
osnet_x0_25
osnet_x1_0 osnet_ibn_x1_0 osnet_ain_x0_25
"""


def names() -> list[str]:
    return _NAMES.split()


def create(name: str) -> Any:
    from torchreid import models

    return models.build_model(name, 10, loss="softmax", pretrained=False, use_gpu=False)


def inputs(name: str, model: Any) -> Any:
    import torch

    if name == "hacnn":
        return torch.rand(1, 3, 160, 64)
    if name.startswith(("mudeep", "inception", "xception", "nasn")):
        return torch.rand(1, 3, 256, 128)
    return torch.rand(1, 3, 128, 64)
