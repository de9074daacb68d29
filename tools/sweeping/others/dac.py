"""dac (descript-audio-codec): the codec and its discriminators, with few filters."""

from __future__ import annotations

from typing import Any


def names() -> list[str]:
    return ["DAC", "Encoder", "Decoder", "MPD", "MSD", "MRD"]


def create(name: str) -> Any:
    from dac.model import dac, discriminator

    if name == "DAC":
        return dac.DAC(*(8, [2, 4], 32, 64, [4, 2]), n_codebooks=3, codebook_size=16, codebook_dim=4, sample_rate=16000)
    if name == "Encoder":
        return dac.Encoder(8, [2, 4], 32)
    if name == "Decoder":
        return dac.Decoder(32, 64, [4, 2])
    kind = getattr(discriminator, name)
    return kind(2) if name == "MPD" else kind(1, 16000) if name == "MSD" else kind(256, sample_rate=16000)


def inputs(name: str, model: Any) -> Any:
    import torch

    return torch.randn(1, 32, 20) if name == "Decoder" else torch.randn(1, 1, 2048)
