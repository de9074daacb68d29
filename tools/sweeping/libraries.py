"""The libraries whose models are swept: their names, the models with random weights, and inputs for them.

Nothing is downloaded: configurations and yaml files that the libraries ship, random weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SIDE = 128  # Of images, for models that take any size.


@dataclass(frozen=True, slots=True)
class Library:
    """`inputs(name, model)` are arguments as `halp_fx.prune` takes them.

    Where a model has modules of the names in `heads`, their results are compared and not the model's: behind them it
    picks boxes, and which of two with equal random scores comes first is a matter of rounding.
    """

    names: Callable[[], list[str]]
    create: Callable[[str], Any]
    inputs: Callable[[str, Any], Any]
    heads: tuple[str, ...] = ()


def _torchvision_names() -> list[str]:
    import torchvision

    return [n for n in torchvision.models.list_models() if not n.endswith("_quantized")]


def _torchvision_model(name: str) -> Any:
    import torchvision

    options: dict[str, Any] = {"weights": None}
    module = torchvision.models.get_model_builder(name).__module__
    if "detection" in module or "segmentation" in module:
        options["weights_backbone"] = None
    if "quantization" in module:
        options["quantize"] = False
    if "detection" in module and "ssd" not in module:
        options.update(min_size=320, max_size=320)
    if "rcnn" in name:
        options.update(rpn_pre_nms_top_n_test=50, rpn_post_nms_top_n_test=20)
        options.update(box_detections_per_img=10, box_score_thresh=0.0)
    if name.startswith("vit_"):
        options["image_size"] = 4 * int(name.rpartition("_")[2])  # 16 patches
    return torchvision.models.get_model(name, **options)


def _torchvision_inputs(name: str, model: Any) -> Any:
    import torch

    module = type(model).__module__
    if "detection" in module:
        return ([torch.randn(3, 320, 320)],)
    if "optical_flow" in module:
        return torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)
    if "video" in module or name.startswith("swin3d"):
        side = 224 if name.startswith(("mvit", "swin3d", "s3d")) else 64
        return torch.randn(1, 3, 16, side, side)
    if name.startswith("maxvit"):
        return torch.randn(1, 3, 224, 224)
    side = SIDE if "segmentation" in module else getattr(model, "image_size", None)
    return torch.randn(1, 3, *2 * [side or (299 if "inception" in name else SIDE)])


def _timm_names() -> list[str]:
    import timm

    return timm.list_models()


def _timm_model(name: str) -> Any:
    import timm

    return timm.create_model(name, pretrained=False)


def _timm_inputs(name: str, model: Any) -> Any:
    import torch

    channels, *size = model.pretrained_cfg.get("input_size") or (3, 224, 224)
    small = torch.randn(1, channels, *(min(n, SIDE) for n in size))
    if model.pretrained_cfg.get("fixed_input_size") or not _runs(model, small):
        return torch.randn(1, channels, *size)
    return small


def _runs(model: Any, inputs: Any) -> bool:
    """Whether a model takes these inputs."""
    import torch

    try:
        with torch.no_grad():
            model.eval()(inputs)
    except Exception:
        return False
    return True


def _later(module: str, name: str) -> Callable[..., Any]:
    """A function of a module of this package that is imported when the function is called."""

    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(f"{__package__}.{module}"), name)(*args)

    return call


_HEADS = ("head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor", "roi_heads.keypoint_predictor")

_OTHERS: tuple[str, ...] = (
    "asteroid",
    "basicsr",
    "braindecode",
    "cellpose",
    "dac",
    "demucs",
    "diffusers",
    "doctr",
    "dynamic_network_architectures",
    "effdet",
    "efficientnet_pytorch",
    "encodec",
    "facenet_pytorch",
    "fastai",
    "geffnet",
    "kornia",
    "lightly",
    "lpips",
    "monai",
    "neuralop",
    "open_clip",
    "panns_inference",
    "pretrainedmodels",
    "pyiqa",
    "pytorch_tcn",
    "pytorchcv",
    "pytorchvideo",
    "resnest",
    "rfdetr",
    "segment_anything",
    "segmentation_models_pytorch",
    "spandrel",
    "speechbrain",
    "torchaudio",
    "torchgeo",
    "torchreid",
    "torchxrayvision",
    "tsai",
    "vit_pytorch",
    "x_transformers",
    "yolox",
)  # By the name they are imported by; each has a module in `others`.


def _described(module: str) -> Library:
    return Library(*(_later(module, f) for f in ("names", "create", "inputs")))


LIBRARIES = {
    "torchvision": Library(_torchvision_names, _torchvision_model, _torchvision_inputs, _HEADS),
    "timm": Library(_timm_names, _timm_model, _timm_inputs),
    "transformers": _described("huggingface"),
    "ultralytics": _described("yolo"),
    **{name: _described(f"others.{name}") for name in _OTHERS},
}
