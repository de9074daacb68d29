"""lpips: distances of images by features of three networks."""

from __future__ import annotations

from typing import Any

_NETS = ("alex", "vgg", "squeeze")


def names() -> list[str]:
    return [*_NETS, "alex-spatial", "alex-plain"]


def create(name: str) -> Any:
    import lpips

    net, _, kind = name.partition("-")
    options = {"spatial": kind == "spatial", "lpips": kind != "plain"}
    return lpips.LPIPS(pretrained=False, pnet_rand=True, net=net, pnet_tune=True, verbose=False, **options)


def inputs(name: str, model: Any) -> Any:
    import torch

    return torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
