"""monai: the networks of `monai.networks.nets` with few channels, in 2D and in 3D, and their options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

_UNET = {"channels": (16, 32, 64), "strides": (2, 2)}
_DIFFUSION = {"channels": (16, 32, 32), "attention_levels": (False, True, True), "norm_num_groups": 8}
_LATENT = {**_DIFFUSION, "num_res_blocks": 1, "latent_channels": 3}
_HEADS = {"num_res_blocks": 1, "num_head_channels": 8, **_DIFFUSION}
_TOKENS = {"hidden_size": 96, "mlp_dim": 192, "num_heads": 4}
_VIT = {**_TOKENS, "num_layers": 2}
_SWIN = {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 4)}
_DYN = {"kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2), "filters": (16, 32, 48)}
_AUTO = {"channels": (16, 32, 64), "strides": (2, 2, 1)}
_FLAT, _DEEP = (1, 64, 64), (1, 32, 32, 32)  # Channels and sides, where a network is not asked for others.

# Name -> class, what it is given, shapes of the inputs without the batch.
_MODELS: dict[str, tuple[str, dict[str, Any], tuple[tuple[int, ...], ...]]] = {
    "UNet": ("UNet", {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, **_UNET}, (_FLAT,)),
    "UNet-residual": ("UNet", {**_UNET, "spatial_dims": 2, "num_res_units": 2}, (_FLAT,)),
    "UNet-3d": ("UNet", {**_UNET, "spatial_dims": 3, "num_res_units": 2, "norm": "batch"}, (_DEEP,)),
    "AHNet": ("AHNet", {"spatial_dims": 2, "layers": (1, 1, 1, 1)}, ((1, 128, 128),)),
    "AHNet-3d": (
        "AHNet",
        {"layers": (1, 1, 1, 1), "psp_block_num": 0, "upsample_mode": "trilinear"},
        ((1, 64, 64, 32),),
    ),
    "AttentionUnet": ("AttentionUnet", {**_UNET, "spatial_dims": 2}, (_FLAT,)),
    "AttentionUnet-3d": ("AttentionUnet", {**_UNET, "spatial_dims": 3}, (_DEEP,)),
    "AutoEncoder": ("AutoEncoder", {**_AUTO, "spatial_dims": 2}, (_FLAT,)),
    "AutoEncoder-inter": (
        "AutoEncoder",
        {**_AUTO, "spatial_dims": 3, "num_res_units": 2, "inter_channels": (8, 16), "inter_dilations": (1, 2)},
        (_DEEP,),
    ),
    "AutoencoderKL": ("AutoencoderKL", {**_LATENT, "spatial_dims": 2}, (_FLAT,)),
    "AutoencoderKL-3d": (
        "AutoencoderKL",
        {**_LATENT, "spatial_dims": 3, "use_convtranspose": True},
        ((1, 16, 16, 16),),
    ),
    "AutoencoderKL-fused": ("AutoencoderKL", {**_LATENT, "spatial_dims": 2, "use_combined_linear": True}, (_FLAT,)),
    "AutoencoderKL-flash": ("AutoencoderKL", {**_LATENT, "spatial_dims": 2, "use_flash_attention": True}, (_FLAT,)),
    "BasicUNet": ("BasicUNet", {"spatial_dims": 2, "features": (8, 16, 32, 64, 64, 8)}, (_FLAT,)),
    "BasicUNet-3d": ("BasicUNet", {"features": (8, 16, 32, 64, 64, 8), "upsample": "nontrainable"}, (_DEEP,)),
    "BasicUNet-pixelshuffle": (
        *("BasicUNet", {"spatial_dims": 2, "features": (8, 16, 32, 64, 64, 8), "upsample": "pixelshuffle"}),
        (_FLAT,),
    ),
    "BasicUNetPlusPlus": (
        *("BasicUNetPlusPlus", {"spatial_dims": 2, "features": (8, 16, 32, 64, 64, 8), "deep_supervision": True}),
        (_FLAT,),
    ),
    "Classifier": ("Classifier", {**_UNET, "in_shape": _FLAT, "classes": 4}, (_FLAT,)),
    "Critic": ("Critic", {**_UNET, "in_shape": _FLAT}, (_FLAT,)),
    "Discriminator": ("Discriminator", {**_UNET, "in_shape": _DEEP}, (_DEEP,)),
    "Generator": (
        "Generator",
        {"latent_shape": (16,), "start_shape": (32, 8, 8), "channels": (32, 16, 1), "strides": (2, 2, 1)},
        ((16,),),
    ),
    "Regressor": ("Regressor", {**_UNET, "in_shape": _FLAT, "out_shape": (4,)}, (_FLAT,)),
    "DAF3D": ("DAF3D", {"in_channels": 1, "out_channels": 2}, (_DEEP,)),
    "DenseNet": ("DenseNet", {"spatial_dims": 2, "block_config": (2, 3, 3), "growth_rate": 16}, (_FLAT,)),
    "DenseNet121-3d": ("DenseNet121", {"spatial_dims": 3}, (_DEEP,)),
    "DynUNet": ("DynUNet", {**_DYN, "spatial_dims": 2}, (_FLAT,)),
    "DynUNet-residual": ("DynUNet", {**_DYN, "spatial_dims": 3, "res_block": True}, (_DEEP,)),
    "DynUNet-supervised": (
        *("DynUNet", {**_DYN, "spatial_dims": 3, "deep_supervision": True, "deep_supr_num": 1}),
        (_DEEP,),
    ),
    "EfficientNetBN": (
        "EfficientNetBN",
        {"model_name": "efficientnet-b0", "in_channels": 1, "pretrained": False},
        (_FLAT,),
    ),
    "EfficientNetBN-3d": (
        "EfficientNetBN",
        {"model_name": "efficientnet-b0", "in_channels": 1, "pretrained": False, "spatial_dims": 3},
        (_DEEP,),
    ),
    "EfficientNetBNFeatures": (
        *("EfficientNetBNFeatures", {"model_name": "efficientnet-b0", "in_channels": 1, "pretrained": False}),
        (_FLAT,),
    ),
    "FlexUNet-efficientnet": ("FlexUNet", {"backbone": "efficientnet-b0"}, (_FLAT,)),
    "FlexUNet-resnet": ("FlexUNet", {"backbone": "resnet18", "spatial_dims": 2, "upsample": "deconv"}, (_FLAT,)),
    "FlexUNet-resnet-3d": ("FlexUNet", {"backbone": "resnet10", "spatial_dims": 3}, (_DEEP,)),
    "FullyConnectedNet": ("FullyConnectedNet", {"in_channels": 16, "hidden_channels": (32, 48)}, ((16,),)),
    "VarFullyConnectedNet": (
        "VarFullyConnectedNet",
        {"in_channels": 16, "latent_size": 8, "encode_channels": (32, 24), "decode_channels": (24, 32)},
        ((16,),),
    ),
    "HighResNet": ("HighResNet", {"spatial_dims": 2}, (_FLAT,)),
    "HighResNet-3d": ("HighResNet", {"spatial_dims": 3}, ((1, 24, 24, 24),)),
    "HoVerNet": ("HoVerNet", {"out_classes": 5, "in_channels": 3}, ((3, 256, 256),)),
    "MaskedAutoEncoderViT": (
        "MaskedAutoEncoderViT",
        {**_VIT, "img_size": 32, "patch_size": 8, "spatial_dims": 2, "decoder_hidden_size": 64, "decoder_mlp_dim": 96}
        | {"decoder_num_layers": 2, "decoder_num_heads": 4},
        ((1, 32, 32),),
    ),
    "MedNeXt": ("MedNeXt", {"spatial_dims": 2, "init_filters": 16, "use_residual_connection": True}, (_FLAT,)),
    "MedNeXt-3d": (
        "MedNeXt",
        {"init_filters": 8, "kernel_size": 3, "deep_supervision": True, "global_resp_norm": True}
        | {"use_residual_connection": True},
        (_DEEP,),
    ),
    "MILModel": ("MILModel", {"num_classes": 3, "pretrained": False, "backbone": "resnet18"}, ((4, 3, 64, 64),)),
    "MILModel-att_trans": (
        "MILModel",
        {"num_classes": 3, "pretrained": False, "backbone": "resnet18", "mil_mode": "att_trans", "trans_blocks": 2},
        ((4, 3, 64, 64),),
    ),
    "MILModel-pyramid": (
        *("MILModel", {"num_classes": 3, "pretrained": False, "mil_mode": "att_trans_pyramid", "trans_blocks": 1}),
        ((2, 3, 64, 64),),
    ),
    "PatchDiscriminator": ("PatchDiscriminator", {"spatial_dims": 2, "channels": 16}, (_FLAT,)),
    "MultiScalePatchDiscriminator": (
        "MultiScalePatchDiscriminator",
        {"spatial_dims": 2, "channels": 16, "num_d": 2, "num_layers_d": 2, "minimum_size_im": 64},
        (_FLAT,),
    ),
    "Quicknat": ("Quicknat", {"num_filters": 16, "num_classes": 4}, (_FLAT,)),
    "ResNet18": ("resnet18", {"spatial_dims": 2, "n_input_channels": 1, "num_classes": 5}, (_FLAT,)),
    "ResNet18-3d": ("resnet18", {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 5}, (_DEEP,)),
    "ResNet50-shortcut_A": (
        *("resnet50", {"spatial_dims": 2, "n_input_channels": 1, "shortcut_type": "A", "num_classes": 5}),
        (_FLAT,),
    ),
    "ResNetFeatures": ("ResNetFeatures", {"model_name": "resnet10", "pretrained": False}, (_DEEP,)),
    "Restormer": (
        "restormer.Restormer",
        {"in_channels": 3, "dim": 16, "heads": (1, 2, 2, 4), "num_refinement_blocks": 1},
        ((3, 64, 64),),
    ),
    "RegUNet": (
        "RegUNet",
        {"spatial_dims": 2, "num_channel_initial": 8, "depth": 3, "out_channels": 2, "concat_skip": True},
        (_FLAT,),
    ),
    "RegUNet-3d": ("RegUNet", {"spatial_dims": 3, "num_channel_initial": 8, "depth": 3}, (_DEEP,)),
    "GlobalNet": (
        *("GlobalNet", {"image_size": [64, 64], "spatial_dims": 2, "num_channel_initial": 8, "depth": 3}),
        (_FLAT,),
    ),
    "LocalNet": (
        *("LocalNet", {"spatial_dims": 2, "num_channel_initial": 8, "extract_levels": (0, 1, 2), "out_channels": 2}),
        (_FLAT,),
    ),
    "SENet": (
        "SENet",
        {"spatial_dims": 2, "block": "se_bottleneck", "layers": (1, 1, 1, 1), "groups": 4, "reduction": 4}
        | {"num_classes": 5},
        (_FLAT,),
    ),
    "SEResNet50": (
        "SEResNet50",
        {"in_channels": 1, "spatial_dims": 2, "num_classes": 5, "layers": (1, 1, 1, 1)},
        (_FLAT,),
    ),
    "SEResNeXt50-3d": (
        "SEResNeXt50",
        {"in_channels": 1, "spatial_dims": 3, "num_classes": 5, "layers": (1, 1, 1, 1)},
        (_DEEP,),
    ),
    "SegResNet": ("SegResNet", {"spatial_dims": 2, "init_filters": 16}, (_FLAT,)),
    "SegResNet-3d": ("SegResNet", {"init_filters": 8, "upsample_mode": "deconv"}, (_DEEP,)),
    "SegResNet-pixelshuffle": (
        *("SegResNet", {"spatial_dims": 2, "init_filters": 16, "upsample_mode": "pixelshuffle"}),
        (_FLAT,),
    ),
    "SegResNetVAE": ("SegResNetVAE", {"spatial_dims": 2, "input_image_size": (64, 64)}, (_FLAT,)),
    "SegResNetDS": ("SegResNetDS", {"init_filters": 8, "dsdepth": 2}, (_DEEP,)),
    "SegResNetDS2": ("SegResNetDS2", {"init_filters": 8, "dsdepth": 2}, (_DEEP,)),
    "SwinUNETR": ("SwinUNETR", {**_SWIN, "spatial_dims": 2}, (_FLAT,)),
    "SwinUNETR-3d": ("SwinUNETR", _SWIN, ((1, 64, 64, 64),)),
    "SwinUNETR-v2": ("SwinUNETR", {**_SWIN, "spatial_dims": 2, "use_v2": True, "downsample": "mergingv2"}, (_FLAT,)),
    "SwinUNETR-flash": ("SwinUNETR", {**_SWIN, "spatial_dims": 2, "use_flash_attention": True}, (_FLAT,)),
    "TorchVisionFCModel": (
        "TorchVisionFCModel",
        {"model_name": "resnet18", "num_classes": 4, "in_channels": None},
        ((3, 224, 224),),
    ),
    "TorchVisionFCModel-conv": (
        *("TorchVisionFCModel", {"model_name": "resnet18", "use_conv": True, "pool": None, "in_channels": 512}),
        ((3, 64, 64),),
    ),
    "UNETR": ("UNETR", {**_TOKENS, "img_size": 32, "feature_size": 8}, (_DEEP,)),
    "UNETR-2d": (
        "UNETR",
        {**_TOKENS, "img_size": 64, "feature_size": 8, "spatial_dims": 2, "norm_name": "batch"},
        (_FLAT,),
    ),
    "VNet": ("VNet", {"spatial_dims": 2}, ((1, 32, 32),)),
    "VNet-3d": ("VNet", {"out_channels": 2}, (_DEEP,)),
    "VQVAE": (
        *("VQVAE", {"spatial_dims": 2, "channels": (16, 24, 32), "num_res_layers": 1, "num_res_channels": 16}),
        (_FLAT,),
    ),
    "VarAutoEncoder": ("VarAutoEncoder", {**_AUTO, "spatial_dims": 2, "in_shape": _FLAT, "latent_size": 8}, (_FLAT,)),
    "ViT": ("ViT", {**_VIT, "img_size": 32, "patch_size": 8, "classification": True, "num_classes": 4}, (_DEEP,)),
    "ViT-2d": (
        *("ViT", {**_VIT, "img_size": 64, "patch_size": 8, "spatial_dims": 2, "proj_type": "perceptron"}),
        (_FLAT,),
    ),
    "ViT-save_attn": ("ViT", {**_VIT, "img_size": 64, "patch_size": 8, "spatial_dims": 2, "save_attn": True}, (_FLAT,)),
    "ViTAutoEnc": ("ViTAutoEnc", {**_VIT, "img_size": 32, "patch_size": 4}, (_DEEP,)),
    "VoxelMorphUNet": (
        "VoxelMorphUNet",
        {"spatial_dims": 2, "in_channels": 2, "unet_out_channels": 8, "channels": (16, 16, 24, 24, 32, 24)}
        | {"final_conv_channels": (8, 8)},
        ((2, 64, 64),),
    ),
    "VoxelMorph": ("VoxelMorph", {"spatial_dims": 2}, (_FLAT, _FLAT)),
}
_CHANNELS = {"in_channels": 1, "out_channels": 2}


def _with_ints(*shapes: tuple[int, ...], **more: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Images of these shapes, then what `more` makes."""
    return lambda torch: {"x": torch.rand(1, *shapes[0]), **{k: make(torch) for k, make in more.items()}}


