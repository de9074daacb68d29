"""Images with boxes, in the layout of Pascal VOC or of COCO."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2

from . import scenes
from .faults import DataError, reading
from .processes import Job

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Classes of Pascal VOC."""

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


@dataclass(frozen=True, slots=True)
class Thing:
    """Attributes:
    label: its class, from 1.
    box: left, top, right and bottom, in pixels from 0.
    counts: whether it is asked for when the detector is tested.
    """

    label: int
    box: tuple[float, float, float, float]
    counts: bool = True


class Voc(Dataset[tuple[Image.Image, list[Thing]]]):
    """A part of Pascal VOC; what is difficult does not count."""

    def __init__(self, root: Path, year: str, part: str, classes: Sequence[str]) -> None:
        self._label = {name: number for number, name in enumerate(classes, 1)}
        try:
            self._own = datasets.VOCDetection(str(root), year=year, image_set=part)
        except (RuntimeError, OSError, ValueError) as error:
            raise SystemExit(
                f"{root} should have VOCdevkit/VOC{year} with JPEGImages, Annotations and ImageSets/Main/{part}.txt: "
                f"{error}"
            ) from error

    def __len__(self) -> int:
        return len(self._own)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[Thing]]:
        things = []
        with reading(f"{self._own.images[index]} or {self._own.annotations[index]}"):
            image, told = self._own[index]
            for thing in told["annotation"].get("object", []):
                left, top, right, bottom = (float(thing["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax"))
                if thing["name"] not in self._label:
                    raise ValueError(f"its {thing['name']!r} is none of the classes {', '.join(self._label)}")
                _check_box(image, left - 1, top - 1, right, bottom)
                counts = thing.get("difficult", "0") != "1"
                things.append(Thing(self._label[thing["name"]], (left - 1, top - 1, right, bottom), counts))
        return image, things


class Coco(Dataset[tuple[Image.Image, list[Thing]]]):
    """A part of COCO; crowds are left out.

    Attributes:
        classes: names, in the order of their numbers in the file.
    """

    def __init__(self, root: Path, part: str) -> None:
        told = root / "annotations" / f"instances_{part}.json"
        if not (told.exists() and (root / part).is_dir()):
            raise SystemExit(f"{root} should have annotations/instances_{part}.json and the images in {part}/")
        with reading(told), redirect_stdout(io.StringIO()):  # It tells how long it takes.
            self._own = datasets.CocoDetection(str(root / part), str(told))
            known = sorted(self._own.coco.cats)
            if not known or "annotations" not in self._own.coco.dataset:
                raise DataError(f"{told} has no {'annotations' if known else 'categories'}")
            self.classes = tuple(self._own.coco.cats[number]["name"] for number in known)
        self._label = {number: label for label, number in enumerate(known, 1)}

    def __len__(self) -> int:
        return len(self._own)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[Thing]]:
        things = []
        with reading(f"image {self._own.ids[index]} of {self._own.root}, or what is told of it,"):
            image, told = self._own[index]
            for thing in told:
                left, top, width, height = thing["bbox"]
                if thing["category_id"] not in self._label:
                    raise ValueError(f"category {thing['category_id']} is not among the categories")
                if not thing.get("iscrowd") and width and height:  # Some of COCO have none.
                    _check_box(image, left, top, left + width, top + height)
                    things.append(Thing(self._label[thing["category_id"]], (left, top, left + width, top + height)))
        return image, things


def _check_box(image: Image.Image, left: float, top: float, right: float, bottom: float) -> None:
    """Raises ValueError for a box in which there is nothing of the image: losses of it are NaN, or refused."""
    wide, high = min(right, image.width) - max(left, 0), min(bottom, image.height) - max(top, 0)
    if not (wide > 0 and high > 0 and max(right, bottom) < math.inf):
        raise ValueError(
            f"its box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) has nothing of the image, which has "
            f"{image.width} x {image.height} pixels"
        )


