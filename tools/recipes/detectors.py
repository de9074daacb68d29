"""Detectors: those of torchvision, SSD512 with a ResNet-50 that is cut after its third stage, and a small FCOS that
learns from random weights in minutes of one core."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torchvision
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation

from .faults import DataError

SSD512, SMALL = "ssd512_resnet50", "fcos_small"

WIDTHS = (1024, 512, 512, 256, 256, 256, 256)
"""Of the feature maps, at 1/8 to 1/512 of the image."""
ASPECTS = [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]]
SCALES = [0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05]

CANDIDATES = 100
"""Boxes of an image that go into the suppression, of `SMALL`. Where 1,000 may, as is usual, a network that is less sure
sends twice as many, and boxes take as long as the layers: what is timed is then not what widths do."""


def make(name: str, classes: int, side: int, backbone: str | None, wider: int = 1) -> nn.Module:
    """A detector that takes images as they are scaled.

    Args:
        name: `SSD512`, `SMALL`, or a detector of torchvision.
        classes: with the background.
        side: pixels that images come with.
        backbone: the name of torchvision's weights of the backbone ("DEFAULT"); None: random ones.
        wider: how many times as wide `SMALL` is as it is by default; 1 for others.

    Raises:
        DataError: weights of a backbone for `SMALL`, of which there are none; another network made wider, or a number
            below 1.
    """
    if wider < 1 or (wider != 1 and name != SMALL):
        raise DataError(f"--wider {wider} must be 1 or more, and is for --network {SMALL} alone, not for {name}")
    if name == SSD512:
        return _ssd512(classes, side, backbone)
    if name == SMALL:
        if backbone is not None:
            raise DataError(f"--network {SMALL} has no backbone of torchvision: --backbone {backbone} is not for it")
        return _small(classes, side, wider)
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


class SmallResNet(nn.Module):
    """Four residual blocks, and one map at 1/8 of the image to which the coarser two are added.

    One map is enough where things take up to half of the image: farther ones would have next to nothing to find.
    """

    def __init__(self, widths: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        self.stem = Conv2dNormActivation(3, 16, stride=2)
        self.stages = nn.ModuleList(
            BasicBlock(
                inner, outer, stride=2,
                downsample=Conv2dNormActivation(inner, outer, kernel_size=1, stride=2, activation_layer=None),
            )
            for inner, outer in pairwise((16, *widths))
        )  # fmt: skip
        self.lateral = nn.ModuleList(
            Conv2dNormActivation(width, out_channels, kernel_size=1, activation_layer=None) for width in widths[1:]
        )
        self.joined = Conv2dNormActivation(out_channels, out_channels, activation_layer=None)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        x = self.stages[0](self.stem(x))
        maps = []
        for stage, lateral in zip(self.stages[1:], self.lateral, strict=True):
            x = stage(x)
            maps.append(lateral(x))
        found = maps.pop()
        for finer in reversed(maps):
            found = finer + nn.functional.interpolate(found, size=finer.shape[-2:])
        return OrderedDict({"0": self.joined(found)})


def _small(classes: int, side: int, wider: int) -> FCOS:
    """Without anchors; heads with group norms, as torchvision's."""
    network = SmallResNet(tuple(wider * width for width in (24, 48, 96, 128)), 64 * wider)
    head = FCOSHead(network.out_channels, 1, classes, num_convs=2)
    for part in (head.classification_head, head.regression_head):
        for layer in part.conv:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    # Boxes begin at four cells a side: at none, half of the places would have no gradient behind their ReLU.
    nn.init.constant_(head.regression_head.bbox_reg.bias, 2.0)
    return FCOS(
        network, classes, min_size=side, max_size=side, anchor_generator=AnchorGenerator(((8,),), ((1.0,),)), head=head,
        score_thresh=0.05, nms_thresh=0.5, topk_candidates=CANDIDATES,
    )  # fmt: skip
