"""segmentation_models_pytorch: every decoder behind encoders of five kinds, U-Net behind more, and its options."""

from __future__ import annotations

from typing import Any

SIDE = 128

_DECODERS = (
    *("unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3", "deeplabv3plus", "pan", "upernet"),
    "segformer",
)
_WITHOUT_MIT = ("unetplusplus", "linknet")  # They refuse encoders whose first stage is empty.
_ENCODERS = ("resnet18", "efficientnet-b0", "mit_b0", "mobileone_s0", "tu-convnext_atto")
_MORE_ENCODERS = (
    *("resnext50_32x4d", "dpn68", "vgg11_bn", "se_resnet50", "se_resnext50_32x4d", "densenet121", "inceptionv4"),
    *("inceptionresnetv2", "mobilenet_v2", "xception", "timm-efficientnet-b0", "timm-tf_efficientnet_lite0"),
    *("timm-skresnet18", "tu-mobilenetv3_small_100", "tu-regnety_002", "tu-ghostnet_050", "tu-hrnet_w18_small"),
    *("tu-resnest14d", "tu-mobilevitv2_050", "tu-efficientvit_b0", "tu-fastvit_t8", "tu-edgenext_xx_small"),
    *("tu-poolformer_s12", "tu-pvt_v2_b0", "tu-repvgg_a0", "tu-mobilenetv4_conv_small", "tu-darknet53"),
    *("tu-nf_resnet26", "tu-rexnet_100", "tu-cspdarknet53", "tu-nfnet_l0", "tu-inception_next_atto", "tu-starnet_s1"),
)

# Name -> decoder, encoder, what else it is given.
_OPTIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "unet-resnet18-scse": ("unet", "resnet18", {"decoder_attention_type": "scse"}),
    "unet-resnet18-instancenorm": (
        *("unet", "resnet18"),
        {"decoder_use_norm": {"type": "instancenorm", "affine": True}},
    ),
    "unet-swin_tiny": ("unet", "tu-swin_tiny_patch4_window7_224", {"img_size": SIDE}),
    "unet-maxvit_pico": ("unet", "tu-maxvit_pico_rw_256", {"img_size": SIDE}),
    "upernet-swin_tiny": ("upernet", "tu-swin_tiny_patch4_window7_224", {"img_size": SIDE}),
    "unet-resnet18-without-norm": ("unet", "resnet18", {"decoder_use_norm": False}),
    "unet-resnet18-bilinear": ("unet", "resnet18", {"decoder_interpolation": "bilinear"}),
    "unet-resnet18-one-channel": ("unet", "resnet18", {"in_channels": 1, "activation": "sigmoid"}),
    "unet-resnet18-classes": ("unet", "resnet18", {"classes": 5, "activation": "softmax2d"}),
    "unet-resnet18-classifier": ("unet", "resnet18", {"aux_params": {"classes": 4, "dropout": 0.1}}),
    "unet-resnet18-depth3": ("unet", "resnet18", {"encoder_depth": 3, "decoder_channels": (64, 32, 16)}),
    "unetplusplus-resnet18-scse": ("unetplusplus", "resnet18", {"decoder_attention_type": "scse"}),
    "fpn-resnet18-cat": ("fpn", "resnet18", {"decoder_merge_policy": "cat"}),
    "deeplabv3-resnet18-separable": ("deeplabv3", "resnet18", {"decoder_aspp_separable": True}),
    "deeplabv3plus-resnet18-stride8": ("deeplabv3plus", "resnet18", {"encoder_output_stride": 8}),
    "dpt-vit_tiny": ("dpt", "tu-vit_tiny_patch16_224", {"dynamic_img_size": True}),
    "dpt-vit_tiny-add": ("dpt", "tu-vit_tiny_patch16_224", {"dynamic_img_size": True, "decoder_readout": "add"}),
    "dpt-vit_tiny-ignore": ("dpt", "tu-vit_tiny_patch16_224", {"dynamic_img_size": True, "decoder_readout": "ignore"}),
}

_MODELS = {
    **{f"{d}-{e}": (d, e, {}) for d in _DECODERS for e in _ENCODERS if e != "mit_b0" or d not in _WITHOUT_MIT},
    **{f"unet-{e}": ("unet", e, {}) for e in _MORE_ENCODERS},
    **_OPTIONS,
}


def names() -> list[str]:
    return list(_MODELS)


def create(name: str) -> Any:
    import segmentation_models_pytorch

    decoder, encoder, options = _MODELS[name]
    return segmentation_models_pytorch.create_model(decoder, encoder, encoder_weights=None, **options)


def inputs(name: str, model: Any) -> Any:
    import torch

    return torch.rand(1, _MODELS[name][2].get("in_channels", 3), SIDE, SIDE)
