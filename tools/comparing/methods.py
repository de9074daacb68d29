"""The ways to prune that are compared: each makes a smaller network of about the same cost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import halp_fx
from halp_fx.latency import MeasuredLatency
from halp_fx.latency.costs import LayerCost, macs
from halp_fx.latency.interleaving import interleaved
from halp_fx.latency.layers import Layer

from .data import SIDE, Data
from .tables import WITHIN
from .training import outputs, settled

EXAMPLE = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

OVERHEAD = 3.0
"""What the overheads of a dense network's layers come to, of its MACs, where they are counted."""

TIMED = {"time": 32, "single": 1}
"""Cost -> images in the batch that is timed, channels last, on one thread."""

CALIBRATION = 1024
"""Training images that a method may look at."""


def loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


@dataclass(frozen=True)
class Overhead(LayerCost):
    """MACs, and for each layer that has any as many more: a stand-in for the time of a small network, of which no width
    changes the larger part, that is the same on every machine.

    Attributes:
        each: overhead of a layer, in MACs.
    """

    each: float
    resource = "macs"
    unit = "MACs"

    def at(self, layer: Layer, n_in: int, n_out: int) -> float:
        found = macs(layer, n_in, n_out)
        return found + self.each * bool(found)

    @classmethod
    def of(cls, coupling: halp_fx.Coupling) -> Overhead:
        """Of a dense network."""
        alone, both = (cost.total(coupling) for cost in (halp_fx.MacsCost(), cls(1.0)))
        return cls(OVERHEAD * alone / (both - alone))


@dataclass(frozen=True, slots=True)
class Task:
    """What a method is given: a trained network, its data, and the share of its cost that may stay.

    Attributes:
        cost: "macs", "overhead" (`Overhead`), or of `TIMED`: measured in turn with the dense network.
        loss: of outputs and targets.
    """

    model: nn.Module
    data: Data
    budget: float
    seed: int
    cost: str = "macs"
    loss: Callable[[Tensor, Tensor], Tensor] = loss

    @property
    def calibration(self) -> list[tuple[Tensor, Tensor]]:
        return self.data.calibration(CALIBRATION)

    @property
    def example(self) -> Tensor:
        """One image, of the size that the data has and where it is."""
        images = self.data.train[0]
        same = images.shape[1:] == EXAMPLE.shape[1:]
        return EXAMPLE.to(images.device) if same else images[:1]

    @property
    def timed(self) -> Tensor:
        """A batch as it is timed, where the data is."""
        images = torch.randn(TIMED[self.cost], *self.example.shape[1:], generator=torch.Generator().manual_seed(0))
        return images.to(self.data.train[0].device, memory_format=torch.channels_last)

    def macs(self, model: nn.Module) -> float:
        return halp_fx.MacsCost().total(halp_fx.channel_groups(model, self.example))

    @property
    def counted(self) -> LayerCost | None:
        """The cost, where it is no time."""
        if self.cost == "overhead":
            return Overhead.of(halp_fx.channel_groups(self.model, self.example))
        return None if self.cost in TIMED else halp_fx.MacsCost()

    def share(self, small: nn.Module) -> float:
        """What a network costs, of the dense one."""
        counted = self.counted
        if counted is not None:
            own, dense = (counted.total(halp_fx.channel_groups(m, self.example)) for m in (small, self.model))
            return own / dense
        _, found = interleaved([self.model, small], ((self.timed,), {}), threads=1)
        return found.share


Method = Callable[[Task], nn.Module]


def by_halp_fx(with_data: bool = True, **options: object) -> Method:
    """`halp_fx.prune` with these options, everything else at its defaults."""

    def prune(task: Task) -> nn.Module:
        given = {"data": task.calibration, "loss_fn": task.loss} if with_data else {}
        counted = task.counted
        clock = MeasuredLatency(threads=1) if counted is None else counted
        example = task.timed if counted is None else task.example
        return halp_fx.prune(task.model, task.budget, example, latency=clock, progress=False, **given, **options)

    return prune


def _narrowed(task: Task, coupling: halp_fx.Coupling, widths: Mapping[str, int]) -> nn.Module:
    """The channels with the largest weights, at these widths."""
    scores = halp_fx.score(task.model, coupling, importance="magnitude").scores
    kept = {
        g.name: tuple(np.sort(np.argsort(-scores[g.name], kind="stable")[: widths[g.name]]).tolist())
        for g in coupling.prunable
    }
    return halp_fx.rewrite(task.model, halp_fx.Plan(kept), task.example, coupling=coupling)


