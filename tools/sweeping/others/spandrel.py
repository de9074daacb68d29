"""spandrel: networks that enlarge, clean and repair images, with few blocks where they are many."""

from __future__ import annotations

import importlib
from typing import Any

SIDE = 64

_WINDOWS = {"depths": (2, 2), "num_heads": (6, 6), "embed_dim": 96, "img_size": SIDE, "window_size": 8}
_PIXELS = {"upsampler": "pixelshuffle", "upscale": 2}

# Name -> module, class, what it is given.
_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ATD": (
        "ATD.__arch.atd_arch",
        "ATD",
        {"depths": (2, 2), "num_heads": (6, 6), "embed_dim": 96, "window_size": 8, **_PIXELS},
    ),
    "AuraSR": (
        "AuraSR.__arch.aura_sr",
        "UnetUpsampler",
        {
            "dim": 32,
            "style_network": {"dim_in": 32, "dim_out": 32, "depth": 2},
            "image_size": 4 * SIDE,
            "input_image_size": SIDE,
            "attn_depths": (1, 1, 1, 1, 1),
            "mid_attn_depth": 1,
        },
    ),
    "CRAFT": ("CRAFT.__arch.CRAFT", "CRAFT", {}),
    "Compact": ("Compact.__arch.SRVGG", "SRVGGNetCompact", {}),
    "DAT": ("DAT.__arch.DAT", "DAT", {"num_heads": (6, 6, 6, 6)}),
    "DCTLSA": ("DCTLSA.__arch.dctlsa", "DCTLSA", {}),
    "DITN": ("DITN.__arch.DITN_Real", "DITN_Real", {}),
    "DRCT": (
        "DRCT.__arch.drct_arch",
        "DRCT",
        {"depths": (2, 2), "num_heads": (6, 6), "embed_dim": 96, "window_size": 8, **_PIXELS},
    ),
    "DRUNet": ("DRUNet.__arch.network_unet", "DRUNet", {"in_nc": 3, "out_nc": 3}),
    "DnCNN": ("DnCNN.__arch.network_dncnn", "DnCNN", {"in_nc": 3, "out_nc": 3}),
    "ESRGAN": ("ESRGAN.__arch.RRDB", "RRDBNet", {"num_blocks": 4}),
    "FBCNN": ("FBCNN.__arch.FBCNN", "FBCNN", {}),
    "FDAT": ("FDAT.__arch.fdat", "FDAT", {}),
    "FFTformer": ("FFTformer.__arch.fftformer_arch", "FFTformer", {}),
    "GFPGAN": ("GFPGAN.__arch.gfpganv1_clean_arch", "GFPGANv1Clean", {"out_size": 256, "narrow": 0.25}),
    "GRL": ("GRL.__arch.grl", "GRL", {}),
    "HAT": ("HAT.__arch.HAT", "HAT", {**_WINDOWS, **_PIXELS}),
    "HVICIDNet": ("HVICIDNet.__arch.cidnet", "CIDNet", {}),
    "IPT": ("IPT.__arch.ipt", "IPT", {}),
    "KBNet_l": ("KBNet.__arch.kbnet_l", "KBNet_l", {}),
    "KBNet_s": ("KBNet.__arch.kbnet_s", "KBNet_s", {"width": 32, "middle_blk_num": 2, "enc_blk_nums": [1, 1, 1, 2]}),
    "LaMa": ("LaMa.__arch.LaMa", "LaMa", {"in_nc": 4}),
    "MMRealSR": ("MMRealSR.__arch.mmrealsr_arch", "MMRRDBNet_test", {"num_in_ch": 3, "num_out_ch": 3, "num_block": 3}),
    "MixDehazeNet": ("MixDehazeNet.__arch.MixDehazeNet", "MixDehazeNet", {}),
    "MoESR": ("MoESR.__arch.MoESR", "MoESR", {}),
    "MoSR": ("MoSR.__arch.mosr_arch", "MoSR", {}),
    "NAFNet": (
        "NAFNet.__arch.NAFNet_arch",
        "NAFNet",
        {"middle_blk_num": 2, "enc_blk_nums": [1, 1, 2], "dec_blk_nums": [1, 1, 1]},
    ),
    "OmniSR": ("OmniSR.__arch.OmniSR", "OmniSR", {}),
    "PLKSR": ("PLKSR.__arch.PLKSR", "PLKSR", {}),
    "RealPLKSR": ("PLKSR.__arch.RealPLKSR", "RealPLKSR", {}),
    "RCAN": ("RCAN.__arch.rcan_arch", "RCAN", {"n_resgroups": 2, "n_resblocks": 4}),
    "RGT": ("RGT.__arch.rgt", "RGT", {"num_heads": (6, 6, 6, 6)}),
    "UpCunet2x": ("RealCUGAN.__arch.upcunet_v3", "UpCunet2x", {}),
    "UpCunet2x_fast": ("RealCUGAN.__arch.upcunet_v3", "UpCunet2x_fast", {}),
    "UpCunet3x": ("RealCUGAN.__arch.upcunet_v3", "UpCunet3x", {}),
    "UpCunet4x": ("RealCUGAN.__arch.upcunet_v3", "UpCunet4x", {}),
    "RestoreFormer": ("RestoreFormer.__arch.restoreformer_arch", "RestoreFormer", {"ch": 32}),
    "RetinexFormer": ("RetinexFormer.__arch.retinexformer_arch", "RetinexFormer", {}),
    "SAFMN": ("SAFMN.__arch.safmn", "SAFMN", {"dim": 36}),
    "SAFMNBCIE": ("SAFMNBCIE.__arch.safmn_bcie", "SAFMN_BCIE", {"dim": 36}),
    "SCUNet": ("SCUNet.__arch.SCUNet", "SCUNet", {}),
    "SPAN": ("SPAN.__arch.span", "SPAN", {"num_in_ch": 3, "num_out_ch": 3}),
    "SeemoRe": ("SeemoRe.__arch.seemore_arch", "SeemoRe", {}),
    "SwiftSRGAN": ("SwiftSRGAN.__arch.SwiftSRGAN", "Generator", {}),
    "Swin2SR": ("Swin2SR.__arch.Swin2SR", "Swin2SR", {**_WINDOWS, **_PIXELS}),
    "SwinIR": ("SwinIR.__arch.SwinIR", "SwinIR", {**_WINDOWS, **_PIXELS}),
    "Uformer": ("Uformer.__arch.Uformer", "Uformer", {"img_size": 2 * SIDE}),
}

_SIDES = {"GFPGAN": 256, "IPT": 48, "RestoreFormer": 512, "Uformer": 2 * SIDE}


def names() -> list[str]:
    return list(_MODELS)


def create(name: str) -> Any:
    module, kind, options = _MODELS[name]
    return getattr(importlib.import_module(f"spandrel.architectures.{module}"), kind)(**options)


def inputs(name: str, model: Any) -> Any:
    import torch

    image = torch.rand(1, 3, *2 * [_SIDES.get(name, SIDE)])
    return (image, torch.rand_like(image[:, :1]).round()) if name == "LaMa" else image
