"""Prune a YOLO of ultralytics inside its own trainer: on scenes that are drawn on the machine, or on any data.yaml.

    python tools/train_yolo.py --data scenes --budget 0.5 --cost macs
    python tools/train_yolo.py --data coco.yaml --network yolo11m --weights yolo11m.pt --side 640 --epochs 100

The dense network is trained first, from its yaml file, unless --weights are given. The pruned one is validated as it
came out of the trainer, as it is loaded from the file, and as exported. The folder then has `pruned/weights/best.pt`
(for ultralytics), `network.safetensors` (for `halp_fx.load`), the exported file and `result.json`. What is changed of
the trainer is `recipes.yolo.pruned_trainer`. A run that is stopped, and started again with the same settings, begins
the part that it was in anew: the dense network, or pruning. Needs ultralytics; for --export onnx, onnx and onnxruntime.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from recipes import checkpoints, runs, scenes
from recipes.arguments import made as made_folder
from recipes.arguments import real, whole
from recipes.faults import need
from recipes.yolo import classes_of, detector, offline, pruned_trainer

import halp_fx
from halp_fx.files import replacing

OF_DENSE = ("data", "network", "side", "dense_epochs", "batch", "images", "seed")
"""Settings that the dense network depends on."""


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="scenes", help="scenes, or a data.yaml as ultralytics takes it")
    parser.add_argument("--network", default="yolo11n", help="a detector of ultralytics, by its yaml file")
    parser.add_argument("--weights", help="of the dense network: a .pt file")
    parser.add_argument("--side", type=whole(1), default=128, help="pixels that images are scaled to")
    parser.add_argument("--folder", type=Path, default=Path("run_yolo"), help="runs and results")
    parser.add_argument("--budget", default="0.5", help='of the dense network ("55%%"), or an amount ("4ms")')
    parser.add_argument("--cost", default=None, help="what the budget is of: a latency that is measured, or macs, …")
    parser.add_argument("--dense-epochs", type=whole(1), default=16)
    parser.add_argument("--epochs", type=whole(1), default=10)
    parser.add_argument("--batch", type=whole(1), default=16)
    parser.add_argument("--steps", type=whole(1), default=12, help="of pruning")
    parser.add_argument("--share", type=real(0, 1), default=0.4, help="of the training, in which the network is pruned")
    parser.add_argument("--images", type=whole(1), nargs=2, default=[600, 150], help="drawn to train and to test on")
    parser.add_argument("--export", default="onnx", choices=["onnx", "torchscript"])
    parser.add_argument("--device", default=None, help="as for ultralytics: cpu, 0, …")
    parser.add_argument("--seed", type=whole(0), default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    given = options(arguments)
    need("ultralytics", *(("onnx", "onnxruntime") if given.export == "onnx" else ()))
    offline()
    from ultralytics import YOLO
    from ultralytics.utils.torch_utils import select_device

    if given.weights and not Path(given.weights).exists():
        raise SystemExit(f"there is no {given.weights}")
    folder = made_folder(given.folder.resolve(), "network.safetensors", "result.json")
    data = given.data
    if data == "scenes":
        data = str(scenes.write_yolo(folder / "scenes", *given.images, given.side, given.seed))
    classes, cost = classes_of(data), {"latency": given.cost}
    trainer = pruned_trainer(_budget(given.budget), share=given.share, steps=given.steps, **cost)
    begun, known = detector(given.weights or f"{given.network}.yaml", classes)
    common = {
        "data": data, "imgsz": given.side, "batch": given.batch, "seed": given.seed, "device": given.device,
        "plots": False, "exist_ok": True, "project": str(folder), "workers": 0 if given.data == "scenes" else 8,
    }  # fmt: skip
    if given.data == "scenes":
        # Few images: steps count as they are, mosaics of tiny things teach little, and letters are not mirrored.
        common |= {"nbs": given.batch, "mosaic": 0.0, "fliplr": 0.0, "warmup_epochs": 1.0}
    weights = given.weights or folder / "dense" / "weights" / "best.pt"
    # Ultralytics' files are there from the first epoch on; this one, when all are done.
    whole_way = folder / "dense.json"
    settings = {name: str(getattr(given, name)) for name in OF_DENSE}
    if not given.weights and whole_way.exists():
        checkpoints.check(whole_way, json.loads(whole_way.read_text()), settings)
    elif not given.weights:
        # A budget out of reach costs no epoch.
        begun.to(select_device(given.device, verbose=False))
        images = torch.rand(1, 3, given.side, given.side, device=next(begun.parameters()).device)
        halp_fx.Pruner(begun, _budget(given.budget), images, **cost)
        YOLO(f"{given.network}.yaml").train(epochs=given.dense_epochs, name="dense", **common)
        with replacing(whole_way) as told:
            told.write_text(json.dumps(settings))
    validated = {k: common[k] for k in ("data", "imgsz", "device", "plots", "exist_ok", "project")}
    validated["rect"] = False  # Images of the size that is exported.
    # A file of other classes detects nothing that is asked for.
    whole = precision(YOLO(weights).val(name="dense_val", **validated)) if known in (None, classes) else None
    yolo = YOLO(weights)
    yolo.train(trainer=trainer, epochs=given.epochs, name="pruned", **common)
    # `yolo` has been loaded from best.pt by now. The network in the trainer knows where it comes from, so it is saved.
    small = yolo.trainer.pruner.model
    report = small.halp
    best = yolo.trainer.best
    small.load_state_dict(YOLO(best).model.state_dict())
    halp_fx.save(small.cpu().eval(), folder / "network.safetensors")
    file = exported(YOLO(best), given.export, given.side)
    result = {
        "dense": whole,
        "precision": precision(YOLO(best).val(name="pruned_val", **validated)),
        "exported": precision(YOLO(file, task="detect").val(name="export_val", batch=1, **validated)),
        "unit": report.unit, "cost": report.measured, "dense_cost": report.dense,
        "share": report.measured / report.dense, "file": file,
    }  # fmt: skip
    with replacing(folder / "result.json") as told:
        told.write_text(json.dumps(result, indent=1))
    print(report.summary())
    told = {name: runs.precision_told(result[name]) for name in ("precision", "exported", "dense")}
    print("at an overlap of 0.5 / over 0.5 to 0.95: {precision} (exported: {exported}; dense: {dense})".format(**told))
    return result


def exported(yolo: Any, kind: str, side: int) -> str:
    """The file that a network was exported to, for images of this side."""
    asked = {"simplify": False} if kind == "onnx" else {}  # Other kinds know no such option.
    return str(yolo.export(format=kind, imgsz=side, **asked))


def precision(found: Any) -> dict[str, float]:
    """Mean average precision at an overlap of 0.5, and the mean over 0.5 to 0.95."""
    return {"map_50": float(found.box.map50), "map": float(found.box.map)}


def _budget(told: str) -> float | str:
    try:
        return float(told)
    except ValueError:
        return told


if __name__ == "__main__":
    runs.started(main, "the same command begins this part, the dense network or pruning, anew")