def _fitted(task: Task, coupling: halp_fx.Coupling, shares: Mapping[str, float]) -> dict[str, int]:
    """Widths in the proportions of `shares`, scaled until they cost the budget."""
    counted = task.counted
    dense = 0.0 if counted is None else counted.total(coupling)
    low, high = 0.0, max(1 / s for s in shares.values())
    best: dict[str, int] = {}
    for _ in range(10 if counted is None else 30):
        middle = (low + high) / 2
        widths = coupling.widths() | {
            g.name: min(g.size, max(1, round(g.size * shares[g.name] * middle))) for g in coupling.prunable
        }
        if counted is not None:  # Without the network, which is made often enough where it is timed.
            share = counted.total(coupling, widths) / dense
        else:
            share = task.share(_narrowed(task, coupling, widths))
        if share <= task.budget * (1 + WITHIN[task.cost] / 2):
            low, best = middle, widths
        else:
            high = middle
    if not best:
        raise RuntimeError("no share of the channels reaches the budget")
    return best


def uniform(task: Task) -> nn.Module:
    """All groups equally narrow."""
    coupling = halp_fx.channel_groups(task.model, task.example)
    return _narrowed(task, coupling, _fitted(task, coupling, dict.fromkeys((g.name for g in coupling.prunable), 1.0)))


TRIES = 50


def random_widths(task: Task) -> nn.Module:
    """Of random widths the best by the accuracy on the calibration images after batch norms were re-estimated
    (EagleEye, arXiv 2007.02491)."""
    coupling = halp_fx.channel_groups(task.model, task.example)
    draw = np.random.default_rng(task.seed)
    images, labels = (torch.cat(parts) for parts in zip(*task.calibration, strict=True))
    best, chosen = -1.0, task.model
    for _ in range(TRIES):
        shares = {g.name: float(draw.uniform(0.3, 1.0)) for g in coupling.prunable}
        small = settled(_narrowed(task, coupling, _fitted(task, coupling, shares)), images)
        accuracy = float((outputs(small, images).argmax(1) == labels).float().mean())
        if accuracy > best:
            best, chosen = accuracy, small
    return chosen


def torch_pruning(isomorphic: bool) -> Method:
    """Torch-Pruning's group Taylor with global ranking, in 20 steps of its own, its ratio found by bisection."""

    def prune(task: Task) -> nn.Module:
        import torch_pruning as tp

        within, low, high = WITHIN[task.cost], 0.0, 1.0
        best = None
        for _ in range(12):
            ratio = (low + high) / 2
            small = _by_torch_pruning(tp, task, ratio, isomorphic)
            share = task.share(small)
            if share <= task.budget * (1 + within):
                best, high = small, ratio
                if share >= task.budget * (1 - within):
                    break
            else:
                low = ratio
        if best is None:
            raise RuntimeError("no ratio reaches the budget")
        return best

    return prune


def _by_torch_pruning(tp: object, task: Task, ratio: float, isomorphic: bool) -> nn.Module:
    model = copy.deepcopy(task.model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1:]
    pruner = tp.pruner.BasePruner(  # type: ignore[attr-defined]
        model, task.example, importance=tp.importance.GroupTaylorImportance(), pruning_ratio=ratio,  # type: ignore[attr-defined]
        global_pruning=True, isomorphic=isomorphic, iterative_steps=1, ignored_layers=last,
    )  # fmt: skip
    model.eval()
    model.zero_grad()
    for x, y in task.calibration:
        task.loss(model(x), y).backward()
    pruner.step()
    model.zero_grad()
    return model


def healed(method: Method) -> Method:
    """What a method makes, healed on the images that a method may look at, without their labels."""

    def heal(task: Task) -> nn.Module:
        small = method(task)
        images = [x for x, _ in task.calibration]
        halp_fx.recalibrate(small, images)
        halp_fx.heal(small, task.model, images, progress=False)
        return small

    return heal


METHODS: dict[str, Method] = {
    "halp_fx": by_halp_fx(),
    "halp_fx not compensated": by_halp_fx(compensate=False),
    "halp_fx without data": by_halp_fx(with_data=False),
    "halp_fx without data, compensated": by_halp_fx(with_data=False, compensate=True),
    "halp_fx branches stay": by_halp_fx(branches=False),
    "halp_fx healed": by_halp_fx(heal=True),
    "halp_fx thorough": by_halp_fx(effort="thorough"),
    "halp_fx fisher": by_halp_fx(importance="fisher"),
    "halp_fx taylor": by_halp_fx(importance="taylor"),
    "halp_fx magnitude": by_halp_fx(with_data=False, importance="magnitude"),
    "published HALP": by_halp_fx(solver="halp", branches=True),
    "MDP": by_halp_fx(solver="mdp"),
    "Torch-Pruning": torch_pruning(isomorphic=False),
    "Torch-Pruning isomorphic": torch_pruning(isomorphic=True),
    "uniform": uniform,
    "uniform healed": healed(uniform),
    "Torch-Pruning healed": healed(torch_pruning(isomorphic=False)),
    "random best of 50": random_widths,
}

DEFAULTS: Sequence[str] = ("halp_fx", "halp_fx without data", "Torch-Pruning", "uniform")
