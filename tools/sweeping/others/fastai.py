"""fastai: xresnets, the U-Net that it builds around a body, and its networks for tables and text."""

from __future__ import annotations

from typing import Any

_XRESNETS = ("xresnet18", "xresnet50", "xresnet34_deep", "xse_resnet18", "xse_resnext18", "xresnet18_deeper")
_UNETS = ("DynamicUnet-resnet18", "DynamicUnet-resnet34-attention", "DynamicUnet-xresnet18", "DynamicUnet-blur")


def names() -> list[str]:
    return [
        *_XRESNETS,
        "xresnet18-attention",
        *_UNETS,
        *("vision_learner-resnet18", "TabularModel", "AWD_LSTM", "AWD_QRNN", "SequentialRNN", "GAN-generator"),
        *("GAN-critic", "PixelShuffle_ICNR", "simple_cnn"),
    ]


def create(name: str) -> Any:
    from fastai import layers
    from fastai.tabular.model import TabularModel
    from fastai.text.models import awdlstm, core
    from fastai.vision import gan, learner
    from fastai.vision.models import xresnet
    from torchvision import models

    if name in _XRESNETS:
        return getattr(xresnet, name)(n_out=10)
    if name == "xresnet18-attention":
        return xresnet.xresnet18(n_out=10, sa=True)
    if name.startswith("DynamicUnet"):
        body = models.resnet34 if "34" in name else models.resnet18
        if "xresnet" in name:
            body = xresnet.xresnet18
        extra = {"self_attention": True} if "attention" in name else {"blur": True} if "blur" in name else {}
        return learner.create_unet_model(body, 3, (64, 64), pretrained=False, **extra)
    if name == "vision_learner-resnet18":
        return learner.create_vision_model(models.resnet18, 5, pretrained=False)
    if name == "TabularModel":
        return TabularModel([(4, 3), (5, 4)], 3, 2, [64, 32])
    if name.startswith("AWD"):
        return awdlstm.AWD_LSTM(30, 24, 40, 2) if name == "AWD_LSTM" else awdlstm.AWD_LSTM(30, 24, 40, 2, bidir=True)
    if name == "SequentialRNN":
        config = {**awdlstm.awd_lstm_lm_config, "emb_sz": 24, "n_hid": 40, "n_layers": 2}
        return core.get_language_model(awdlstm.AWD_LSTM, 30, config=config)
    if name == "GAN-generator":
        return gan.basic_generator(32, 3, in_sz=16, n_features=16)
    if name == "GAN-critic":
        return gan.basic_critic(32, 3, n_features=16)
    if name == "simple_cnn":
        return layers.SimpleCNN([3, 16, 24, 32], bn=True)
    return layers.nn.Sequential(
        layers.ConvLayer(3, 16), layers.PixelShuffle_ICNR(16, 12, blur=True), layers.ConvLayer(12, 3)
    )


def inputs(name: str, model: Any) -> Any:
    import torch

    if name == "TabularModel":
        return torch.tensor([[1, 2], [3, 4]]), torch.randn(2, 3)
    if name.startswith("AWD") or name == "SequentialRNN":
        return torch.randint(1, 30, (2, 12))
    if name == "GAN-generator":
        return torch.randn(1, 16)
    return torch.rand(1, 3, *2 * [32 if name.startswith(("GAN", "Pixel", "simple")) else 64])
