"""Prune a classifier while it is trained.

On images that are drawn on the machine (a few minutes on one core), or on folders as of ImageNet, with the published
recipe as the default: SGD, rate 1.024 for 1,024 images, momentum 0.875, decay 3.05e-5 but for norms and biases, label
smoothing 0.1, 90 epochs of a cosine after 8 of warm-up, pruning in 30 steps of 40 batches from the start (HALP, arXiv
2110.10811). The dense network is the teacher, unless --no-distill.

    python tools/train_classifier.py --data glyphs --network residual --budget 0.5
    python tools/train_classifier.py --data /data/imagenet --network resnet50 --weights DEFAULT --budget 55%
    torchrun --nproc-per-node 8 tools/train_classifier.py --data /data/imagenet --network resnet50 --weights DEFAULT

A run that is stopped goes on from its last epoch when it is started again with the same settings. The folder then has
`network.pt` (plan and weights: `halp_fx.rewrite` the original with the plan, load the weights) and `result.json`.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torchvision
from comparing import networks
from recipes import checkpoints, images, runs
from recipes.arguments import made as made_folder
from recipes.arguments import real, whole
from recipes.faults import need
from recipes.processes import Job
from torch import nn

import halp_fx

PUBLISHED = {
    "epochs": 90, "warmup": 8.0, "rate": 1.024, "momentum": 0.875, "decay": 3.05e-5, "smoothing": 0.1, "steps": 30,
    "interval": 40, "batch": 128, "dense_epochs": 0,
}  # fmt: skip
"""For folders; the rate is for 1,024 images a step and scales with their number."""
SMALL = {
    "epochs": 6, "warmup": 0.3, "rate": 0.4, "momentum": 0.9, "decay": 5e-4, "smoothing": 0.0, "steps": 12,
    "interval": 6, "batch": 128, "dense_epochs": 16,
}  # fmt: skip
"""For images that are drawn."""
RANGES = {
    "warmup": real(), "rate": real(above=True), "momentum": real(0, 1), "decay": real(),
    "smoothing": real(0, 1),
}  # fmt: skip
"""Of what is no whole number of at least one."""


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="glyphs", help=f"{', '.join(images.drawn.SETS)}, or a folder")
    parser.add_argument(
        "--network", default="residual", help=f"{', '.join(networks.NETWORKS)}, or one of torchvision's"
    )
    parser.add_argument("--weights", help="of the dense network: a file, or a name that torchvision has for it")
    parser.add_argument(
        "--dense-epochs", type=whole(0), help="to train the dense network first, where it has no weights"
    )
    parser.add_argument("--folder", type=Path, default=Path("run"), help="checkpoints and results")
    parser.add_argument("--budget", default="0.5", help='of the dense network ("55%%"), or an amount ("4ms")')
    parser.add_argument("--cost", default=None, help="what the budget is of: a latency that is measured, or macs, …")
    parser.add_argument("--timed-batch", type=whole(1), default=1, help="images a call, for the latency")
    parser.add_argument("--mode", default="shrink", choices=["shrink", "mask"])
    parser.add_argument("--regrow", action="store_true", help="straight-through masks, with --mode mask")
    parser.add_argument("--importance", default=None, choices=["fisher", "taylor", "magnitude"])
    parser.add_argument("--solver", default="auto", help="halp: the published greedy")
    parser.add_argument("--no-distill", action="store_true")
    parser.add_argument("--temperature", type=real(above=True), default=2.0)
    parser.add_argument("--images", type=whole(1), nargs=2, default=[9000, 3000], help="drawn to train and to test on")
    parser.add_argument("--workers", type=whole(0), default=8)
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--threads", type=whole(1), help="of a process on a CPU")
    parser.add_argument("--tensorboard", action="store_true", help="needs the package tensorboard")
    for name, value in PUBLISHED.items():
        if name != "dense_epochs":
            told = f"{value} for folders, {SMALL[name]} for drawn images"
            parser.add_argument(f"--{name}", type=RANGES.get(name, whole(1)), help=told)
    given = parser.parse_args(arguments)
    for name, value in (SMALL if given.data in images.drawn.SETS else PUBLISHED).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


def made(given: argparse.Namespace, classes: int) -> nn.Module:
    """The network, with its weights if they were given."""
    torch.manual_seed(given.seed)
    own = given.network in networks.NETWORKS
    known = not own and given.weights is not None and not Path(given.weights).exists()
    if own:
        model = networks.NETWORKS[given.network](classes)
    else:
        weights = given.weights if known else None
        try:
            model = torchvision.models.get_model(given.network, weights=weights, num_classes=classes)
        except (ValueError, KeyError) as error:
            words = f"--network {given.network}" + (f" --weights {weights}" if known else "")
            raise SystemExit(
                f"{words}, for {classes} classes: {error}. Pass a network of torchvision, and weights that it has for "
                "as many classes, or a file"
            ) from error
    if given.weights is not None and not known:
        checkpoints.load_weights(model, Path(given.weights))
    return model


class Training(runs.Run):
    """One classifier's way through the epochs: optimizer, rate, loss scaler, and what is measured."""

    parts = ("model", "optimizer", "schedule", "scaler")

    def __init__(self, given: argparse.Namespace, data: images.Images, job: Job, model: nn.Module, epochs: int) -> None:
        super().__init__(data, job, model.to(job.device, memory_format=torch.channels_last), epochs)
        self.given = given
        rate = given.rate * given.batch * job.size / 1024
        self.optimizer = torch.optim.SGD(
            self.groups(given.decay), lr=rate, momentum=given.momentum, nesterov=given.data in images.drawn.SETS
        )
        total, warm = epochs * data.steps, max(1.0, given.warmup * data.steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min(
                (step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0.0, (step - warm) / (total - warm)))
            ),
        )
        self.scaler = torch.amp.GradScaler(job.device.type, enabled=job.device.type == "cuda")

    def epoch(self, number: int, pruner: halp_fx.Pruner | None = None, teacher: nn.Module | None = None) -> None:
        self.trained.train()
        mixed = torch.autocast("cuda", torch.bfloat16) if self.job.device.type == "cuda" else nullcontext()
        start, seen = time.perf_counter(), 0
        bar = self.batches(number)
        for x, y in bar:
            x, y = x.to(self.job.device, non_blocking=True), y.to(self.job.device, non_blocking=True)
            x = x.contiguous(memory_format=torch.channels_last)
            self.optimizer.zero_grad(set_to_none=True)
            with mixed:
                outputs = self.trained(x)
                loss = nn.functional.cross_entropy(outputs, y, label_smoothing=self.given.smoothing)
                if teacher is not None:
                    with torch.no_grad():
                        wanted = teacher(x)
                    loss = 0.5 * loss + 0.5 * halp_fx.distill(outputs, wanted, self.given.temperature)
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            if pruner is not None:
                pruner.step()
            nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.schedule.step()
            seen += len(x)
            if bar.n % 10 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
        row = {"epoch": number + 1, "images_per_s": self.job.size * seen / (time.perf_counter() - start)}
        self.ended(row | {"accuracy": self.accuracy()})

    @torch.inference_mode()
    def accuracy(self) -> float:
        """Share of the test images that are recognised."""
        self.model.eval()
        right = count = 0.0
        for x, y in self.data.test():
            right += float((self.model(x.to(self.job.device)).argmax(1).cpu() == y).sum())
            count += len(y)
        return self.job.total(right) / self.job.total(count)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    given = options(arguments)
    if given.tensorboard:
        need("tensorboard")
    made_folder(given.folder, *runs.FILES)
    if given.threads:
        torch.set_num_threads(given.threads)
    job = Job.join()
    data = images.load(given.data, given.folder, given.batch, job, given.seed, given.workers, tuple(given.images))
    model = made(given, data.classes)

    def first(epochs: int) -> Training:
        if not epochs:
            raise SystemExit("pass --weights of the dense network, or --dense-epochs to train it first")
        return Training(given, data, job, model, epochs)

    shape = given.timed_batch, 3, data.side, data.side
    example = torch.randn(shape, device=job.device).contiguous(memory_format=torch.channels_last)

    def pruner_of(training: Training) -> halp_fx.Pruner:
        return halp_fx.Pruner(
            model, given.budget, example, optimizer=training.optimizer, steps=given.steps, interval=given.interval,
            mode=given.mode, regrow=given.regrow, importance=given.importance, solver=given.solver, latency=given.cost,
        )  # fmt: skip

    runs.dense(given, job, model, first, pruner_of)
    model.to(job.device, memory_format=torch.channels_last)
    teacher = None if given.no_distill else copy.deepcopy(model).eval().requires_grad_(False)
    training = Training(given, data, job, model, given.epochs)
    whole = training.accuracy()
    pruner = pruner_of(training)
    training.wrapped(pruner)
    board = None
    if given.tensorboard and job.leads:
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(given.folder))
    for number in runs.epochs_left(given, training, pruner):
        training.epoch(number, pruner, teacher)
        for key, value in training.history[-1].items() if board is not None else ():
            board.add_scalar(key, value, number)
    small = pruner.finish()
    halp_fx.recalibrate(small, (x for x, _ in data.epoch(given.epochs)))
    accuracy = training.accuracy()
    words = f"accuracy {accuracy:.4f} (dense {whole:.4f})"
    return runs.left_behind(given, training, small, {"dense": whole, "accuracy": accuracy}, words)


if __name__ == "__main__":
    runs.started(main)
