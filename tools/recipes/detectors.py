"""Detectors: those of torchvision, and SSD512 with a ResNet-50 that is cut after its third stage."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torchvision
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import Conv2dNormActivation

SSD512 = "ssd512_resnet50"

WIDTHS = (1024, 512, 512, 256, 256, 256, 256)
"""Of the feature maps, at 1/8 to 1/512 of the image."""
ASPECTS = [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]]
SCALES = [0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05]


def make(name: str, classes: int, side: int, backbone: str | None) -> nn.Module:
    """A detector that takes images as they are scaled.

    Args:
        name: `SSD512`, or a detector of torchvision.
        classes: with the background.
        side: pixels that images come with.
        backbone: the name of torchvision's weights of the backbone ("DEFAULT"); None: random ones.
    """
    if name == SSD512:
        return _ssd512(classes, side, backbone)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=backbone, num_classes=classes)
    # The detector's own scaling leaves scaled images as they are.
    model.transform.min_size, model.transform.max_size = (side,), side
    if model.transform.fixed_size is not None:
        model.transform.fixed_size = (side, side)
    return model


class CutResNet(nn.Module):
    """A ResNet up to its third stage, at stride 8, and narrower maps behind it, each of half the side."""

    def __init__(self, resnet: torchvision.models.ResNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.stages = nn.Sequential(resnet.layer1, resnet.layer2, resnet.layer3)
        # Small things are found on the first map: its stage does not halve the side, as in the detectors that the
        # pruning papers take their SSD from.
        first = resnet.layer3[0]
        first.conv2.stride = first.downsample[0].stride = (1, 1)
        self.extra = nn.ModuleList(
            nn.Sequential(
                Conv2dNormActivation(inner, outer // 2, kernel_size=1),
                Conv2dNormActivation(outer // 2, outer, kernel_size=3, stride=2),
            )
            for inner, outer in pairwise(WIDTHS)
        )
        self.out_channels = list(WIDTHS)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = [self.stages(self.stem(x))]
        for block in self.extra:
            maps.append(block(maps[-1]))
        return OrderedDict((str(number), found) for number, found in enumerate(maps))


def _ssd512(classes: int, side: int, backbone: str | None) -> SSD:
    """Found boxes as published: scores above 0.01, overlaps up to 0.45, 200 boxes; three negatives to a positive."""
    network = CutResNet(torchvision.models.resnet50(weights=backbone))
    return SSD(
        network, DefaultBoxGenerator(ASPECTS, scales=SCALES), (side, side), classes, score_thresh=0.01, nms_thresh=0.45,
        detections_per_img=200, positive_fraction=0.25,
    )  # fmt: skip
