"""diffusers: networks that remove noise, autoencoders and their companions, each in a small configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .autoencoders import AUTOENCODERS
from .transformers import TRANSFORMERS, WORDS
from .unets import UNETS

_MODELS = {**UNETS, **TRANSFORMERS, **AUTOENCODERS}


def names() -> list[str]:
    return list(_MODELS)


class _Placed(nn.Module):
    """A network that is told where its tokens lie, whatever the batch."""

    def __init__(self, network: nn.Module, **places: Any) -> None:
        super().__init__()
        self.network = network
        for name, place in places.items():
            self.register_buffer(name, place)
        self.places = tuple(places)

    def forward(self, **given: Any) -> Any:
        return self.network(**given, **{name: getattr(self, name) for name in self.places})


def create(name: str) -> Any:
    import diffusers

    kind, options, _ = _MODELS[name]
    if kind == "T2IAdapter":
        return diffusers.T2IAdapter(**options).adapter
    made = getattr(diffusers, kind)(**options)
    if name in ("flux", "chroma"):
        return _Placed(made, img_ids=torch.rand(16, 3), txt_ids=torch.rand(WORDS, 3))
    return made


def inputs(name: str, model: Any) -> Any:
    given = {key: _made(value) for key, value in _MODELS[name][2].items()}
    if name == "qwen_image":
        given["img_shapes"] = [(1, 4, 4)]
    return given


def _made(value: Any) -> Any:
    """A tensor of a shape, or of numbers; dictionaries of them; what is neither as it is."""
    if isinstance(value, tuple):
        return torch.rand(value)
    if isinstance(value, list):
        return torch.tensor(value)
    return {k: _made(v) for k, v in value.items()} if isinstance(value, dict) else value