class Found(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images with things as detectors of torchvision take them; to test on, only things that count."""

    def __init__(self, parts: Sequence[Dataset[Any]], training: bool, side: int, augment: bool) -> None:
        self._all = torch.utils.data.ConcatDataset(parts)
        scaled = [v2.Resize((side, side), antialias=True), v2.ToDtype(torch.float32, scale=True)]
        varied = [v2.RandomPhotometricDistort(), v2.RandomZoomOut(side_range=(1.0, 2.0), p=0.3), v2.RandomIoUCrop()]
        varied += [v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes()]
        self._transform = v2.Compose([*(varied if augment else []), *scaled])
        self._training = training

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, things = self._all[index]
        things = [thing for thing in things if self._training or thing.counts]
        rows = torch.tensor([thing.box for thing in things], dtype=torch.float32).reshape(-1, 4)
        boxes = tv_tensors.BoundingBoxes(rows, format="XYXY", canvas_size=(image.height, image.width))
        labels = torch.tensor([thing.label for thing in things], dtype=torch.int64)
        picture = v2.functional.to_image(image.convert("RGB"))
        picture, target = self._transform(picture, {"boxes": boxes, "labels": labels})
        return picture.as_subclass(Tensor), {name: t.as_subclass(Tensor) for name, t in target.items()}


class Boxes:
    """Attributes:
    classes: their names; label 0 is the background.
    steps: batches an epoch, in each process.
    """

    def __init__(
        self, parts: tuple[Sequence[Dataset[Any]], Sequence[Dataset[Any]]], classes: Sequence[str], batch: int,
        side: int, job: Job, seed: int, workers: int, augment: bool,
    ) -> None:  # fmt: skip
        self.classes, self.side = tuple(classes), side
        train, test = Found(parts[0], True, side, augment), Found(parts[1], False, side, False)
        self._sampler: DistributedSampler[Any] = DistributedSampler(train, job.size, job.rank, seed=seed)
        common: dict[str, Any] = {"num_workers": workers, "collate_fn": _collated}
        self._train = DataLoader(train, batch, sampler=self._sampler, drop_last=True, **common)
        self._test = DataLoader(Subset(test, range(job.rank, len(test), job.size)), batch, **common)
        self.steps = len(self._train)
        if not self.steps:
            raise SystemExit(f"there are {len(train)} images to train on, which is less than one batch of {batch}")

    def epoch(self, number: int) -> Iterator[Batch]:
        """This process's batches to train on, in an order that the number alone decides."""
        self._sampler.set_epoch(number)
        torch.manual_seed(number)
        yield from self._train

    def test(self) -> Iterator[Batch]:
        yield from self._test

    def examples(self, count: int, device: torch.device) -> list[Tensor]:
        """The first pictures to test on: what boxes take depends on how many are found, so noise would not do.

        Raises:
            SystemExit: there are not so many.
        """
        known = self._test.dataset.dataset
        if not 1 <= count <= len(known):
            raise SystemExit(f"--timed {count}: there are {len(known)} images to test on")
        return [known[number][0].to(device) for number in range(count)]


def _collated(rows: list[tuple[Tensor, dict[str, Tensor]]]) -> Batch:
    pictures, targets = zip(*rows, strict=True)
    return list(pictures), list(targets)


def load(
    name: str, folder: Path, batch: int, side: int, job: Job, seed: int, workers: int, images: tuple[int, int],
    augment: bool = True,
) -> Boxes:  # fmt: skip
    """Scenes that are drawn into `folder`; or COCO, or Pascal VOC at a path: 2007 and 2012 to train on, the test set of
    2007.

    Args:
        images: how many to draw to train and to test on.
        augment: vary what is trained on.
    """
    root, given = Path(name), (batch, side, job, seed, workers, augment)
    if name == "scenes":
        if job.leads:
            scenes.write(folder, *images, side, seed)
        job.wait()
        drawn = scenes.write(folder, *images, side, seed)  # It is there.
        train, test = (Voc(drawn, scenes.YEAR, part, scenes.CLASSES) for part in ("train", "val"))
        return Boxes(([train], [test]), scenes.CLASSES, *given)
    if (root / "annotations").is_dir():
        train, test = Coco(root, "train2017"), Coco(root, "val2017")
        if train.classes != test.classes:
            raise SystemExit(f"{root}: the parts of the data set have other classes: {train.classes}, {test.classes}")
        return Boxes(([train], [test]), train.classes, *given)
    parts = [Voc(root, "2007", "trainval", VOC), Voc(root, "2012", "trainval", VOC)]
    return Boxes((parts, [Voc(root, "2007", "test", VOC)]), VOC, *given)
