"""Prune a detector while it is trained: on scenes that are drawn on the machine, or on Pascal VOC in its layout.

    python tools/train_detector.py --data scenes --budget 0.5 --cost macs
    torchrun --nproc-per-node 8 tools/train_detector.py --data /data/voc --network ssd300_vgg16 --side 300

The dense detector is trained first, unless --weights are given. A run that is stopped goes on from its last epoch when
it is started again with the same settings. The folder then has `network.pt` (plan and weights) and `result.json`.
Needs torchmetrics and pycocotools (`pip install halp-fx[recipes]`).
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from recipes import boxes, runs
from recipes.processes import Job
from torch import nn

import halp_fx


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="scenes", help="scenes, or the folder that has VOCdevkit")
    parser.add_argument("--network", default="ssdlite320_mobilenet_v3_large", help="a detector of torchvision")
    parser.add_argument("--weights", help="of the dense detector: a file")
    parser.add_argument("--side", type=int, default=160, help="pixels that images are scaled to")
    parser.add_argument("--folder", type=Path, default=Path("run_detector"), help="checkpoints and results")
    parser.add_argument("--budget", default="0.5", help='of the dense network ("55%%"), or an amount ("4ms")')
    parser.add_argument("--cost", default=None, help="what the budget is of: a latency that is measured, or macs, …")
    parser.add_argument("--dense-epochs", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16, help="images a step in each process")
    parser.add_argument("--rate", type=float, default=0.15, help="for 128 images a step")
    parser.add_argument("--decay", type=float, default=5e-4)
    parser.add_argument("--steps", type=int, default=12, help="of pruning")
    parser.add_argument("--interval", type=int, default=10)
    parser.add_argument("--images", type=int, nargs=2, default=[1000, 300], help="drawn to train and to test on")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of a process on a CPU")
    return parser.parse_args(arguments)


def made(given: argparse.Namespace, classes: int) -> nn.Module:
    torch.manual_seed(given.seed)
    model = torchvision.models.get_model(
        given.network, weights=None, weights_backbone=None, num_classes=classes + 1
    )  # fmt: skip
    # Images come scaled: the detector's own scaling leaves them as they are.
    model.transform.min_size, model.transform.max_size = (given.side,), given.side
    if model.transform.fixed_size is not None:
        model.transform.fixed_size = (given.side, given.side)
    if given.weights:
        model.load_state_dict(torch.load(given.weights, map_location="cpu"))
    return model


class Training(runs.Run):
    """One detector's way through the epochs."""

    def __init__(self, given: argparse.Namespace, data: boxes.Boxes, job: Job, model: nn.Module, epochs: int) -> None:
        super().__init__(data, job, model.to(job.device), epochs)
        rate = given.rate * given.batch * job.size / 128
        self.optimizer = torch.optim.SGD(self.groups(given.decay), lr=rate, momentum=0.9)
        total = epochs * data.steps
        warm = max(1, total // 20)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * min(step / total, 1)))
        )

    def epoch(self, number: int, pruner: halp_fx.Pruner | None = None) -> None:
        self.trained.train()
        start, seen, losses = time.perf_counter(), 0, 0.0
        for pictures, targets in self.batches(number):
            pictures = [p.to(self.job.device) for p in pictures]
            targets = [{name: t.to(self.job.device) for name, t in target.items()} for target in targets]
            self.optimizer.zero_grad(set_to_none=True)
            loss = sum(self.trained(pictures, targets).values())
            loss.backward()
            if pruner is not None:
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


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    given = options(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    job = Job.join()
    given.folder.mkdir(parents=True, exist_ok=True)
    data = boxes.load(
        given.data, given.folder, given.batch, given.side, job, given.seed, given.workers, tuple(given.images)
    )
    model = made(given, len(data.classes))
    runs.dense(given, job, model, lambda epochs: Training(given, data, job, model, epochs))
    model.to(job.device)
    training = Training(given, data, job, model, given.epochs)
    whole = training.precision()
    example = ([torch.rand(3, given.side, given.side, device=job.device)],)
    pruner = halp_fx.Pruner(
        model, given.budget, example, optimizer=training.optimizer, steps=given.steps, interval=given.interval,
        latency=given.cost,
    )  # fmt: skip
    training.wrapped(pruner)
    for number in runs.epochs_left(given, training, pruner):
        training.epoch(number, pruner)
    small = pruner.finish()
    precision = training.precision()
    words = f"mAP {precision} (dense {whole})"
    return runs.left_behind(given, training, small, {"dense": whole, "precision": precision}, words)


if __name__ == "__main__":
    main()
