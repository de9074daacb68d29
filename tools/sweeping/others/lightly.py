"""lightly: backbones with the heads that its examples put on them, and what these examples train."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SIDE = 64


class _Stacked(nn.Module):
    """A backbone and heads one after another; the results of all heads."""

    def __init__(self, backbone: nn.Module, *heads: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)

    def forward(self, x: Any) -> Any:
        x, found = self.backbone(x).flatten(1), []
        for head in self.heads:
            x = head(x)
            found.append(x)
        return found


class _Momentum(nn.Module):
    """Student and teacher, as of DINO and BYOL, and the distance between them."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, x: Any) -> Any:
        with torch.no_grad():
            target = self.teacher(x)[-1]
        return self.student(x)[-1], target


class _Masked(nn.Module):
    """A masked autoencoder of lightly's examples, with the same patches masked every time."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, patch: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.patch = encoder, decoder, patch
        self.register_buffer("kept", torch.arange(0, 17, 2)[None])
        self.register_buffer("masked", torch.arange(1, 17, 2)[None])

    def forward(self, images: Any) -> Any:
        from lightly.models import utils

        kept, masked = self.kept.expand(len(images), -1), self.masked.expand(len(images), -1)
        found = self.decoder.embed(self.encoder.encode(images=images, idx_keep=kept))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), 17))
        tokens = utils.set_at_index(tokens, kept, found.type_as(tokens))
        decoded = utils.get_at_index(self.decoder.decode(tokens), masked)
        target = utils.get_at_index(utils.patchify(images, self.patch), masked - 1)
        return self.decoder.predict(decoded) - target


def names() -> list[str]:
    return list(_MADE)


def create(name: str) -> Any:
    return _MADE[name]()


def inputs(name: str, model: Any) -> Any:
    side = 32 if name.startswith("resnet") else SIDE  # Its own are for CIFAR.
    return torch.rand(1, 3, side, side)


def _backbone() -> nn.Module:
    import torchvision

    return nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])


def _vit() -> Any:
    import timm

    options = {"patch_size": 16, "embed_dim": 96, "depth": 2, "num_heads": 4, "num_classes": 0}
    return timm.models.vision_transformer.VisionTransformer(img_size=SIDE, **options)


def _heads(*made: tuple[str, tuple[Any, ...]]) -> nn.Module:
    from lightly.models import modules

    return _Stacked(_backbone(), *(getattr(modules, kind)(*sizes) for kind, sizes in made))


def _resnet(**options: Any) -> nn.Module:
    from lightly.models import ResNetGenerator

    return ResNetGenerator(**options)


def _dino() -> nn.Module:
    from lightly.models.modules import DINOProjectionHead

    student, teacher = (_Stacked(_backbone(), DINOProjectionHead(512, 256, 64, 128)) for _ in range(2))
    return _Momentum(student, teacher)


def _dino_vit() -> nn.Module:
    from lightly.models.modules import DINOProjectionHead, MaskedVisionTransformerTIMM

    student, teacher = (
        _Stacked(MaskedVisionTransformerTIMM(_vit()), DINOProjectionHead(96, 128, 64, 128)) for _ in range(2)
    )
    return _Momentum(student, teacher)


def _byol() -> nn.Module:
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead

    student = _Stacked(_backbone(), BYOLProjectionHead(512, 256, 64), BYOLPredictionHead(64, 256, 64))
    return _Momentum(student, _Stacked(_backbone(), BYOLProjectionHead(512, 256, 64)))


def _mae() -> nn.Module:
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

    sizes = {"embed_dim": 96, "decoder_embed_dim": 64, "decoder_depth": 1, "decoder_num_heads": 4}
    return _Masked(MaskedVisionTransformerTIMM(_vit()), MAEDecoderTIMM(num_patches=16, patch_size=16, **sizes), 16)


def _masked_vit_torchvision() -> nn.Module:
    from lightly.models.modules import MaskedVisionTransformerTorchvision
    from torchvision.models import VisionTransformer

    return MaskedVisionTransformerTorchvision(VisionTransformer(SIDE, 16, 2, 4, 96, 192))


def _causal_vit() -> nn.Module:
    from lightly.models.modules import AIMPredictionHead, MaskedCausalVisionTransformer

    options = {
        "patch_size": 16,
        "embed_dim": 96,
        "depth": 2,
        "num_heads": 4,
        "num_classes": 0,
        "class_token": False,
        "global_pool": "",
    }
    vit = MaskedCausalVisionTransformer(img_size=SIDE, no_embed_class=True, **options)
    head = AIMPredictionHead(input_dim=96, output_dim=768, num_blocks=1)
    return nn.Sequential(_Features(vit), head)


class _Features(nn.Module):
    """What a vision transformer of timm has before its head."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, x: Any) -> Any:
        return self.vit.forward_features(x)


_MADE = {
    "resnet9": lambda: _resnet(name="resnet-9"),
    "resnet18": lambda: _resnet(name="resnet-18", width=0.5),
    "resnet50": lambda: _resnet(name="resnet-50", width=0.25),
    "resnet18_split_batch_norm": lambda: _resnet(name="resnet-18", width=0.5, num_splits=2),
    "simclr": lambda: _heads(("SimCLRProjectionHead", (512, 256, 64))),
    "simsiam": lambda: _heads(
        ("SimSiamProjectionHead", (512, 256, 64)),
        ("SimSiamPredictionHead", (64, 32, 64)),
    ),
    "nnclr": lambda: _heads(("NNCLRProjectionHead", (512, 256, 64)), ("NNCLRPredictionHead", (64, 128, 64))),
    "moco": lambda: _heads(("MoCoProjectionHead", (512, 256, 64))),
    "barlow_twins": lambda: _heads(("BarlowTwinsProjectionHead", (512, 256, 128))),
    "swav": lambda: _heads(("SwaVProjectionHead", (512, 256, 64)), ("SwaVPrototypes", (64, 128))),
    "smog": lambda: _heads(("SMoGProjectionHead", (512, 256, 64)), ("SMoGPredictionHead", (64, 128, 64))),
    "byol": _byol,
    "dino": _dino,
    "dino_vit": _dino_vit,
    "mae": _mae,
    "masked_vit_torchvision": _masked_vit_torchvision,
    "causal_vit": _causal_vit,
}
