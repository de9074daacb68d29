"""pytorch_tcn: temporal convolutional networks, option by option."""

from __future__ import annotations

from typing import Any

_NET = {"num_inputs": 4, "num_channels": [16, 24, 24], "kernel_size": 3}

_OPTIONS: dict[str, dict[str, Any]] = {
    "TCN": {},
    "TCN-layer-norm": {"use_norm": "layer_norm", "causal": False, "use_skip_connections": True},
    "TCN-batch-norm": {"use_norm": "batch_norm", "use_gate": True, "activation": "tanh"},
    "TCN-no-norm": {"use_norm": None, "input_shape": "NLC"},
    "TCN-projected": {"output_projection": 5, "output_activation": "relu"},
    "TCN-conditional": {"embedding_shapes": [(6,), (2, 32)], "embedding_mode": "concat"},
}


def names() -> list[str]:
    return list(_OPTIONS)


def create(name: str) -> Any:
    from pytorch_tcn import TCN

    return TCN(**_NET, **_OPTIONS[name])


def inputs(name: str, model: Any) -> Any:
    import torch

    if name == "TCN-conditional":
        return torch.randn(2, 4, 32), {"embeddings": [torch.randn(2, 6, 32), torch.randn(2, 2, 32)]}
    return torch.randn(2, 32, 4) if name == "TCN-no-norm" else torch.randn(2, 4, 32)
