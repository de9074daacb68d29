"""Prune a detector while it is trained: on scenes that are drawn on the machine, on Pascal VOC, or on COCO.

    python tools/train_detector.py  # a small FCOS on drawn scenes, half of the MACs: minutes of one core
    python tools/train_detector.py --wider 2 --timed 16 --cost latency  # half of the time that 16 images take
    python tools/train_detector.py --data /data/voc --network ssd300_vgg16 --side 300 --backbone DEFAULT
    torchrun --nproc-per-node 8 tools/train_detector.py --data /data/voc --recipe smcp --budget 50%

The dense detector is trained first, unless --weights are given. A run that is stopped goes on from its last epoch when
it is started again with the same settings. The folder then has `network.pt` (plan and weights) and `result.json`.
`--recipe smcp` is what SMCP published for Pascal VOC: SSD512 with a ResNet-50
that is cut after stage 3, pruned by straight-through masks from the first epochs on, over 800 epochs; fewer --epochs
shorten all of it alike. Needs torchmetrics and pycocotools (`pip install halp-fx[recipes]`).
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from recipes import boxes, checkpoints, detectors, runs
from recipes.arguments import made as made_folder
from recipes.arguments import real, whole
from recipes.faults import need
from recipes.processes import Job
from torch import nn

import halp_fx

SMALL = {
    "network": detectors.SMALL, "side": 128, "dense_epochs": 8, "epochs": 6, "batch": 8, "optimizer": "adamw",
    "rate": 0.032, "decay": 0.02, "interval": 30, "backbone": None, "images": [3000, 300],
}  # fmt: skip
"""Learns from random weights. More images are drawn instead of being varied: drawing one takes half as long as varying
one does each time. SGD at 0.03 or 0.08 a step learns a third as much in three epochs."""
OWN = {
    "network": "ssdlite320_mobilenet_v3_large", "side": 160, "dense_epochs": 16, "epochs": 10, "batch": 16,
    "optimizer": "sgd", "rate": 0.15, "decay": 5e-4, "interval": 6, "backbone": None, "images": [600, 150],
}  # fmt: skip
"""Of torchvision's detectors: a start from weights that know something."""
SMCP = {
    "network": detectors.SSD512, "side": 512, "dense_epochs": 0, "epochs": 800, "batch": 32, "rate": 8e-3,
    "optimizer": "sgd", "decay": 2e-3, "interval": 80, "backbone": "DEFAULT", "images": [600, 150],
}  # fmt: skip
"""Published: rates for 128 images a step, twice as large for biases; norms do not decay; a step of pruning every 80
steps of 128 images."""

WARM = 50 / 800
DROPS = ((600 / 800, 3 / 8), (700 / 800, 1 / 8), (740 / 800, 1 / 20), (770 / 800, 1 / 200))
"""Shares of the epochs, and the rate from there on."""
UNTOUCHED, RAMP, FROZEN = 60 / 800, 250 / 800, 350 / 800
"""Shares of the epochs before pruning, while the cost falls, and after the last exchange of channels."""


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="scenes", help="scenes, or the folder that has VOCdevkit, or annotations")
    parser.add_argument("--recipe", default="own", choices=["own", "smcp"], help="what the other options default to")
    parser.add_argument("--network", help=f"{detectors.SMALL}, {detectors.SSD512}, or a detector of torchvision")
    parser.add_argument("--wider", type=whole(1), default=1, help=f"{detectors.SMALL}: times its widths")
    parser.add_argument("--weights", help="of the dense detector: a file")
    parser.add_argument("--backbone", help="torchvision's weights of the backbone: DEFAULT, or none")
    parser.add_argument("--side", type=whole(1), help="pixels that images are scaled to")
    parser.add_argument("--folder", type=Path, default=Path("run_detector"), help="checkpoints and results")
    parser.add_argument("--budget", default="0.5", help='of the dense network ("55%%"), or an amount ("4ms")')
    parser.add_argument("--cost", help="what the budget is of: latency (measured), macs, …; of scenes: macs")
    parser.add_argument(
        "--timed", type=whole(1), default=1, help="images in the forward that the cost is of; of few, boxes take much"
    )
    parser.add_argument("--dense-epochs", type=whole(0))
    parser.add_argument("--epochs", type=whole(1))
    parser.add_argument("--batch", type=whole(1), help="images a step in each process")
    parser.add_argument("--optimizer", choices=["sgd", "adamw"])
    parser.add_argument("--rate", type=real(above=True), help="for 128 images a step")
    parser.add_argument("--decay", type=real())
    parser.add_argument("--steps", type=whole(1), default=12, help="of pruning; smcp: as its epochs have it")
    parser.add_argument("--interval", type=whole(0), help="steps of training between two; smcp: for 128 images a step")
    parser.add_argument("--images", type=whole(1), nargs=2, help="drawn to train and to test on")
    parser.add_argument("--workers", type=whole(0), default=0)
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--threads", type=whole(1), help="of a process on a CPU; the time is of as many")
    given = parser.parse_args(arguments)
    small = given.network == detectors.SMALL or (given.network is None and given.data == "scenes")
    for name, value in (SMCP if given.recipe == "smcp" else SMALL if small else OWN).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    if given.cost is None and given.data == "scenes":
        given.cost = "macs"  # So small, a detector spends most of its time on what no width changes.
    given.cost = None if given.cost == "latency" else given.cost
    given.backbone = None if given.backbone == "none" else given.backbone
    return given


def made(given: argparse.Namespace, classes: int) -> nn.Module:
    torch.manual_seed(given.seed)
    model = detectors.make(
        given.network, classes + 1, given.side, None if given.weights else given.backbone, given.wider
    )
    if given.weights:
        checkpoints.load_weights(model, Path(given.weights))
    return model


