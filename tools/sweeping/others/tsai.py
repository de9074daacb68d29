"""tsai: networks that read time series, with few layers; what is trained without gradients (Rocket) has no widths."""

from __future__ import annotations

import importlib
from typing import Any

_SHORT = {"c_in": 3, "c_out": 5}
_LONG = {**_SHORT, "seq_len": 64}
_TOKENS = {**_LONG, "d_model": 32, "n_heads": 4}
_TABLE = {"classes": {"a": list("abc"), "b": list("de")}, "cont_names": ["x", "y", "z"], "c_out": 5}

# Name -> module, class, what it is given.
_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "FCN": ("FCN", "FCN", _SHORT),
    "FCNPlus": ("FCNPlus", "FCNPlus", {**_SHORT, "residual": True}),
    "FCNPlus-separable": ("FCNPlus", "FCNPlus", {**_SHORT, "separable": True, "coord": True}),
    "ResNet": ("ResNet", "ResNet", _SHORT),
    "ResNetPlus": ("ResNetPlus", "ResNetPlus", {**_SHORT, "se": 16}),
    "ResNetPlus-sa": ("ResNetPlus", "ResNetPlus", {**_SHORT, "sa": True}),
    "ResCNN": ("ResCNN", "ResCNN", {**_SHORT, "coord": True, "separable": True}),
    "InceptionTime": ("InceptionTime", "InceptionTime", _SHORT),
    "InceptionTimePlus": ("InceptionTimePlus", "InceptionTimePlus", {**_LONG, "se": 16, "concat_pool": True}),
    "InceptionTimePlus-sa": ("InceptionTimePlus", "InceptionTimePlus", {**_LONG, "sa": True}),
    "InCoordTime": ("InceptionTimePlus", "InCoordTime", _LONG),
    "XCoordTime": ("InceptionTimePlus", "XCoordTime", _LONG),
    "MultiInceptionTimePlus": ("InceptionTimePlus", "MultiInceptionTimePlus", {"feat_list": [1, 2], "c_out": 5}),
    "XceptionTime": ("XceptionTime", "XceptionTime", _SHORT),
    "XceptionTimePlus": ("XceptionTimePlus", "XceptionTimePlus", {**_LONG, "concat_pool": True}),
    "OmniScaleCNN": ("OmniScaleCNN", "OmniScaleCNN", _LONG),
    "XCM": ("XCM", "XCM", {**_LONG, "nf": 32}),
    "XCMPlus": ("XCMPlus", "XCMPlus", {**_LONG, "nf": 32, "flatten": True}),
    "TCN": ("TCN", "TCN", {**_SHORT, "layers": [25, 25, 25]}),
    "MLP": ("MLP", "MLP", {**_LONG, "layers": [100, 100], "ps": [0.1, 0.1]}),
    "gMLP": ("gMLP", "gMLP", {**_LONG, "patch_size": 4, "d_model": 64, "d_ffn": 96, "depth": 3}),
    "mWDN": ("mWDN", "mWDN", _LONG),
    "mWDNPlus": ("mWDN", "mWDNPlus", _LONG),
    "RNN": ("RNN", "RNN", {**_SHORT, "n_layers": 2}),
    "LSTM": ("RNN", "LSTM", {**_SHORT, "bidirectional": True}),
    "GRU": ("RNN", "GRU", _SHORT),
    "RNNPlus": ("RNNPlus", "RNNPlus", {**_LONG, "hidden_size": [48, 32]}),
    "LSTMPlus": ("RNNPlus", "LSTMPlus", {**_LONG, "bidirectional": True, "last_step": False}),
    "GRUPlus": ("RNNPlus", "GRUPlus", {**_LONG, "n_layers": 2}),
    "LSTM_FCN": ("RNN_FCN", "LSTM_FCN", _LONG),
    "MGRU_FCN": ("RNN_FCN", "MGRU_FCN", {**_LONG, "shuffle": False}),
    "MLSTM_FCNPlus": ("RNN_FCNPlus", "MLSTM_FCNPlus", _LONG),
    "GRU_FCNPlus": ("RNN_FCNPlus", "GRU_FCNPlus", {**_LONG, "shuffle": False, "use_bn": True}),
    "RNNAttention": ("RNNAttention", "RNNAttention", {**_LONG, "hidden_size": 32, "n_heads": 4}),
    "LSTMAttention": (
        *("RNNAttention", "LSTMAttention"),
        {**_LONG, "hidden_size": 32, "n_heads": 4, "bidirectional": True, "encoder_layers": 1},
    ),
    "GRUAttentionPlus": ("RNNAttentionPlus", "GRUAttentionPlus", {**_LONG, "hidden_size": 32, "n_heads": 4}),
    "TransformerModel": ("TransformerModel", "TransformerModel", {**_SHORT, "n_head": 4}),
    "TransformerLSTMPlus": ("TransformerRNNPlus", "TransformerLSTMPlus", {**_LONG, "d_model": 32, "nhead": 4}),
    "TransformerGRUPlus": ("TransformerRNNPlus", "TransformerGRUPlus", {**_LONG, "d_model": 32, "nhead": 4}),
    "TST": ("TST", "TST", {**_TOKENS, "n_layers": 2}),
    "TSTPlus": ("TSTPlus", "TSTPlus", {**_TOKENS, "n_layers": 2, "res_attention": True}),
    "TSTPlus-pre": ("TSTPlus", "TSTPlus", {**_TOKENS, "n_layers": 2, "pre_norm": True, "norm": "Layer"}),
    "MultiTSTPlus": (
        *("TSTPlus", "MultiTSTPlus"),
        {"feat_list": [1, 2], "c_out": 5, "seq_len": 64, "d_model": 32, "n_heads": 4, "n_layers": 1},
    ),
    "TSiTPlus": ("TSiTPlus", "TSiTPlus", {**_TOKENS, "depth": 2}),
    "TSiTPlus-lsa": ("TSiTPlus", "TSiTPlus", {**_TOKENS, "depth": 2, "lsa": True, "use_token": False, "ks": 4}),
    "TSPerceiver": ("TSPerceiver", "TSPerceiver", {**_LONG, "d_latent": 32, "n_layers": 2}),
    "TSSequencerPlus": ("TSSequencerPlus", "TSSequencerPlus", {**_LONG, "d_model": 32, "depth": 2}),
    "PatchTST": ("PatchTST", "PatchTST", {**_TOKENS, "c_out": 3, "pred_dim": 8, "d_ff": 64}),
    "PatchTST-decomposed": (
        *("PatchTST", "PatchTST"),
        {**_TOKENS, "c_out": 3, "pred_dim": 8, "d_ff": 64, "decomposition": True, "kernel_size": 5, "individual": True},
    ),
    "ConvTran": ("ConvTranPlus", "ConvTran", {**_TOKENS, "n_heads": 8, "d_model": 32}),
    "ConvTranPlus-vector": (
        *("ConvTranPlus", "ConvTranPlus"),
        {**_TOKENS, "abs_pos_encode": "learned", "rel_pos_encode": "vector"},
    ),
    "XResNet1d18-deep": ("XResNet1d", "xresnet1d18_deep", _SHORT),
    "XResNet1d50": ("XResNet1d", "xresnet1d50", {**_SHORT, "sa": True}),
    "TabModel": ("TabModel", "TabModel", {"emb_szs": [(4, 8), (3, 6)], "n_cont": 3, "c_out": 5}),
    "TabTransformer": ("TabTransformer", "TabTransformer", {**_TABLE, "n_layers": 2, "n_heads": 4}),
    "GatedTabTransformer": (
        *("GatedTabTransformer", "GatedTabTransformer"),
        {**_TABLE, "n_layers": 2, "n_heads": 4, "mlp_d_model": 16, "mlp_d_ffn": 32, "mlp_layers": 2},
    ),
    "TabFusionTransformer": ("TabFusionTransformer", "TabFusionTransformer", {**_TABLE, "n_layers": 2, "n_heads": 4}),
}


def names() -> list[str]:
    return list(_MODELS)


def create(name: str) -> Any:
    module, kind, options = _MODELS[name]
    return getattr(importlib.import_module(f"tsai.models.{module}"), kind)(**options)


def inputs(name: str, model: Any) -> Any:
    import torch

    if name.startswith(("Tab", "GatedTab")):
        return torch.tensor([[1, 1], [2, 1]]), torch.randn(2, 3)
    return torch.randn(2, 3, 64)