def _time(torch: Any) -> Any:
    return torch.tensor([7])


def _context(torch: Any) -> Any:
    return torch.randn(1, 5, 12)


def _labels(torch: Any) -> Any:
    return torch.randint(3, (1, 1, 32, 32)).eq(torch.arange(3).view(1, 3, 1, 1)).float()


_GUIDED = {**_HEADS, "with_conditioning": True, "cross_attention_dim": 12}
_CONTROL = {**_HEADS, "conditioning_embedding_in_channels": 1, "conditioning_embedding_num_channels": (16,)}
_SMALL = (1, 32, 32)

# Name -> class, what it is given, what makes its inputs by name.
_WITH_MORE: dict[str, tuple[str, dict[str, Any], Callable[[Any], Any]]] = {
    "DiffusionModelUNet": ("DiffusionModelUNet", {**_HEADS, "spatial_dims": 2}, _with_ints(_SMALL, timesteps=_time)),
    "DiffusionModelUNet-guided": (
        *("DiffusionModelUNet", {**_GUIDED, "spatial_dims": 2, "resblock_updown": True}),
        _with_ints(_SMALL, timesteps=_time, context=_context),
    ),
    "DiffusionModelUNet-fused": (
        *("DiffusionModelUNet", {**_HEADS, "spatial_dims": 2, "use_combined_linear": True, "num_class_embeds": 4}),
        _with_ints(_SMALL, timesteps=_time, class_labels=lambda torch: torch.tensor([2])),
    ),
    "DiffusionModelUNet-3d": (
        *("DiffusionModelUNet", {**_HEADS, "spatial_dims": 3}),
        _with_ints((1, 16, 16, 16), timesteps=_time),
    ),
    "DiffusionModelEncoder": (
        *("diffusion_model_unet.DiffusionModelEncoder", {**_HEADS, "spatial_dims": 2, "input_shape": (32, 32)}),
        _with_ints(_SMALL, timesteps=_time),
    ),
    "ControlNet": (
        *("ControlNet", {**_CONTROL, "spatial_dims": 2}),
        _with_ints(_SMALL, timesteps=_time, controlnet_cond=lambda torch: torch.rand(1, 1, 32, 32)),
    ),
    "SPADEAutoencoderKL": (
        *("SPADEAutoencoderKL", {**_LATENT, "spatial_dims": 2, "label_nc": 3, "spade_intermediate_channels": 16}),
        lambda torch: {"x": torch.rand(1, *_SMALL), "seg": _labels(torch)},
    ),
    "SPADEDiffusionModelUNet": (
        *("SPADEDiffusionModelUNet", {**_HEADS, "spatial_dims": 2, "label_nc": 3, "spade_intermediate_channels": 16}),
        _with_ints(_SMALL, timesteps=_time, seg=_labels),
    ),
    "SPADENet": (
        "SPADENet",
        {"spatial_dims": 2, "label_nc": 3, "input_shape": (32, 32), "channels": [16, 16, 8], "is_vae": False}
        | {"spade_intermediate_channels": 16},
        lambda torch: {"seg": _labels(torch)},
    ),
    "DecoderOnlyTransformer": (
        "DecoderOnlyTransformer",
        {"num_tokens": 20, "max_seq_len": 16, "attn_layers_dim": 32, "attn_layers_depth": 2, "attn_layers_heads": 4}
        | {"with_cross_attention": True},
        lambda torch: {"x": torch.randint(20, (1, 9)), "context": torch.randn(1, 5, 32)},
    ),
    "NaViT": (
        "NaViT",
        {"image_size": 32, "patch_size": 8, "num_classes": 3, "spatial_dims": 2, **_VIT},
        lambda torch: {"batched_images": [[torch.rand(1, 32, 32), torch.rand(1, 16, 32)]]},
    ),
}


