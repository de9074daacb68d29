"""panns_inference: its networks for spectra of sounds. Its import asks for a table of labels in the home directory."""

from __future__ import annotations

from typing import Any


def names() -> list[str]:
    return ["Cnn14", "Cnn14_DecisionLevelMax"]


def create(name: str) -> Any:
    from panns_inference import models

    return getattr(models, name)(8000, 256, 80, 64, 50, 4000, 20)


def inputs(name: str, model: Any) -> Any:
    import torch

    return torch.randn(1, 16000)
