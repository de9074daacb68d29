"""speechbrain: the networks in its lobes, with few blocks and channels."""

from __future__ import annotations

import importlib
from typing import Any

_TASNET = {"N": 32, "B": 24, "H": 48, "P": 3, "X": 2, "R": 2, "C": 2}
_HIFI = {
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
    "resblock_kernel_sizes": [3, 5],
    "upsample_kernel_sizes": [8, 4],
    "upsample_initial_channel": 32,
    "upsample_factors": [4, 2],
}
_SPEECH = {"tgt_vocab": 30, "input_size": 40, "d_model": 32, "nhead": 4, "num_encoder_layers": 2, "d_ffn": 64}
_DECODING = {**_SPEECH, "num_decoder_layers": 1}
_FRAMES = (2, 24, 40)

# Name -> module, class, what it is given, shapes of its inputs.
_MODELS: dict[str, tuple[str, str, dict[str, Any], tuple[tuple[int, ...], ...]]] = {
    "ECAPA_TDNN": (
        *("ECAPA_TDNN", "ECAPA_TDNN"),
        {"input_size": 40, "channels": [64] * 4 + [96], "attention_channels": 16, "se_channels": 16, "lin_neurons": 24},
        (_FRAMES,),
    ),
    "ECAPA_TDNN-groups": (
        *("ECAPA_TDNN", "ECAPA_TDNN"),
        {"input_size": 40, "channels": [64] * 4 + [96], "global_context": False, "groups": [1, 2, 2, 2, 1]},
        (_FRAMES,),
    ),
    "ResNet": (
        "ResNet",
        "ResNet",
        {"input_size": 40, "channels": [16, 16, 24, 32], "block_sizes": [1, 1, 1, 1]},
        (_FRAMES,),
    ),
    "Xvector": (
        "Xvector",
        "Xvector",
        {"in_channels": 40, "tdnn_channels": [32, 32, 32, 32, 48], "lin_neurons": 24},
        (_FRAMES,),
    ),
    "CRDNN": (
        "CRDNN",
        "CRDNN",
        {"input_shape": [None, None, 40], "cnn_channels": [8, 16], "rnn_neurons": 32, "dnn_neurons": 32},
        (_FRAMES,),
    ),
    "Cnn14": ("Cnn14", "Cnn14", {"mel_bins": 40, "emb_dim": 64}, ((2, 96, 40),)),
    "ContextNet": (
        *("ContextNet", "ContextNet"),
        {
            "input_shape": [None, None, 40],
            "out_channels": 32,
            "conv_channels": [24] * 3,
            "strides": [1, 2, 1],
            "num_blocks": 3,
            "num_layers": 2,
        },
        (_FRAMES,),
    ),
    "DiffWave": (
        *("DiffWave", "DiffWave"),
        {
            "input_channels": 20,
            "residual_layers": 4,
            "residual_channels": 16,
            "dilation_cycle_length": 2,
            "total_steps": 10,
        },
        (),
    ),
    "ESPnetVGG": (
        "ESPnetVGG",
        "ESPnetVGG",
        {
            "input_shape": [None, None, 40],
            "cnn_channels": [8, 16],
            "rnn_neurons": 24,
            "rnn_layers": 2,
            "projection_neurons": 32,
        },
        (_FRAMES,),
    ),
    "EnhanceResnet": (
        "EnhanceResnet",
        "EnhanceResnet",
        {"n_fft": 512, "channel_counts": [8, 16], "dense_nodes": 32},
        ((2, 4000),),
    ),
    "GatedNN": ("GatedNN", "GatedNN", {"input_shape": [None, None, 40], "neurons": 48}, (_FRAMES,)),
    "HifiganGenerator": (
        "HifiGAN",
        "HifiganGenerator",
        {**_HIFI, "in_channels": 20, "out_channels": 1, "resblock_type": "1"},
        ((1, 20, 16),),
    ),
    "HifiganGenerator-2": (
        "HifiGAN",
        "HifiganGenerator",
        {**_HIFI, "in_channels": 20, "out_channels": 1, "resblock_type": "2"},
        ((1, 20, 16),),
    ),
    "VariancePredictor": (
        "HifiGAN",
        "VariancePredictor",
        {"encoder_embed_dim": 20, "var_pred_hidden_dim": 32, "var_pred_kernel_size": 3, "var_pred_dropout": 0.1},
        ((1, 16, 20),),
    ),
    "MetricGAN-generator": ("MetricGAN", "EnhancementGenerator", {"input_size": 65, "hidden_size": 200}, ()),
    "MetricGAN-discriminator": ("MetricGAN", "MetricDiscriminator", {}, ((1, 2, 40, 65),)),
    "RNNLM": ("RNNLM", "RNNLM", {"output_neurons": 30, "embedding_dim": 16, "rnn_neurons": 24, "dnn_neurons": 32}, ()),
    "VanillaNN": ("VanillaNN", "VanillaNN", {"input_shape": [None, None, 40], "dnn_neurons": 48}, (_FRAMES,)),
    "MaskNet": ("conv_tasnet", "MaskNet", _TASNET, ((1, 32, 40),)),
    "MaskNet-causal": ("conv_tasnet", "MaskNet", {**_TASNET, "norm_type": "cLN", "causal": True}, ((1, 32, 40),)),
    "ConvolutionFrontEnd": (
        *("convolution", "ConvolutionFrontEnd"),
        {"input_shape": (None, None, 40), "num_layers_per_block": 2, "out_channels": [8, 12, 16]},
        (_FRAMES,),
    ),
    "SepformerWrapper": (
        *("dual_path", "SepformerWrapper"),
        {
            "encoder_out_nchannels": 32,
            "masknet_chunksize": 20,
            "intra_numlayers": 1,
            "inter_numlayers": 1,
            "intra_nhead": 4,
            "inter_nhead": 4,
            "intra_dffn": 64,
            "inter_dffn": 64,
        },
        ((1, 2000),),
    ),
    "Segan-generator": (
        "segan_model",
        "Generator",
        {"kernel_size": 31, "latent_vae": False, "z_prob": False},
        ((1, 16384, 1),),
    ),
    "W2VLatentExtractor": (
        *("wav2vec", "W2VLatentExtractor"),
        {"out_channels": [32, 32, 32], "kernel_sizes": [11, 3, 3], "strides": [5, 2, 2]},
        ((1, 2000),),
    ),
    "TransformerASR": ("transformer.TransformerASR", "TransformerASR", _DECODING, ()),
    "TransformerASR-conformer": (
        *("transformer.TransformerASR", "TransformerASR"),
        {**_DECODING, "encoder_module": "conformer", "attention_type": "RelPosMHAXL", "normalize_before": True},
        (),
    ),
    "TransformerASR-branchformer": (
        *("transformer.TransformerASR", "TransformerASR"),
        {**_SPEECH, "num_decoder_layers": 1, "encoder_module": "branchformer", "csgu_linear_units": 48},
        (),
    ),
    "TransformerLM": (
        "transformer.TransformerLM",
        "TransformerLM",
        {"vocab": 30, "d_model": 32, "nhead": 4, "d_ffn": 64, "num_encoder_layers": 2, "num_decoder_layers": 0},
        (),
    ),
    "CNNTransformerSE": (
        "transformer.TransformerSE",
        "CNNTransformerSE",
        {"d_model": 32, "output_size": 40, "nhead": 4, "num_layers": 2, "d_ffn": 64},
        ((2, 24, 32),),
    ),
}


def names() -> list[str]:
    return list(_MODELS)


def create(name: str) -> Any:
    import torch

    module, kind, options, _ = _MODELS[name]
    if name == "CRDNN":
        options = {**options, "rnn_class": importlib.import_module("speechbrain.nnet.RNN").LSTM}
    if name == "CNNTransformerSE":
        options = {**options, "activation": torch.nn.ReLU}
    return getattr(importlib.import_module(f"speechbrain.lobes.models.{module}"), kind)(**options)


def inputs(name: str, model: Any) -> Any:
    import torch

    if name == "DiffWave":
        return torch.randn(1, 1, 512), torch.tensor([3]), torch.randn(1, 20, 2)
    if name == "MetricGAN-generator":
        return torch.randn(2, 20, 65), torch.ones(2)
    if name in ("RNNLM", "TransformerLM"):
        return torch.randint(1, 30, (2, 12))
    if name.startswith("TransformerASR"):
        return torch.randn(2, 24, 40), torch.randint(1, 30, (2, 6))
    return tuple(torch.randn(shape) for shape in _MODELS[name][3])
