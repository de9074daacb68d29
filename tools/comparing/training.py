"""One recipe for all: what is compared is how a network was pruned."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .data import Data, batches

BATCH = 128


Prepare = Callable[[nn.Module, torch.optim.Optimizer], Callable[[], object]]
"""Given the model and its optimizer, returns what is to be called after every backward."""


def train(
    model: nn.Module, data: Data, epochs: int, rate: float, seed: int, prepare: Prepare | None = None
) -> nn.Module:
    """A cosine from `rate` to 0 after a short warm-up, in place; left in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model.train().to(memory_format=torch.channels_last)
    images, labels = data.train
    optimizer = descent(model, rate, not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()))
    schedule = cosine(optimizer, epochs * (len(images) // BATCH))
    within = prepare(model, optimizer) if prepare is not None else lambda: None
    for _ in range(epochs):
        for x, y in batches(images, labels, BATCH, generator):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x), y).backward()
            within()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def cosine(optimizer: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.LRScheduler:
    """From the rate to 0 in so many steps, after a short warm-up."""
    warm = max(1, total // 20)

    def share(step: int) -> float:
        return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * min(step / total, 1)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def descent(model: nn.Module, rate: float, adam: bool) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW at 0.03 of the rate: SGD hardly trains networks without batch norms."""
    if adam:
        return torch.optim.AdamW(model.parameters(), lr=0.03 * rate, weight_decay=0.05)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.SGD(
        [{"params": matrices, "weight_decay": 5e-4}, {"params": others}], lr=rate, momentum=0.9, nesterov=True
    )


@torch.inference_mode()
def outputs(model: nn.Module, images: Tensor, size: int = 500) -> Tensor:
    model.eval()
    return torch.cat([model(images[i : i + size]) for i in range(0, len(images), size)])


def accuracy(model: nn.Module, data: Data) -> float:
    """Share of the test images that are recognised."""
    images, labels = data.test
    return float((outputs(model, images).argmax(1) == labels).float().mean())


def settled(model: nn.Module, images: Tensor, size: int = 64) -> nn.Module:
    """Batch norms re-estimated as the plain mean over these images, for the judgement before any training: by the
    script's own few lines, so that every method is judged by the same."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for i in range(0, len(images), size):
            model(images[i : i + size])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return model
