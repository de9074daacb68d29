"""Real networks of every family against the zeroed twin, as `tools/sweep.py` does it for whole libraries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

# The largest share of parameters that may stay when every group loses half of its channels: freezing is no pass.
# About 0.25 where all is prunable, more where the classifier is large, or where attention ties the widths.
KEPT = {
    "alexnet": 0.3,
    "convnext_tiny": 0.3,
    "deeplabv3_mobilenet_v3_large": 0.3,
    "densenet121": 0.35,
    "efficientnet_b0": 0.4,
    "efficientnet_v2_s": 0.3,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 0.5,
    "fcn_resnet50": 0.3,
    "fcos_resnet50_fpn": 0.3,
    "googlenet": 0.4,
    "inception_v3": 0.35,
    "lraspp_mobilenet_v3_large": 0.3,
    "maskrcnn_resnet50_fpn": 0.6,
    "mc3_18": 0.3,
    "mnasnet0_5": 0.45,
    "mobilenet_v2": 0.4,
    "mobilenet_v3_large": 0.4,
    "mobilenet_v3_small": 0.45,
    "quantized_mobilenet_v2": 0.4,
    "quantized_resnet18": 0.3,
    "quantized_shufflenet_v2_x0_5": 0.5,
    "r2plus1d_18": 0.3,
    "r3d_18": 0.3,
    "raft_small": 0.7,
    "regnet_x_400mf": 0.35,
    "regnet_y_400mf": 0.35,
    "resnet18": 0.3,
    "resnet50": 0.3,
    "resnext50_32x4d": 0.35,
    "retinanet_resnet50_fpn": 0.3,
    "shufflenet_v2_x1_0": 0.45,
    "squeezenet1_1": 0.45,
    "ssd300_vgg16": 0.35,
    "ssdlite320_mobilenet_v3_large": 0.4,
    "swin_t": 0.85,
    "swin_v2_t": 0.85,
    "vgg11_bn": 0.3,
    "vit_b_16": 0.7,
    "wide_resnet50_2": 0.3,
    "maxvit_t": 1.0,
}


@pytest.fixture(scope="module")
def sweep():
    spec = importlib.util.spec_from_file_location("sweep", Path(__file__).parents[1] / "tools" / "sweep.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(KEPT))
def test_half_of_every_group(sweep, name):
    row = sweep.check("torchvision", name)
    assert row["result"] == "pass", row
    assert row["kept"] <= KEPT[name], row
