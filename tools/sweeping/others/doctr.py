"""doctr: detection, recognition and classification of text, by their names.

Recognisers return logits in eval mode. Networks that draw or read their own words step by step take long, so words are
short.
"""

from __future__ import annotations

import importlib
from typing import Any

_WORDS = ("crnn", "sar", "master", "vitstr", "parseq", "viptr")


def names() -> list[str]:
    return [name for kind in ("classification", "detection", "recognition") for name in _architectures(kind)]


def _architectures(kind: str) -> list[str]:
    zoo = importlib.import_module(f"doctr.models.{kind}.zoo")
    return [name for name in zoo.ARCHS if isinstance(name, str)]


def create(name: str) -> Any:
    from doctr.models import classification, detection, recognition

    for kind, options in ((classification, {}), (detection, {}), (recognition, {"max_length": 6})):
        make = getattr(kind, name, None)
        if callable(make):
            takes_length = name.startswith(("sar", "master", "vitstr", "parseq"))
            return make(pretrained=False, **(options if takes_length else {}))
    raise ValueError(name)


def inputs(name: str, model: Any) -> Any:
    import torch

    if name.startswith(_WORDS):
        return {"x": torch.rand(1, 3, 32, 128), "return_model_output": True}
    if name.startswith(("vip", "vit_s", "vit_b", "magc", "resnet31")):
        return torch.rand(1, 3, *model.cfg["input_shape"][-2:])
    side = model.cfg["input_shape"][-1] if name.startswith("vit_det") else 128
    return torch.rand(1, 3, side, side)
