"""Data sets that are drawn on the machine: nothing is downloaded, and every seed gives the same images.

Each is hard enough that a small network does not saturate, and tests on what it was not trained on: glyphs on fonts of
their own, textures and scenes on images of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from halp_fx.files import replacing

SIDE = 32
"""Pixels a side."""


@dataclass(frozen=True, slots=True)
class Data:
    """Images as float tensors (count, 3, side, side), channels last, mean 0 and deviation 1 a colour; labels."""

    name: str
    classes: int
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def to(self, device: str) -> Data:
        """The same on a device, where all of it stays."""
        train, test = (tuple(t.to(device) for t in part) for part in (self.train, self.test))
        return replace(self, train=train, test=test)

    def calibration(self, count: int, batch: int = 64) -> list[tuple[Tensor, Tensor]]:
        """The first of the training images, in batches: what a pruning method is given."""
        images, labels = self.train
        return [(images[i : i + batch], labels[i : i + batch]) for i in range(0, min(count, len(images)), batch)]


def batches(images: Tensor, labels: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in a random order, images shifted by up to two pixels; the last, smaller batch is left out."""
    order = torch.randperm(len(images), generator=generator)
    for start in range(0, len(images) - size + 1, size):
        rows = order[start : start + size]
        dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
        yield torch.roll(images[rows], (dy, dx), (2, 3)).contiguous(memory_format=torch.channels_last), labels[rows]


GLYPHS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abdefghnqrt"[:46]
"""Letters and digits that differ from each other in most fonts."""