class Training(runs.Run):
    """One detector's way through the epochs."""

    def __init__(self, given: argparse.Namespace, data: boxes.Boxes, job: Job, model: nn.Module, epochs: int) -> None:
        super().__init__(data, job, model.to(job.device), epochs)
        rate = given.rate * given.batch * job.size / 128
        published = given.recipe == "smcp"
        groups = self.with_fast_biases(given.decay, rate) if published else self.groups(given.decay)
        if given.optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=rate)
        else:
            self.optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
        total = max(1, epochs * data.steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: (stairs if published else cosine)(step / total, 1 / total)
        )
        self.untouched = int(UNTOUCHED * epochs) if published else 0

    def with_fast_biases(self, decay: float, rate: float) -> list[dict[str, Any]]:
        """Parameter groups: norms do not decay, and biases of other layers learn twice as fast."""
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        free = {id(p): p for norm in norms for p in norm.parameters()}
        rest = [(name, p) for name, p in self.model.named_parameters() if id(p) not in free]
        return [
            {"params": [p for name, p in rest if not name.endswith("bias")], "weight_decay": decay},
            {"params": [p for name, p in rest if name.endswith("bias")], "weight_decay": decay, "lr": 2 * rate},
            {"params": list(free.values()), "weight_decay": 0.0},
        ]

    def epoch(self, number: int, pruner: halp_fx.Pruner | None = None) -> None:
        self.trained.train()
        start, seen, losses = time.perf_counter(), 0, 0.0
        for pictures, targets in self.batches(number):
            pictures = [p.to(self.job.device) for p in pictures]
            targets = [{name: t.to(self.job.device) for name, t in target.items()} for target in targets]
            self.optimizer.zero_grad(set_to_none=True)
            loss = sum(self.trained(pictures, targets).values())
            loss.backward()
            if pruner is not None and number >= self.untouched:
                pruner.step()
            nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
            self.optimizer.step()
            self.schedule.step()
            seen += len(pictures)
            losses += loss.item() * len(pictures)
        seconds = time.perf_counter() - start
        row = {"epoch": number + 1, "loss": losses / seen, "images_per_s": self.job.size * seen / seconds}
        self.ended(row)

    @torch.inference_mode()
    def precision(self) -> dict[str, float]:
        """Mean average precision over the classes: at an overlap of 0.5 (VOC's), and the mean over 0.5 to 0.95."""
        from torchmetrics.detection import MeanAveragePrecision

        self.model.eval()
        metric = MeanAveragePrecision()
        for pictures, targets in self.data.test():
            found = self.model([p.to(self.job.device) for p in pictures])
            metric.update([{name: t.cpu() for name, t in one.items()} for one in found], targets)
        told = metric.compute()
        return {"map_50": float(told["map_50"]), "map": float(told["map"])}


def cosine(share: float, step: float) -> float:
    """The rate at a share of the training, of which one step is another."""
    return min((share + step) * 20, 0.5 + 0.5 * math.cos(math.pi * min(share, 1)))


def stairs(share: float, step: float) -> float:
    """Published: a linear warm-up, then steps down."""
    rate = min(1.0, (share + step) / WARM)
    for start, lower in DROPS:
        rate = lower if share >= start else rate
    return rate


def pruner_of(given: argparse.Namespace, training: Training, job: Job) -> halp_fx.Pruner:
    example = (training.data.examples(given.timed, job.device),)
    common: dict[str, Any] = {"optimizer": training.optimizer, "latency": given.cost}
    if given.recipe == "own":
        return halp_fx.Pruner(
            training.model, given.budget, example, steps=given.steps, interval=given.interval, **common
        )
    interval = max(1, given.interval * 128 // (given.batch * job.size))
    epochs = given.epochs - training.untouched - int(FROZEN * given.epochs)
    steps = max(1, epochs * training.data.steps // interval)
    ramp = RAMP / (1 - UNTOUCHED - FROZEN)
    if hasattr(training.model.backbone, "stem"):
        common["ignore"] = ["backbone.stem"]
    return halp_fx.Pruner(
        training.model, given.budget, example, steps=steps, interval=interval, mode="mask", regrow=True,
        schedule=lambda share: min(1.0, 1 - math.exp(-12.5 * share / ramp)) if share < ramp else 1.0, **common,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    given = options(arguments)
    need("torchmetrics", "pycocotools")
    made_folder(given.folder, *runs.FILES)
    if given.threads:
        torch.set_num_threads(given.threads)
    job = Job.join()
    data = boxes.load(
        given.data, given.folder, given.batch, given.side, job, given.seed, given.workers, tuple(given.images),
        augment=given.data != "scenes" or given.network != detectors.SMALL,
    )  # fmt: skip
    model = made(given, len(data.classes))
    runs.dense(
        given, job, model, lambda epochs: Training(given, data, job, model, epochs),
        lambda training: pruner_of(given, training, job),
    )  # fmt: skip
    model.to(job.device)
    training = Training(given, data, job, model, given.epochs)
    whole = training.precision() if given.weights or given.dense_epochs else None
    pruner = pruner_of(given, training, job)
    training.wrapped(pruner)
    for number in runs.epochs_left(given, training, pruner):
        training.epoch(number, pruner)
    small = pruner.finish()
    precision = training.precision()
    told = [runs.precision_told(found) for found in (precision, whole)]
    words = f"at an overlap of 0.5 / over 0.5 to 0.95: {told[0]} (dense: {told[1]})"
    return runs.left_behind(given, training, small, {"dense": whole, "precision": precision}, words)


if __name__ == "__main__":
    runs.started(main)
