"""Cadene's pretrainedmodels: networks of 2014 to 2018 as they were ported; not those that it takes from torchvision."""

from __future__ import annotations

from typing import Any

_LARGE = ("inceptionv4", "inceptionresnetv2", "xception")


def names() -> list[str]:
    import pretrainedmodels

    theirs = "torchvision_models"
    return [n for n in pretrainedmodels.model_names if pretrainedmodels.__dict__[n].__module__.split(".")[-1] != theirs]


def create(name: str) -> Any:
    import pretrainedmodels

    return pretrainedmodels.__dict__[name](num_classes=1000, pretrained=None)


def inputs(name: str, model: Any) -> Any:
    import torch

    side = {"pnasnet5large": 331, "nasnetalarge": 331, "polynet": 331}.get(name)
    return torch.randn(1, 3, *2 * [side or (299 if name in _LARGE else 224)])
