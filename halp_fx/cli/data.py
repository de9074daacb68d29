"""A folder of images, or a function, on the command line -> batches."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HalpError
from ..extras import missing
from ..files import path_of
from .models import import_function

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .output import Output

logger = logging.getLogger("halp_fx")

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MARGIN = 256 / 224

_PARTS = ("train", "training", "val", "valid", "validation", "test", "testing")
"""Folders that hold the classes of a part of the data: taken for classes themselves, they would be learned."""


def load_data(name: str | None, shape: tuple[int, ...], batch: int) -> Iterable[Any] | None:
    """The batches that `--data` means; None for None.

    Args:
        shape: of the input: its channels, height and width are those of the images.

    Raises:
        HalpError: neither a folder with images nor a function that returns batches.
    """
    if name is None:
        return None
    if (folder := path_of(name)).is_dir():
        return ImageFolder.of(folder, shape, batch)
    if ":" not in name:
        raise HalpError(
            f"--data {name}: there is no such folder; write a function as module:function or file.py:function"
        )
    made = import_function(name)
    try:
        batches = made() if callable(made) else made
    except HalpError:
        raise
    except Exception as error:  # Whatever a user's function may raise.
        raise HalpError(f"--data {name} fails: {type(error).__name__}: {error}") from error
    if not isinstance(batches, Iterable):
        raise HalpError(f"--data {name} gave {type(batches).__name__}, not batches that can be iterated over")
    return batches


def data_for(
    name: str | None, model: nn.Module, inputs: tuple[torch.Tensor, ...], batch: int, output: Output
) -> Iterable[Any] | None:
    """The batches that `--data` means, for a network; what is odd about them is said.

    Raises:
        HalpError: as `load_data`.
    """
    batches = load_data(name, tuple(inputs[0].shape), batch)
    if doubt := said_of_classes(batches, model, inputs):
        output.say(doubt)
    return batches


def said_of_classes(batches: object, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> str:
    """What is odd about the number of classes in a folder: that the network has fewer; "" if nothing is."""
    import torch

    if not isinstance(batches, ImageFolder) or not batches.classes:
        return ""
    try:
        with torch.no_grad():
            scores = model(*inputs)
    except Exception:  # Pruning says what is wrong with the forward, and does it better.
        return ""
    known = scores.shape[1] if isinstance(scores, torch.Tensor) and scores.ndim == 2 else batches.classes
    if known >= batches.classes:
        return ""
    return f"--data has {batches.classes} folders of images, and the network {known} outputs: are these its classes?"


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Images of a folder in batches, every time in the same mixed order: of (images, classes), or of images alone.

    Images are cut to the middle, resized and normalised as torchvision's and timm's networks are used to (the mean and
    deviation of ImageNet).

    Attributes:
        paths: with the class of each; -1 where there are none.
        size: (channels, height, width).
    """

    paths: tuple[tuple[Path, int], ...]
    size: tuple[int, int, int]
    batch: int

    @classmethod
    def of(cls, folder: Path, shape: tuple[int, ...], batch: int) -> ImageFolder:
        """The images of a folder.

        Raises:
            HalpError: there are none, or the input is no image.
        """
        if len(shape) != 4:
            raise HalpError(f"--data {folder}: a folder of images needs an --input of 4 sizes, not {len(shape)}")
        classes = sorted(p for p in folder.iterdir() if p.is_dir())
        if classes and all(c.name.lower() in _PARTS for c in classes):
            raise HalpError(
                f"--data {folder}: {', '.join(c.name for c in classes)} are parts of a data set and no classes: name "
                f"one of them, e.g. --data {classes[0]}"
            )
        found = [(p, i) for i, c in enumerate(classes) for p in sorted(c.rglob("*")) if p.suffix.lower() in _IMAGES]
        found = found or [(p, -1) for p in sorted(folder.iterdir()) if p.suffix.lower() in _IMAGES]
        if not found:
            raise HalpError(f"--data {folder}: no images there ({', '.join(_IMAGES)}), nor in folders in it")
        import torch

        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0), device="cpu").tolist()
        kinds = f" of {len(classes)} classes" if found[0][1] >= 0 else ", no classes"
        logger.info("%s: %d images%s", folder, len(found), kinds)
        return cls(tuple(found[i] for i in order), (shape[1], shape[2], shape[3]), batch)

    @property
    def classes(self) -> int:
        """How many there are; 0 where images are of none."""
        return 1 + max(label for _, label in self.paths)

    def __iter__(self) -> Iterator[Any]:
        import torch

        for start in range(0, len(self.paths), self.batch):
            part = self.paths[start : start + self.batch]
            images = torch.stack([self._read(path) for path, _ in part])
            labels = torch.tensor([label for _, label in part], device="cpu")
            yield images if part[0][1] < 0 else (images, labels)

    def __len__(self) -> int:
        return -(-len(self.paths) // self.batch)

    def _read(self, path: Path) -> torch.Tensor:
        import torch
        from torchvision.transforms import functional as F

        try:
            from PIL import Image
        except ImportError as error:
            raise HalpError(missing("a folder of images", "pillow", error)) from error
        channels, height, width = self.size
        try:
            with Image.open(path) as opened:
                image = opened.convert("L" if channels == 1 else "RGB")
        except Exception as error:  # Not OSError alone: others put their own `open` in Pillow's place.
            raise HalpError(f"{path} is no image that can be read: {error}") from error
        scale = max(height / image.height, width / image.width) * _MARGIN
        image = F.resize(image, [max(height, round(image.height * scale)), max(width, round(image.width * scale))])
        pixels = F.to_tensor(F.center_crop(image, [height, width]))
        if channels == 3:
            pixels = F.normalize(pixels, list(_MEAN), list(_DEVIATION))
        assert isinstance(pixels, torch.Tensor)
        return pixels
