"""neuralop (neuraloperator): networks that compute in frequencies, in one, two and three dimensions."""

from __future__ import annotations

from typing import Any

_FLAT = {"n_modes": (8, 8), "in_channels": 3, "out_channels": 2, "hidden_channels": 24}
_UNO = {"in_channels": 3, "out_channels": 2, "hidden_channels": 16, "lifting_channels": 32, "projection_channels": 32}
_UNO_2D = {
    "uno_out_channels": [16, 24, 24, 16],
    "uno_n_modes": [[8, 8]] * 4,
    "uno_scalings": [[1, 1], [0.5, 0.5], [1, 1], [2, 2]],
}

# Name -> class, what it is given, shape of its input.
_MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "FNO-1d": ("FNO", {**_FLAT, "n_modes": (8,)}, (2, 3, 32)),
    "FNO-2d": ("FNO", _FLAT, (2, 3, 24, 24)),
    "FNO-3d": ("FNO", {**_FLAT, "n_modes": (4, 4, 4), "n_layers": 2}, (1, 3, 12, 12, 12)),
    "FNO-norm": ("FNO", {**_FLAT, "norm": "group_norm", "channel_mlp_skip": "linear"}, (2, 3, 24, 24)),
    "FNO-instance": ("FNO", {**_FLAT, "norm": "instance_norm", "preactivation": True}, (2, 3, 24, 24)),
    "FNO-separable": ("FNO", {**_FLAT, "separable": True, "use_channel_mlp": False}, (2, 3, 24, 24)),
    "FNO-padded": ("FNO", {**_FLAT, "domain_padding": 0.25, "positional_embedding": None}, (2, 3, 24, 24)),
    "FNO-tucker": ("FNO", {**_FLAT, "factorization": "tucker", "rank": 0.2}, (2, 3, 24, 24)),
    "FNO-cp": ("FNO", {**_FLAT, "factorization": "cp", "implementation": "factorized"}, (2, 3, 24, 24)),
    "FNO-complex": ("FNO", {**_FLAT, "complex_data": True}, (2, 3, 24, 24)),
    "TFNO": ("TFNO", {**_FLAT, "factorization": "tucker", "implementation": "factorized"}, (2, 3, 24, 24)),
    "UNO": ("UNO", {**_UNO, **_UNO_2D, "channel_mlp_skip": "linear"}, (2, 3, 24, 24)),
    "UNO-norm": ("UNO", {**_UNO, **_UNO_2D, "norm": "group_norm", "channel_mlp_skip": "linear"}, (2, 3, 24, 24)),
    "SFNO": ("SFNO", {**_FLAT, "n_layers": 2, "n_modes": (8, 16)}, (2, 3, 16, 32)),
    "CODANO": (
        "CODANO",
        {
            "hidden_variable_codimension": 8,
            "lifting_channels": 16,
            "projection_channels": 16,
            "n_layers": 2,
            "n_modes": [[6, 6], [6, 6]],
            "n_heads": [2, 2],
            "per_layer_scaling_factors": [[1, 1], [1, 1]],
            "attention_scaling_factors": [0.5, 0.5],
        },
        (2, 3, 24, 24),
    ),
}


def names() -> list[str]:
    return list(_MODELS)


def create(name: str) -> Any:
    from neuralop import models

    kind, options, _ = _MODELS[name]
    return getattr(models, kind)(**options)


def inputs(name: str, model: Any) -> Any:
    import torch

    shape = _MODELS[name][2]
    return torch.randn(shape, dtype=torch.complex64 if name == "FNO-complex" else torch.float32)
