"""Labelled images for a classifier: drawn on the machine, or in folders as of ImageNet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from comparing import data as drawn
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import datasets
from torchvision.transforms import v2

from .faults import reading
from .processes import Job

Batch = tuple[Tensor, Tensor]


class Images(Protocol):
    """Attributes:
    classes, side: labels, and pixels a side.
    steps: batches an epoch, in each process.
    """

    classes: int
    side: int
    steps: int

    def epoch(self, number: int) -> Iterator[Batch]:
        """This process's batches to train on, in an order that the number alone decides."""
        ...

    def test(self) -> Iterator[Batch]:
        """This process's batches to test on."""
        ...


@dataclass
class Drawn:
    """Images of `comparing.data`, held in memory."""

    data: drawn.Data
    batch: int
    job: Job
    seed: int

    def __post_init__(self) -> None:
        self.classes, self.side = self.data.classes, drawn.SIDE
        count = len(self.data.train[0])
        self.steps = count // (self.batch * self.job.size)
        if not self.steps:
            raise SystemExit(f"--images {count}: that is less than one batch of {self.batch} in each process")

    def epoch(self, number: int) -> Iterator[Batch]:
        # All processes draw the same batches, and each takes its rows.
        generator = torch.Generator().manual_seed(self.seed * 1000 + number)
        for images, labels in drawn.batches(*self.data.train, self.batch * self.job.size, generator):
            yield images[self.job.rank :: self.job.size], labels[self.job.rank :: self.job.size]

    def test(self) -> Iterator[Batch]:
        images, labels = (t[self.job.rank :: self.job.size] for t in self.data.test)
        yield from zip(images.split(500), labels.split(500), strict=True)


MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Folders:
    """`train/` and `val/`, each with a folder of images for every class (`torchvision.datasets.ImageFolder`)."""

    def __init__(self, root: Path, batch: int, job: Job, seed: int, workers: int, side: int = 224) -> None:
        self.side = side
        scaled = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]
        train = _folder(root, "train", v2.Compose([v2.RandomResizedCrop(side), v2.RandomHorizontalFlip(), *scaled]))
        test = _folder(root, "val", v2.Compose([v2.Resize(side * 256 // 224), v2.CenterCrop(side), *scaled]))
        if train.classes != test.classes:
            odd = sorted(set(train.classes) ^ set(test.classes))[0]
            raise SystemExit(f"{root}: the classes of train/ and val/ differ: {odd!r} is in one of them only")
        self.classes = len(train.classes)
        self._sampler: DistributedSampler[Any] = DistributedSampler(train, job.size, job.rank, seed=seed)
        common: dict[str, Any] = {"num_workers": workers, "pin_memory": job.device.type == "cuda"}
        self._train = DataLoader(train, batch, sampler=self._sampler, drop_last=True, **common)
        shard = torch.utils.data.Subset(test, range(job.rank, len(test), job.size))
        self._test = DataLoader(shard, batch, **common)
        self.steps = len(self._train)
        if not self.steps:
            raise SystemExit(f"{root}/train has {len(train)} images, which is less than one batch of {batch}")

    def epoch(self, number: int) -> Iterator[Batch]:
        self._sampler.set_epoch(number)
        torch.manual_seed(number)  # Crops and flips, so that an epoch that is repeated is the same.
        yield from self._train

    def test(self) -> Iterator[Batch]:
        yield from self._test


def _folder(root: Path, part: str, transform: v2.Compose) -> datasets.ImageFolder:
    if not (root / part).is_dir():
        raise SystemExit(
            f"{root} should have folders train/ and val/, each with one folder of images for every class; there is no "
            f"{root / part}"
        )
    try:
        return datasets.ImageFolder(str(root / part), transform, loader=_opened)
    except FileNotFoundError as error:
        raise SystemExit(f"{root / part} should have one folder of images for every class: {error}") from error


def _opened(path: Any) -> Any:
    with reading(path):
        return datasets.folder.default_loader(path)


def load(name: str, folder: Path, batch: int, job: Job, seed: int, workers: int, images: tuple[int, int]) -> Images:
    """The images of a set that is drawn (into `folder`), or of a path.

    Args:
        batch: images a step in each process.
        images: how many to draw to train and to test on.
    """
    if name not in drawn.SETS:
        return Folders(Path(name), batch, job, seed, workers)
    if job.leads:
        drawn.make(name, folder, *images)
    job.wait()
    return Drawn(drawn.make(name, folder, *images), batch, job, seed)
