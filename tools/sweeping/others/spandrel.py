"""spandrel: the networks that enlarge, clean and repair images, at their defaults, with few blocks where they are many."""

from __future__ import annotations

import importlib
from typing import Any

SIDE = 64

_SIX = {"depths": (2, 2), "num_heads": (4, 4), "embed_dim": 60, "img_size": SIDE}

# Name -> module, class, what it is given.
_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ATD": ("ATD.__arch.atd_arch", "ATD", {"depths": (2, 2), "num_heads": (4, 4)}),
    "AuraSR": ("AuraSR.__arch.aura_sr", "UnetUpsampler", {}),
    "CRAFT": ("CRAFT.__arch.CRAFT", "CRAFT", {}),
    "Compact": ("Compact.__arch.SRVGG", "SRVGGNetCompact", {}),
    "DAT": ("DAT.__arch.DAT", "DAT", {}),
    "DCTLSA": ("DCTLSA.__arch.dctlsa", "DCTLSA", {}),
    "DITN": ("DITN.__arch.DITN_Real", "DITN_Real", {}),
    "DRCT": ("DRCT.__arch.drct_arch", "DRCT", {}),
    "DRUNet": ("DRUNet.__arch.network_unet", "DRUNet", {}),
    "DnCNN": ("DnCNN.__arch.network_dncnn", "DnCNN", {}),
    "ESRGAN": ("ESRGAN.__arch.RRDB", "RRDBNet", {"num_blocks": 4}),
    "FBCNN": ("FBCNN.__arch.FBCNN", "FBCNN", {}),
    "FDAT": ("FDAT.__arch.fdat", "FDAT", {}),
    "FFTformer": ("FFTformer.__arch.fftformer_arch", "FFTformer", {}),
    "GFPGAN": ("GFPGAN.__arch.gfpganv1_clean_arch", "GFPGANv1Clean", {}),
    "GRL": ("GRL.__arch.grl", "GRL", {}),
    "HAT": ("HAT.__arch.HAT", "HAT", {}),
    "HVICIDNet": ("HVICIDNet.__arch.cidnet", "CIDNet", {}),
    "IPT": ("IPT.__arch.ipt", "IPT", {}),
    "KBNet_l": ("KBNet.__arch.kbnet_l", "KBNet_l", {}),
    "KBNet_s": ("KBNet.__arch.kbnet_s", "KBNet_s", {}),
    "LaMa": ("LaMa.__arch.LaMa", "LaMa", {}),
    "MMRealSR": ("MMRealSR.__arch.mmrealsr_arch", "MMRRDBNet_test", {}),
    "MixDehazeNet": ("MixDehazeNet.__arch.MixDehazeNet", "MixDehazeNet", {}),
    "MoESR": ("MoESR.__arch.MoESR", "MoESR", {}),
    "MoSR": ("MoSR.__arch.mosr_arch", "MoSR", {}),
    "NAFNet": ("NAFNet.__arch.NAFNet_arch", "NAFNet", {}),
    "OmniSR": ("OmniSR.__arch.OmniSR", "OmniSR", {}),
    "PLKSR": ("PLKSR.__arch.PLKSR", "PLKSR", {}),
    "RealPLKSR": ("PLKSR.__arch.RealPLKSR", "RealPLKSR", {}),
    "RCAN": ("RCAN.__arch.rcan_arch", "RCAN", {}),
    "RGT": ("RGT.__arch.rgt", "RGT", {}),
    "UpCunet2x": ("RealCUGAN.__arch.upcunet_v3", "UpCunet2x", {}),
    "UpCunet2x_fast": ("RealCUGAN.__arch.upcunet_v3", "UpCunet2x_fast", {}),
    "UpCunet3x": ("RealCUGAN.__arch.upcunet_v3", "UpCunet3x", {}),
    "UpCunet4x": ("RealCUGAN.__arch.upcunet_v3", "UpCunet4x", {}),
    "RestoreFormer": ("RestoreFormer.__arch.restoreformer_arch", "RestoreFormer", {}),
    "RetinexFormer": ("RetinexFormer.__arch.retinexformer_arch", "RetinexFormer", {}),
    "SAFMN": ("SAFMN.__arch.safmn", "SAFMN", {}),
    "SAFMNBCIE": ("SAFMNBCIE.__arch.safmn_bcie", "SAFMN_BCIE", {}),
    "SCUNet": ("SCUNet.__arch.SCUNet", "SCUNet", {}),
    "SPAN": ("SPAN.__arch.span", "SPAN", {}),
    "SeemoRe": ("SeemoRe.__arch.seemore_arch", "SeemoRe", {}),
    "SwiftSRGAN": ("SwiftSRGAN.__arch.SwiftSRGAN", "Generator", {}),
    "Swin2SR": ("Swin2SR.__arch.Swin2SR", "Swin2SR", {}),
    "SwinIR": ("SwinIR.__arch.SwinIR", "SwinIR", {}),
    "Uformer": ("Uformer.__arch.Uformer", "Uformer", {}),
}


def names() -> list[str]:
    return list(_MODELS)


def create(name: str) -> Any:
    module, kind, options = _MODELS[name]
    return getattr(importlib.import_module(f"spandrel.architectures.{module}"), kind)(**options)


def inputs(name: str, model: Any) -> Any:
    import torch

    return torch.rand(1, 3, SIDE, SIDE)
