"""doctr: classification, detection and recognition of text, by their names, as they are exported: logits, no words.

Networks that write their words step by step take long, so words are short.
"""

from __future__ import annotations

import importlib
from typing import Any

_STEPWISE = ("sar", "master", "vitstr", "parseq")


def names() -> list[str]:
    return [name for kind in ("classification", "detection", "recognition") for name in _architectures(kind)]


def _architectures(kind: str) -> list[str]:
    zoo = importlib.import_module(f"doctr.models.{kind}.zoo")
    return [name for name in zoo.ARCHS if isinstance(name, str)]


def create(name: str) -> Any:
    from doctr.models import classification, detection, recognition

    if name in _architectures("classification"):
        return getattr(classification, name)(pretrained=False)
    kind = detection if name in _architectures("detection") else recognition
    # Else the weights of the backbone are fetched.
    options = {"pretrained": False, "pretrained_backbone": False, "exportable": True}
    if name.startswith(_STEPWISE):
        options["max_length"] = 6
    return getattr(kind, name)(**options)


def inputs(name: str, model: Any) -> Any:
    import torch

    if name in _architectures("recognition"):
        return torch.rand(1, 3, 32, 128)
    if name.startswith(("vip", "vit_s", "vit_b", "magc", "resnet31")):
        return torch.rand(1, 3, *model.cfg["input_shape"][-2:])
    side = model.cfg["input_shape"][-1] if name.startswith("vit_det") else 128
    return torch.rand(1, 3, side, side)
