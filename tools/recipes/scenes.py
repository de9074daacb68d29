"""Scenes with things to find, written in the layout of Pascal VOC or of YOLO: shapes and letters of all sizes on
textures, some behind others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as xml

import numpy as np
from comparing.data import SHAPES, colours, font, fonts, outline
from PIL import Image, ImageDraw, ImageFilter

LETTERS = ("A", "K", "S")
CLASSES = (*SHAPES, *LETTERS)
YEAR = "2012"
LEAST_SEEN = 0.4
"""A thing of which less is seen behind others is not asked for."""


def write(root: Path, train: int, test: int, side: int, seed: int = 0) -> Path:
    """`VOCdevkit/VOC2012` with so many images to train and to test on, unless it is there.

    Returns:
        The folder that it is in: each setting has its own below `root`.
    """
    own = root / _named(train, test, side, seed)
    home = own / "VOCdevkit" / f"VOC{YEAR}"
    done = home / "made"
    if done.exists():
        return own
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("val", test)):
        names = []
        for name, image, boxes in _drawn(part, count, side, seed):
            image.save(home / "JPEGImages" / f"{name}.jpg", quality=92)
            _annotation(name, side, boxes).write(home / "Annotations" / f"{name}.xml")
            names.append(name)
        (home / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names))
    done.touch()
    return own


def write_yolo(root: Path, train: int, test: int, side: int, seed: int = 0) -> Path:
    """`images/` and `labels/`, each with `train/` and `val/`, in a folder of this setting below `root`, and the yaml
    file that names them, unless they are there.

    Returns:
        The yaml file.
    """
    own = root / _named(train, test, side, seed)
    done, told = own / "made", own.with_suffix(".yaml")
    for part, count in (("train", train), ("val", test)) if not done.exists() else ():
        for kind in ("images", "labels"):
            (own / kind / part).mkdir(parents=True, exist_ok=True)
        for name, image, boxes in _drawn(part, count, side, seed):
            image.save(own / "images" / part / f"{name}.jpg", quality=92)
            (own / "labels" / part / f"{name}.txt").write_text("\n".join(_line(*box, side) for box in boxes))
    done.touch()
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(CLASSES))
    # Anew: the folder may have been copied.
    told.write_text(f"path: {own.resolve()}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return told


def _named(*setting: int) -> str:
    return "_".join(map(str, ("scenes", *setting)))


Box = tuple[str, tuple[int, int, int, int]]
"""A class, and the first and last pixel that it has, x before y, counted from 1."""


def _drawn(part: str, count: int, side: int, seed: int) -> Iterator[tuple[str, Image.Image, list[Box]]]:
    for number in range(count):
        draw = np.random.default_rng([seed, part == "val", number])
        yield f"{part}_{number:05d}", *_scene(draw, side, part == "train")


def _line(kind: str, corners: tuple[int, int, int, int], side: int) -> str:
    """Class, centre and size, as shares of the side."""
    left, top, right, bottom = (n / side for n in (corners[0] - 1, corners[1] - 1, *corners[2:]))
    return (
        f"{CLASSES.index(kind)} {(left + right) / 2:.6f} {(top + bottom) / 2:.6f} {right - left:.6f} {bottom - top:.6f}"
    )


def _scene(draw: np.random.Generator, side: int, training: bool) -> tuple[Image.Image, list[Box]]:
    image = _texture(draw, side)
    owner = np.zeros((side, side), np.int64)
    things: list[tuple[str, np.ndarray]] = []
    for number in range(1, int(draw.integers(2, 6))):
        kind = CLASSES[draw.integers(len(CLASSES))]
        mask = _mask(kind, draw, side, training)
        ink = colours(draw, 0)[1]
        image.paste(Image.new("RGB", image.size, ink), mask=mask)
        seen = np.asarray(mask) > 127
        owner[seen] = number
        things.append((kind, seen))
    boxes = []
    for number, (kind, whole) in enumerate(things, 1):
        y, x = np.nonzero(whole)
        if len(y) > 12 and (owner == number).sum() >= LEAST_SEEN * len(y):
            boxes.append((kind, (int(x.min()) + 1, int(y.min()) + 1, int(x.max()) + 1, int(y.max()) + 1)))
    return image.filter(ImageFilter.GaussianBlur(draw.uniform(0, 0.7))), boxes


def _texture(draw: np.random.Generator, side: int) -> Image.Image:
    y, x = np.mgrid[:side, :side] / side
    pattern = sum(
        np.sin(2 * np.pi * (draw.uniform(-9, 9) * x + draw.uniform(-9, 9) * y + draw.uniform())) for _ in "ab"
    )
    a, b = (np.asarray(c, float) for c in colours(draw, 10))
    mixed = a + (b - a) * (0.5 + 0.12 * pattern)[..., None] + draw.normal(0, 8, (side, side, 3))
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _mask(kind: str, draw: np.random.Generator, side: int, training: bool) -> Image.Image:
    mask = Image.new("L", (side, side), 0)
    radius = side * np.exp(draw.uniform(np.log(0.07), np.log(0.25)))
    x, y = draw.uniform(0.8 * radius, side - 0.8 * radius, 2)
    if kind in SHAPES:
        corners = outline(kind, radius, draw.uniform(0, 2 * np.pi))
        ImageDraw.Draw(mask).polygon([(x + dx, y + dy) for dx, dy in corners], fill=255)
    else:
        files = fonts()[0 if training else 1]
        chosen = font(files[draw.integers(len(files))], max(8, int(2.2 * radius)))
        ImageDraw.Draw(mask).text((x, y), kind, fill=255, font=chosen, anchor="mm")
    return mask


def _annotation(name: str, side: int, boxes: list[Box]) -> xml.ElementTree:
    root = xml.Element("annotation")
    xml.SubElement(root, "filename").text = f"{name}.jpg"
    size = xml.SubElement(root, "size")
    for key, value in (("width", side), ("height", side), ("depth", 3)):
        xml.SubElement(size, key).text = str(value)
    for kind, box in boxes:
        thing = xml.SubElement(root, "object")
        xml.SubElement(thing, "name").text = kind
        xml.SubElement(thing, "difficult").text = "0"
        place = xml.SubElement(thing, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            xml.SubElement(place, key).text = str(value)
    return xml.ElementTree(root)