def names() -> list[str]:
    return [*_MODELS, *_WITH_MORE, "VISTA3D", "DiNTS"]


def create(name: str) -> Any:
    from monai.networks import nets

    if name == "VISTA3D":
        return _vista(nets)
    if name == "DiNTS":
        return _dints(nets)
    kind, options = (_MODELS.get(name) or _WITH_MORE[name])[:2]
    made = nets
    for part in kind.split("."):
        made = getattr(made, part)
    asked = inspect.signature(made).parameters
    return made(**{k: v for k, v in _CHANNELS.items() if k in asked and k not in options}, **options)


def _vista(nets: Any) -> Any:
    from monai.networks.nets import vista3d

    width = 16
    encoder = nets.SegResNetDS2(init_filters=width, out_channels=width, blocks_down=(1, 1, 1), norm="instance")
    points = vista3d.PointMappingSAM(feature_size=width, n_classes=16, last_supported=8)
    classes = vista3d.ClassMappingClassify(n_classes=16, feature_size=width)
    return vista3d.VISTA3D(image_encoder=encoder, class_head=classes, point_head=points)


def _dints(nets: Any) -> Any:
    import torch

    space = nets.TopologyInstance(
        channel_mul=0.2, num_blocks=4, num_depths=3, use_downsample=True, spatial_dims=2, arch_code=_code(torch)
    )
    return nets.DiNTS(space, in_channels=1, num_classes=2, spatial_dims=2)


def _code(torch: Any) -> list[Any]:
    """Which paths of four blocks are there, and which operator each has."""
    import numpy

    return [numpy.ones((4, 7)), numpy.arange(28).reshape(4, 7) % 2]


def inputs(name: str, model: Any) -> Any:
    import torch

    if name == "VISTA3D":
        return {"input_images": torch.rand(1, 1, 32, 32, 32), "class_vector": torch.tensor([[1], [3]])}
    if name == "DiNTS":
        return torch.rand(1, *_FLAT)
    if name in _WITH_MORE:
        return _WITH_MORE[name][2](torch)
    return tuple(torch.rand(1, *shape) for shape in _MODELS[name][2])
