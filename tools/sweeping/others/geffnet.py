"""geffnet: EfficientNets and what came before them, with its own activations and mixtures of kernels."""

from __future__ import annotations

from typing import Any

_NAMES = """
mnasnet_050 mnasnet_b1 semnasnet_050 mnasnet_small mobilenetv2_100 mobilenetv2_110d fbnetc_100 spnasnet_100
efficientnet_b0 efficientnet_b1 efficientnet_es efficientnet_cc_b0_4e efficientnet_cc_b0_8e efficientnet_lite0
tf_efficientnet_b0 tf_efficientnet_es tf_efficientnet_cc_b0_4e tf_efficientnet_lite0 mixnet_s mixnet_m tf_mixnet_s
mobilenetv3_rw mobilenetv3_large_075 mobilenetv3_large_minimal_100 mobilenetv3_small_075 tf_mobilenetv3_small_075
tf_mobilenetv3_small_minimal_100
"""


def names() -> list[str]:
    return _NAMES.split()


def create(name: str) -> Any:
    import geffnet

    return geffnet.create_model(name, pretrained=False)


def inputs(name: str, model: Any) -> Any:
    import torch

    return torch.rand(1, 3, 128, 128)
