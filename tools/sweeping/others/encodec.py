"""encodec: codecs of sound, with few filters, their parts, and the discriminators that train them."""

from __future__ import annotations

from typing import Any

_NET = {"dimension": 32, "n_filters": 8, "ratios": [4, 2]}

_NAMES = ("EncodecModel", "EncodecModel-group-norm", "SEANetEncoder", "SEANetEncoder-causal", "SEANetDecoder")
_OTHERS = ("LMModel", "StreamingTransformerEncoder", "DiscriminatorSTFT", "MultiScaleSTFTDiscriminator")


def names() -> list[str]:
    return [*_NAMES, *_OTHERS]


def create(name: str) -> Any:
    import encodec
    from encodec import model, modules, msstftd, quantization

    if name.startswith("EncodecModel"):
        options = {**_NET, "norm": "time_group_norm" if "group" in name else "weight_norm"}
        coder, decoder = modules.SEANetEncoder(**options), modules.SEANetDecoder(**options)
        quantizer = quantization.ResidualVectorQuantizer(dimension=32, n_q=4, bins=16, kmeans_init=False)
        return encodec.EncodecModel(coder, decoder, quantizer, [6.0], 24000, 1)
    if name.startswith("SEANetEncoder"):
        causal = {"causal": True, "lstm": 0, "true_skip": True, "norm": "none"} if "causal" in name else {}
        return modules.SEANetEncoder(**_NET, **causal)
    if name == "SEANetDecoder":
        return modules.SEANetDecoder(**_NET)
    if name == "LMModel":
        return model.LMModel(n_q=4, card=16, dim=32, num_heads=4, num_layers=2)
    if name == "StreamingTransformerEncoder":
        return modules.StreamingTransformerEncoder(32, num_heads=4, num_layers=2)
    if name == "DiscriminatorSTFT":
        return msstftd.DiscriminatorSTFT(8, n_fft=256, hop_length=64, win_length=256)
    return msstftd.MultiScaleSTFTDiscriminator(8, n_ffts=[128, 256], hop_lengths=[32, 64], win_lengths=[128, 256])


def inputs(name: str, model: Any) -> Any:
    import torch

    if name == "LMModel":
        return torch.randint(0, 16, (1, 4, 12))
    if name == "StreamingTransformerEncoder":
        return torch.randn(1, 12, 32)
    return torch.randn(1, 32, 20) if name == "SEANetDecoder" else torch.randn(1, 1, 2048)
