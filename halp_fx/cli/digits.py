"""`halp-fx demo`: the main job on data that scikit-learn ships.

Trains a small residual network on handwritten digits, prunes it to a budget of its latency measured here, fine-tunes
it, and shows accuracy and milliseconds at each point.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ..api import prune
from ..errors import HalpError
from ..extras import missing
from ..files import write_text
from ..fitting import FILE, Column, tabled
from ..latency.interleaving import interleaved
from ..model.tensors import parameter_count
from ..progress import counted, shown
from ..reporting.report import report_of

BATCH = 128
TIMED_BATCH = 64


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, as in ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A residual network for 1 x 16 x 16 images of digits."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = Block(width, width, 1)
        self.layer2 = Block(width, 2 * width, 2)
        self.layer3 = Block(2 * width, 4 * width, 2)
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer3(self.layer2(self.layer1(self.stem(x))))
        classes: torch.Tensor = self.fc(y.mean((2, 3)))
        return classes


@dataclass(frozen=True, slots=True)
class Digits:
    """Handwritten digits, enlarged to 16 x 16: a shuffled training loader and a test set."""

    train: DataLoader[tuple[torch.Tensor, ...]]
    images: torch.Tensor
    labels: torch.Tensor


def load_digits(seed: int = 0) -> Digits:
    """The 1797 digits of scikit-learn, four fifths for training.

    Raises:
        HalpError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise HalpError(missing("the demo", "scikit-learn", error, "demo")) from error
    raw = load()
    images = torch.tensor(raw.images, dtype=torch.float32, device="cpu")[:, None] / 16
    images = F.interpolate(images, size=(16, 16), mode="bilinear")
    labels = torch.tensor(raw.target, device="cpu")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed), device="cpu")
    cut = len(order) * 4 // 5
    train = TensorDataset(images[order[:cut]], labels[order[:cut]])
    loader = DataLoader(train, BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed))
    return Digits(loader, images[order[cut:]], labels[order[cut:]])


def train(model: nn.Module, digits: Digits, epochs: int, rate: float) -> nn.Module:
    """SGD with a cosine schedule; returns the model in eval mode."""
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for _ in counted(range(epochs), "train", "epochs"):
        for images, labels in digits.train:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, digits: Digits) -> float:
    """Share of the test digits that are recognised."""
    return float((model.eval()(digits.images).argmax(1) == digits.labels).float().mean())


def run(
    budget: str = "50%", output: Path | None = None, epochs: int = 10, say: Callable[[str], object] = print
) -> nn.Module:
    """The demo; writes `report.html`, `report.md` and `plan.json` to `output` and returns the fine-tuned network."""
    start = time.perf_counter()
    torch.manual_seed(0)
    digits = load_digits()
    say(f"1. train a residual network on {len(digits.train.dataset)} digits, {epochs} epochs")  # type: ignore[arg-type]
    with shown(True):
        dense = train(DigitNet(), digits, epochs, 0.1)
    before = accuracy(dense, digits)
    example = digits.images[:TIMED_BATCH]
    say(f"2. prune it to {budget} of its latency, measured here on a batch of {TIMED_BATCH}")
    small = prune(
        dense,
        budget,
        example,
        data=digits.train,
        loss_fn=F.cross_entropy,
        train_between=lambda model: train(model, digits, 1, 0.02),
    )
    pruned = accuracy(small, digits)
    say(f"3. fine-tune it, {epochs // 2} epochs")
    with shown(True):
        train(small, digits, epochs // 2, 0.05)
    tuned = accuracy(small, digits)
    _, now = interleaved((dense, small), ((example,), {}))
    report = report_of(small)
    rows = (
        ("dense", before, report.dense_ms, dense),
        ("after pruning", pruned, report.measured_ms, small),
        ("after fine-tuning", tuned, now.share * report.dense_ms, small),
    )
    table = tabled(
        (Column(""), *map(Column.number, ("accuracy", "ms", "parameters"))),
        [[at, f"{right:.2%}", f"{ms:.3f}", f"{parameter_count(network):,}"] for at, right, ms, network in rows],
    )
    text = f"{table}\n\nlatency now {now.share:.1%} of dense (budget {budget}, measured again after fine-tuning)"
    say(f"\n{text}\n\n{report.summary()}")
    if output is not None:
        write_text(output / "report.md", f"```\n{text}\n\n{report.summary(width=FILE)}\n```\n")
        write_text(output / "plan.json", report.plan.to_json())
        report.to_html(output / "report.html")
        say(f"\nwrote {output}: report.html, report.md, plan.json")
    say(f"total {time.perf_counter() - start:.0f} s\n\nyour own network: halp-fx prune --help, or docs/quickstart.md")
    return small
