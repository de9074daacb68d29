"""asteroid: networks that separate sounds, with few repeats.

DCCRNet and XUMX cannot be made with the versions of numpy and torch that are swept.
"""

from __future__ import annotations

from typing import Any

_FREE = {"n_src": 2, "n_filters": 64}
_DUAL = {**_FREE, "n_repeats": 2, "chunk_size": 20}
_STFT = {"stft_n_filters": 256, "stft_kernel_size": 256, "stft_stride": 64}

# Name -> class, what it is given.
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ConvTasNet": ("ConvTasNet", {**_FREE, "n_blocks": 3, "n_repeats": 2, "hid_chan": 128}),
    "ConvTasNet-causal": (
        *("ConvTasNet", {**_FREE, "n_blocks": 3, "n_repeats": 2, "hid_chan": 128, "causal": True, "norm_type": "cLN"}),
    ),
    "ConvTasNet-analytic": (
        *("ConvTasNet", {**_FREE, "n_blocks": 2, "n_repeats": 2, "fb_name": "analytic_free", "skip_chan": 0}),
    ),
    "ConvTasNet-stft": ("ConvTasNet", {**_FREE, "n_blocks": 2, "n_repeats": 2, "fb_name": "stft", "kernel_size": 64}),
    "ConvTasNet-sinc": (
        *("ConvTasNet", {**_FREE, "n_blocks": 2, "n_repeats": 2, "fb_name": "param_sinc", "kernel_size": 17}),
    ),
    "DPRNNTasNet": ("DPRNNTasNet", _DUAL),
    "DPRNNTasNet-mulcat": ("DPRNNTasNet", {**_DUAL, "use_mulcat": True}),
    "DPRNNTasNet-gru": ("DPRNNTasNet", {**_DUAL, "rnn_type": "GRU", "bidirectional": False}),
    "DPTNet": ("DPTNet", _DUAL),
    "LSTMTasNet": ("LSTMTasNet", {**_FREE, "n_layers": 2, "hid_size": 64}),
    "SuDORMRFNet": ("SuDORMRFNet", {**_FREE, "num_blocks": 2}),
    "SuDORMRFImprovedNet": ("SuDORMRFImprovedNet", {**_FREE, "num_blocks": 2}),
    "DCUNet": ("DCUNet", {"architecture": "mini", **_STFT, "fix_length_mode": "pad"}),
    "DCUNet-10": ("DCUNet", {"architecture": "DCUNet-10", "fix_length_mode": "pad", **_STFT}),
    "DeMask": ("DeMask", {"hidden_dims": (128, 96), "n_filters": 128, "kernel_size": 128, "stride": 64}),
    "DeMask-reim": (
        *("DeMask", {"input_type": "cat", "output_type": "reim", "n_filters": 128, "kernel_size": 128, "stride": 64}),
    ),
    "FasNetTAC": ("FasNetTAC", {"n_src": 2, "n_layers": 2, "hidden_dim": 48, "tac_hidden_dim": 96}),
}


def names() -> list[str]:
    return list(_MODELS)


def create(name: str) -> Any:
    from asteroid import models

    kind, options = _MODELS[name]
    return getattr(models, kind)(**options)


def inputs(name: str, model: Any) -> Any:
    import torch

    if name == "FasNetTAC":
        return torch.randn(1, 2, 4000), torch.tensor([2])
    return torch.randn(1, 1, 4096)