@lru_cache
def fonts() -> tuple[list[str], list[str]]:
    """Files of fonts to train on and, of other families, to test on."""
    import matplotlib

    shipped = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    test = ["STIXGeneral", "STIXGeneralBol", "cmss10", "DejaVuSansMono-Bold", "DejaVuSerif-Italic"]
    train = [
        *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono"),
        *("DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "cmr10"),
        *("cmb10", "cmti10", "cmtt10", "STIXGeneralItalic", "STIXGeneralBolIta"),
    ]
    return [str(shipped / f"{n}.ttf") for n in train], [str(shipped / f"{n}.ttf") for n in test]


@lru_cache(maxsize=512)
def font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def colours(draw: np.random.Generator, contrast: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two colours that differ by at least `contrast` (of 255) in brightness."""
    while True:
        a, b = draw.integers(0, 256, 3), draw.integers(0, 256, 3)
        if abs(a.mean() - b.mean()) > contrast:
            return tuple(a.tolist()), tuple(b.tolist())


def _clutter(canvas: ImageDraw.ImageDraw, draw: np.random.Generator, count: int) -> None:
    for _ in range(count):
        x, y = draw.uniform(0, SIDE, 2)
        dx, dy = draw.normal(0, 7, 2)
        canvas.line((x, y, x + dx, y + dy), fill=tuple(draw.integers(0, 256, 3).tolist()), width=1)


def _glyph(label: int, draw: np.random.Generator, training: bool) -> Image.Image:
    files = fonts()[0 if training else 1]
    back, ink = colours(draw, 50)
    image = Image.new("RGB", (SIDE, SIDE), back)
    _clutter(ImageDraw.Draw(image), draw, int(draw.integers(2, 6)))
    mask = Image.new("L", (SIDE, SIDE), 0)
    chosen = font(files[draw.integers(len(files))], int(draw.integers(17, 27)))
    x, y = SIDE / 2 + draw.uniform(-3, 3, 2)
    ImageDraw.Draw(mask).text((x, y), GLYPHS[label], fill=255, font=chosen, anchor="mm")
    angle, shear = draw.uniform(-14, 14), draw.uniform(-0.2, 0.2)
    mask = mask.rotate(angle, Image.Resampling.BILINEAR)
    mask = mask.transform(mask.size, Image.Transform.AFFINE, (1, shear, -shear * SIDE / 2, 0, 1, 0))
    image.paste(Image.new("RGB", (SIDE, SIDE), ink), mask=mask)
    _clutter(ImageDraw.Draw(image), draw, int(draw.integers(0, 3)))
    return image


def _waves(draw: np.random.Generator, kind: int, pitch: float) -> np.ndarray:
    """A pattern with values in -1..1: what it is made of is the class, how it lies is not."""
    angle, phase = draw.uniform(0, 2 * np.pi, 2)
    y, x = np.mgrid[:SIDE, :SIDE] + draw.uniform(-40, 40, (2, 1, 1))
    bend = draw.uniform(0, 0.03)
    u = np.cos(angle) * x + np.sin(angle) * y + bend * SIDE * np.sin(y / 9)
    v = -np.sin(angle) * x + np.cos(angle) * y
    f = 2 * np.pi / pitch
    if kind == 0:
        return np.sin(f * u + phase)
    if kind == 1:
        return np.sin(f * u + phase) * np.sin(f * v)
    if kind == 2:
        return np.maximum(np.sin(f * u + phase), np.sin(f * v)) * 1.5 - 0.5
    if kind == 3:
        return np.sin(f * np.hypot(x, y) + phase)
    if kind == 4:  # Bricks: every other row is moved by half a brick.
        row = np.floor(v / pitch)
        return 1 - 2 * ((np.mod(v, pitch) < pitch / 4) | (np.mod(u + row * pitch, 2 * pitch) < pitch / 4))
    if kind == 5:
        return np.mod(u / pitch + phase, 1) * 2 - 1
    if kind == 6:
        return np.where(np.sin(f * u + phase) ** 2 + np.sin(f * v) ** 2 < 0.5, 1.0, -1.0)
    return np.sin(f * u + phase) * np.where(np.mod(np.floor(v / (2 * pitch)), 2) > 0, 1.0, -1.0)


PITCHES = (4.0, 5.6, 7.8, 11.0)


def _texture(label: int, draw: np.random.Generator, training: bool) -> Image.Image:
    pattern = _waves(draw, label % 8, PITCHES[label // 8] * draw.uniform(0.92, 1.08))
    a, b = (np.asarray(c, float) for c in colours(draw, 35))
    mixed = a + (b - a) * (0.5 + 0.5 * pattern * draw.uniform(0.4, 0.9))[..., None]
    light = np.linspace(-1, 1, SIDE)[:, None, None] * draw.uniform(-45, 45)
    image = Image.fromarray(np.clip(mixed + light + draw.normal(0, 26, mixed.shape), 0, 255).astype(np.uint8))
    _clutter(ImageDraw.Draw(image), draw, int(draw.integers(2, 7)))
    return image


SHAPES = ("circle", "square", "triangle", "star", "cross")
PLACES = 4


def outline(shape: str, radius: float, turn: float) -> list[tuple[float, float]]:
    if shape == "cross":
        corners = [(3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1), (-1, -3), (1, -3), (1, -1)]
        points = np.array([*corners, (3, -1)]) / 3.2
    else:
        count = {"circle": 24, "square": 4, "triangle": 3, "star": 10}[shape]
        along = np.arange(count) * 2 * np.pi / count
        reach = np.where(np.arange(count) % 2, 0.45, 1.1) if shape == "star" else np.ones(count)
        points = np.stack([reach * np.cos(along), reach * np.sin(along)], 1)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return [tuple(p) for p in points @ rotation.T * radius]


def _scene(label: int, draw: np.random.Generator, training: bool) -> Image.Image:
    """The class is the shape of the larger thing, and on which side of it the smaller one lies."""
    shape, place = SHAPES[label // PLACES], label % PLACES
    back, _ = colours(draw, 0)
    image = Image.new("RGB", (SIDE * 2, SIDE * 2), back)
    canvas = ImageDraw.Draw(image)
    large, small = draw.uniform(11, 15), draw.uniform(6, 8)
    away = np.pi / 2 * place + draw.uniform(-0.5, 0.5)
    gap = (large + small) * draw.uniform(1.0, 1.25)
    middle = SIDE - np.array([np.cos(away), np.sin(away)]) * gap / 2 + draw.uniform(-5, 5, 2)
    other = middle + np.array([np.cos(away), np.sin(away)]) * gap
    for centre, radius, form in ((middle, large, shape), (other, small, SHAPES[draw.integers(len(SHAPES))])):
        ink = colours(draw, 40)[1]
        while abs(np.mean(ink) - np.mean(back)) < 40:
            ink = colours(draw, 40)[1]
        turn = draw.uniform(0, 2 * np.pi)
        canvas.polygon([(x + centre[0], y + centre[1]) for x, y in outline(form, radius, turn)], fill=ink)
    image = image.filter(ImageFilter.GaussianBlur(draw.uniform(0.5, 1.5))).resize((SIDE, SIDE))
    _clutter(ImageDraw.Draw(image), draw, int(draw.integers(1, 5)))
    return image


def _digits(label: int, draw: np.random.Generator, training: bool) -> Image.Image:
    from sklearn.datasets import load_digits

    known = load_digits()
    mine = np.flatnonzero((known.target == label) & (np.arange(len(known.target)) % 4 > 0) == training)
    mine = mine[known.target[mine] == label]
    image = Image.fromarray((known.images[draw.choice(mine)] * 15.9).astype(np.uint8))
    return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert("RGB")


Painter = Callable[[int, np.random.Generator, bool], Image.Image]

SETS: dict[str, tuple[int, float, Painter]] = {
    "glyphs": (46, 14.0, _glyph),
    "textures": (32, 0.0, _texture),
    "scenes": (20, 10.0, _scene),
    "digits": (10, 0.0, _digits),
}
"""Classes, deviation of the noise that is added (of 255), and who paints an image."""

HELD_BACK = "scenes"
"""Looked at once, after everything was decided."""


def make(name: str, folder: Path, train: int = 9000, test: int = 3000, seed: int = 0) -> Data:
    """The data set, from `folder` if it has been made before."""
    classes, noise, paint = SETS[name]
    path = folder / f"{name}_{train}_{test}_{seed}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(seed)
        parts = {}
        for part, count in (("train", train), ("test", test)):
            labels = draw.permutation(np.arange(count) % classes)
            images = np.stack([np.asarray(paint(int(y), draw, part == "train"), np.float32) for y in labels])
            images = np.clip(images + draw.normal(0, noise, images.shape), 0, 255).astype(np.uint8)
            parts |= {f"{part}_images": images, f"{part}_labels": labels}
        with replacing(path) as whole:
            np.savez(whole, **parts)
    with np.load(path) as parts:
        pairs = [(parts[f"{p}_images"].astype(np.float32), parts[f"{p}_labels"]) for p in ("train", "test")]
    mean, deviation = pairs[0][0].mean((0, 1, 2)), pairs[0][0].std((0, 1, 2))
    scaled = [((images - mean) / deviation, labels) for images, labels in pairs]
    tensors = [
        (
            torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last),
            torch.from_numpy(labels.astype(np.int64)),
        )
        for images, labels in scaled
    ]
    return Data(name, classes, tensors[0], tensors[1])
