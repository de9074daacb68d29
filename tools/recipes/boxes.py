"""Images with boxes, in the layout of Pascal VOC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2

from . import scenes
from .processes import Job

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Classes of Pascal VOC."""

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class Found(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """`torchvision.datasets.VOCDetection` as detectors of torchvision take it: boxes from 0, labels from 1."""

    def __init__(self, parts: Sequence[Dataset[Any]], classes: Sequence[str], augment: bool, side: int) -> None:
        self._all = torch.utils.data.ConcatDataset(parts)
        self._label = {name: number for number, name in enumerate(classes, 1)}
        scaled = [v2.Resize((side, side), antialias=True), v2.ToDtype(torch.float32, scale=True)]
        varied = [v2.RandomPhotometricDistort(), v2.RandomZoomOut(side_range=(1.0, 2.0), p=0.3), v2.RandomIoUCrop()]
        varied += [v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes()]
        self._transform = v2.Compose([*(varied if augment else []), *scaled])
        self._augment = augment

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, told = self._all[index]
        things = told["annotation"].get("object", [])
        if not self._augment:
            things = [t for t in things if t.get("difficult", "0") != "1"]
        rows = [[float(t["bndbox"][k]) - (k[1:] == "min") for k in ("xmin", "ymin", "xmax", "ymax")] for t in things]
        size = (image.height, image.width)
        boxes = tv_tensors.BoundingBoxes(torch.tensor(rows).reshape(-1, 4), format="XYXY", canvas_size=size)
        labels = torch.tensor([self._label[t["name"]] for t in things], dtype=torch.int64)
        picture, target = self._transform(v2.functional.to_image(image), {"boxes": boxes, "labels": labels})
        return picture.as_subclass(Tensor), {name: t.as_subclass(Tensor) for name, t in target.items()}


class Boxes:
    """Attributes:
    classes: their names; label 0 is the background.
    steps: batches an epoch, in each process.
    """

    def __init__(
        self, root: Path, parts: tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]], classes: Sequence[str],
        batch: int, side: int, job: Job, seed: int, workers: int,
    ) -> None:  # fmt: skip
        self.classes, self.side = tuple(classes), side
        train = Found([_voc(root, *p) for p in parts[0]], classes, True, side)
        test = Found([_voc(root, *p) for p in parts[1]], classes, False, side)
        self._sampler: DistributedSampler[Any] = DistributedSampler(train, job.size, job.rank, seed=seed)
        common: dict[str, Any] = {"num_workers": workers, "collate_fn": _collated}
        self._train = DataLoader(train, batch, sampler=self._sampler, drop_last=True, **common)
        self._test = DataLoader(Subset(test, range(job.rank, len(test), job.size)), batch, **common)
        self.steps = len(self._train)
        if not self.steps:
            raise SystemExit(f"{root} has {len(train)} images to train on, which is less than one batch of {batch}")

    def epoch(self, number: int) -> Iterator[Batch]:
        """This process's batches to train on, in an order that the number alone decides."""
        self._sampler.set_epoch(number)
        torch.manual_seed(number)
        yield from self._train

    def test(self) -> Iterator[Batch]:
        yield from self._test


def _collated(rows: list[tuple[Tensor, dict[str, Tensor]]]) -> Batch:
    pictures, targets = zip(*rows, strict=True)
    return list(pictures), list(targets)


def _voc(root: Path, year: str, part: str) -> datasets.VOCDetection:
    try:
        return datasets.VOCDetection(str(root), year=year, image_set=part)
    except (RuntimeError, FileNotFoundError) as error:
        raise SystemExit(
            f"{root} should have VOCdevkit/VOC{year} with JPEGImages, Annotations and ImageSets/Main/{part}.txt: "
            f"{error}"
        ) from error


def load(
    name: str, folder: Path, batch: int, side: int, job: Job, seed: int, workers: int, images: tuple[int, int]
) -> Boxes:
    """Scenes that are drawn into `folder`, or Pascal VOC at a path: 2007 and 2012 to train on, the test set of 2007."""
    if name != "scenes":
        parts = ((("2007", "trainval"), ("2012", "trainval")), (("2007", "test"),))
        return Boxes(Path(name), parts, VOC, batch, side, job, seed, workers)
    if job.leads:
        scenes.write(folder, *images, side, seed)
    job.wait()
    parts = (((scenes.YEAR, "train"),), ((scenes.YEAR, "val"),))
    return Boxes(folder, parts, scenes.CLASSES, batch, side, job, seed, workers)
