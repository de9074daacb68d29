"""demucs: its three networks for waveforms and spectrograms, with few channels."""

from __future__ import annotations

import importlib
from typing import Any

_SOURCES = ["drums", "bass"]

# Name -> module, class, what it is given.
_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Demucs": ("demucs", "Demucs", {"channels": 16, "depth": 4, "resample": False}),
    "Demucs-lstm": ("demucs", "Demucs", {"channels": 8, "depth": 4, "lstm_layers": 2, "dconv_mode": 0}),
    "Demucs-v2": (
        *("demucs", "Demucs"),
        {"channels": 16, "depth": 3, "dconv_mode": 0, "norm_starts": 9, "lstm_layers": 1, "gelu": False},
    ),
    "HDemucs": ("hdemucs", "HDemucs", {"channels": 16, "nfft": 1024}),
    "HDemucs-old": ("hdemucs", "HDemucs", {"channels": 16, "hybrid": False, "cac": True, "nfft": 1024, "depth": 4}),
    "HTDemucs": ("htdemucs", "HTDemucs", {"channels": 16, "nfft": 1024, "t_layers": 2, "t_heads": 4, "segment": 1}),
    "HTDemucs-bottom": (
        *("htdemucs", "HTDemucs"),
        {"channels": 16, "nfft": 1024, "t_layers": 2, "t_heads": 4, "segment": 1, "bottom_channels": 64},
    ),
    "WDemucs": ("wdemucs", "WDemucs", {"channels": 16, "nfft": 1024}),
}


def names() -> list[str]:
    return list(_MODELS)


def create(name: str) -> Any:
    module, kind, options = _MODELS[name]
    return getattr(importlib.import_module(f"demucs.{module}"), kind)(_SOURCES, **options)


def inputs(name: str, model: Any) -> Any:
    import torch

    return torch.randn(1, 2, 44100 if name.startswith("HT") else 16384)
