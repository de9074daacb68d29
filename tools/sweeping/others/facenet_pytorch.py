"""facenet_pytorch: the network of faces, and the three that find them."""

from __future__ import annotations

from typing import Any

_SIDES = {"InceptionResnetV1": 160, "InceptionResnetV1_classify": 160, "PNet": 48, "RNet": 24, "ONet": 48}


def names() -> list[str]:
    return list(_SIDES)


def create(name: str) -> Any:
    from facenet_pytorch import InceptionResnetV1
    from facenet_pytorch.models import mtcnn

    if name.startswith("Inception"):
        return InceptionResnetV1(classify=name.endswith("classify"), num_classes=100)
    return getattr(mtcnn, name)(pretrained=False)


def inputs(name: str, model: Any) -> Any:
    import torch

    return torch.randn(1, 3, *2 * [_SIDES[name]])
