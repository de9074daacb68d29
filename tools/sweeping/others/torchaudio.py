"""torchaudio: networks that read and separate sounds, with few layers where they are many."""

from __future__ import annotations

from typing import Any

_WAV2VEC = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [(128, 10, 5), (128, 3, 2), (128, 3, 2), (128, 2, 2)],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 192,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 32,
    "encoder_pos_conv_groups": 16,
    "encoder_num_layers": 3,
    "encoder_num_heads": 6,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 384,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.0,
}
_WAVLM = {**_WAV2VEC, "encoder_num_buckets": 32, "encoder_max_distance": 80}

# Name -> the function or class, what it is given.
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Conformer": (
        "Conformer",
        {"input_dim": 80, "num_heads": 4, "ffn_dim": 128, "num_layers": 3, "depthwise_conv_kernel_size": 31},
    ),
    "ConvTasNet": ("ConvTasNet", {"msk_num_layers": 4, "msk_num_stacks": 2}),
    "DeepSpeech": ("DeepSpeech", {"n_feature": 80, "n_hidden": 256}),
    "Emformer": (
        "Emformer",
        {
            "input_dim": 96,
            "num_heads": 4,
            "ffn_dim": 192,
            "num_layers": 2,
            "segment_length": 4,
            "right_context_length": 1,
        },
    ),
    "HDemucs": ("HDemucs", {"sources": ["drums", "bass"], "channels": 16}),
    "Wav2Letter_waveform": ("Wav2Letter", {"input_type": "waveform", "num_features": 1}),
    "Wav2Letter_mfcc": ("Wav2Letter", {"input_type": "mfcc", "num_features": 13}),
    "WaveRNN": (
        "WaveRNN",
        {"upsample_scales": [5, 5, 8], "n_classes": 64, "hop_length": 200, "n_rnn": 128, "n_fc": 128, "n_res_block": 3},
    ),
    "squim_objective_base": ("squim_objective_base", {}),
    "tacotron2": (
        "Tacotron2",
        {
            "n_symbol": 30,
            "encoder_embedding_dim": 128,
            "symbol_embedding_dim": 128,
            "attention_rnn_dim": 128,
            "decoder_rnn_dim": 128,
            "prenet_dim": 64,
            "postnet_embedding_dim": 128,
        },
    ),
    "wav2vec2": ("wav2vec2_model", {**_WAV2VEC, "aux_num_out": 29}),
    "wav2vec2_layer_norm": (
        "wav2vec2_model",
        {**_WAV2VEC, "extractor_mode": "layer_norm", "encoder_layer_norm_first": True, "aux_num_out": None},
    ),
    "wavlm": ("wavlm_model", {**_WAVLM, "aux_num_out": 29}),
}


def names() -> list[str]:
    return list(_MODELS)


def create(name: str) -> Any:
    import torchaudio

    kind, options = _MODELS[name]
    return getattr(torchaudio.models, kind)(**options)


def inputs(name: str, model: Any) -> Any:
    import torch

    lengths = torch.tensor([40])
    if name == "Conformer":
        return torch.randn(1, 40, 80), lengths
    if name == "Emformer":
        return torch.randn(1, 9, 96), torch.tensor([8])
    if name == "WaveRNN":
        return torch.randn(1, 1, 200 * 6), torch.randn(1, 1, 128, 10)
    if name == "tacotron2":
        return torch.randint(30, (1, 12)), torch.tensor([12]), torch.randn(1, 80, 10), torch.tensor([10])
    shapes = {
        "ConvTasNet": (1, 1, 4000),
        "DeepSpeech": (1, 1, 40, 80),
        "HDemucs": (1, 2, 32768),
        "Wav2Letter_mfcc": (1, 13, 64),
        "Wav2Letter_waveform": (1, 1, 16000),
    }
    return torch.randn(shapes.get(name, (1, 4000)))
