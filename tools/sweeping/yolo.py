"""ultralytics: every yaml file that it ships, at the scales n and m where it has scales."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

# Read when it is imported: it would look for updates and install what it misses.
os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false")

SCALES = ("n", "m")
SIDE = 128


def names() -> list[str]:
    """The smallest scale of every file, then the larger one."""
    import ultralytics
    import yaml

    first, second = [], []
    for path in sorted((Path(ultralytics.__file__).parent / "cfg" / "models").rglob("*.yaml")):
        scales = yaml.safe_load(path.read_text()).get("scales")
        if not isinstance(scales, dict):
            first.append(path.stem)
            continue
        offered = [s for s in SCALES if s in scales] or list(scales)[:1]
        first.append(_scaled(path.stem, offered[0]))
        second += [_scaled(path.stem, s) for s in offered[1:]]
    return first + second


def _scaled(stem: str, scale: str) -> str:
    """`yolov8-seg` at scale n is `yolov8n-seg`, as ultralytics has it; `yolov10b` and its like say theirs already."""
    family = re.match(r"(yolo|yoloe-)v?\d+(?=-|$)", stem)
    return stem if family is None else f"{family[0]}{scale}{stem[family.end() :]}"


def create(name: str) -> Any:
    import torch
    from ultralytics.nn import tasks

    config = tasks.yaml_model_load(f"{name}.yaml")
    for layer in config["backbone"]:
        if layer[2] == "TorchVision":
            layer[3][2] = None  # Else pretrained weights are fetched.
    model = _kind(name, config)(config, verbose=False)
    if isinstance(model, tasks.YOLOEModel):
        # It compares with embeddings of class names, which are zero until they are set: the scores would be constant.
        classes = torch.randn(1, config["nc"], 512, generator=torch.Generator().manual_seed(0))
        model.pe = torch.nn.functional.normalize(classes, dim=-1)
    return model


def _kind(name: str, config: Any) -> Any:
    from ultralytics.nn import tasks

    if "rtdetr" in name:
        return tasks.RTDETRDetectionModel
    if "world" in name:
        return tasks.WorldModel
    if name.startswith("yoloe"):
        return tasks.YOLOESegModel if "seg" in name else tasks.YOLOEModel
    kinds = {
        "classify": tasks.ClassificationModel,
        "segment": tasks.SegmentationModel,
        "pose": tasks.PoseModel,
        "obb": tasks.OBBModel,
        "detect": tasks.DetectionModel,
        "semantic": tasks.SemanticSegmentationModel,
        "depth": tasks.DepthModel,
    }
    return kinds[tasks.guess_model_task(config)]


def inputs(name: str, model: Any) -> Any:
    import torch

    return torch.rand(1, 3, SIDE, SIDE)
