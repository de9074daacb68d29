"""What recipes have in common: a network's way through the epochs, the dense network before it, and what is left."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

import halp_fx
from halp_fx.files import replacing

from . import checkpoints
from .faults import DataError
from .processes import Job

FILES = ("dense.pt", "dense_checkpoint.pt", "checkpoint.pt", "network.pt", "result.json")
"""That a run leaves in its folder."""
OF_DENSE = (
    *("data", "network", "wider", "recipe", "backbone", "images", "side", "seed", "dense_epochs", "batch"),
    *("optimizer", "rate", "momentum", "decay", "smoothing", "warmup"),
)
"""Settings that the dense network depends on."""


class Run:
    """One network's way through the epochs; the recipe sets its `optimizer` and `schedule`.

    Attributes:
        parts: attributes that a checkpoint needs, by name.
        trained: the model, or its wrapper.
        history: one row an epoch.
    """

    parts: tuple[str, ...] = ("model", "optimizer", "schedule")

    def __init__(self, data: Any, job: Job, model: nn.Module, epochs: int) -> None:
        self.data, self.job, self.epochs = data, job, epochs
        self.model = self.trained = model
        self.history: list[dict[str, float]] = []

    def groups(self, decay: float) -> list[dict[str, Any]]:
        """Parameter groups: norms and biases do not decay."""
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]

    def wrapped(self, pruner: halp_fx.Pruner | None) -> None:
        """For several processes: after the pruner was made."""
        if self.job.size > 1:
            self.trained = pruner.wrap(DistributedDataParallel) if pruner else DistributedDataParallel(self.model)

    def epoch(self, number: int) -> None:
        raise NotImplementedError

    def batches(self, number: int) -> tqdm[Any]:
        """Those of an epoch, with a bar in the first process."""
        words = f"epoch {number + 1}/{self.epochs}"
        return tqdm(self.data.epoch(number), words, self.data.steps, leave=False, disable=not self.job.leads)

    def ended(self, row: dict[str, float]) -> None:
        self.history.append(row)
        if self.job.leads:
            tqdm.write(", ".join(f"{key} {value:.4g}" for key, value in row.items()))

    def begin(self, words: str) -> None:
        """Say what the epochs that follow are of."""
        if self.job.leads and self.epochs:
            after = f", after {len(self.history)} that were done before" if self.history else ""
            tqdm.write(f"{words}: {self.epochs} epochs{after}")

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in self.parts} | {"history": self.history}

    def load(self, state: dict[str, Any]) -> None:
        for name in self.parts:
            getattr(self, name).load_state_dict(state[name])
        self.history = state["history"]


def dense(
    given: argparse.Namespace, job: Job, model: nn.Module, run: Callable[[int], Any], pruner: Callable[[Any], object]
) -> None:
    """Give the dense network its weights, unless it has some: those of the folder, or trained here and kept there.

    Args:
        run: number of epochs -> a run of this network.
        pruner: of a run; made once before any epoch, so that a budget out of reach costs none.

    Raises:
        InfeasibleError: the budget is out of reach.
    """
    path, part = given.folder / "dense.pt", given.folder / "dense_checkpoint.pt"
    if given.weights is not None:
        return
    settings = {k: str(v) for k, v in vars(given).items() if k in OF_DENSE}
    state = checkpoints.read(path, settings, "weights")
    if state is not None:
        model.load_state_dict(state["weights"])
        return
    training = run(given.dense_epochs)
    if given.dense_epochs:
        pruner(training)
    training.wrapped(None)
    for number in _epochs(training, "the dense network", part, settings):
        training.epoch(number)
    if job.leads:
        checkpoints.write(path, {"weights": model.state_dict(), "settings": settings})
        part.unlink(missing_ok=True)
    job.wait()


def epochs_left(given: argparse.Namespace, run: Run, pruner: halp_fx.Pruner) -> Iterator[int]:
    """Epochs to do, from a checkpoint of the same settings if there is one; after each there is one."""
    aside = ("folder", "workers", "tensorboard", "threads")
    settings = {k: str(v) for k, v in vars(given).items() if k not in aside}
    yield from _epochs(run, f"pruned to {given.budget}", given.folder / "checkpoint.pt", settings, pruner)


def _epochs(
    run: Run, words: str, path: Path, settings: dict[str, str], pruner: halp_fx.Pruner | None = None
) -> Iterator[int]:
    """Those that are left, with a checkpoint after each."""
    settings = settings | {"processes": str(run.job.size)}  # Steps of the schedule, and of an epoch, are of so many.
    state = checkpoints.read(path, settings, *run.parts, "history", *(["pruner"] if pruner is not None else []))
    if state is not None:
        if pruner is not None:
            pruner.load_state_dict(state["pruner"])
        run.load(state)
    run.begin(words)
    for number in range(len(run.history), run.epochs):
        yield number
        if run.job.leads:
            own = {} if pruner is None else {"pruner": pruner.state_dict()}
            checkpoints.write(path, run.state() | own | {"settings": settings})
        run.job.wait()


def left_behind(
    given: argparse.Namespace, run: Run, small: nn.Module, found: dict[str, Any], words: str
) -> dict[str, Any]:
    """Write network and result, and leave the job.

    Args:
        found: what was measured, dense and pruned.
        words: of it, to be said.
    """
    report = small.halp
    result = {
        **found, "unit": report.unit, "cost": report.measured, "dense_cost": report.dense,
        "share": report.measured / report.dense, "history": run.history,
    }  # fmt: skip
    if run.job.leads:
        checkpoints.write(given.folder / "network.pt", {"plan": report.plan.to_json(), "weights": small.state_dict()})
        with replacing(given.folder / "result.json") as told:
            told.write_text(json.dumps(result, indent=1))
        print(report.summary())
        print(f"{words} at {result['share']:.1%} of the cost")
    run.job.leave()
    return result


def precision_told(found: dict[str, float] | None) -> str:
    """Mean average precision at an overlap of 0.5, and the mean over 0.5 to 0.95, in words."""
    return f"mAP {found['map_50']:.1%} / {found['map']:.1%}" if found else "not trained"


def started(
    main: Callable[[], Any], then: str = "the same command goes on after the last epoch that it finished"
) -> None:
    """Run a recipe from its command line; errors and interrupts are said in a line.

    Args:
        then: what to do after an interrupt.
    """
    try:
        main()
    except KeyboardInterrupt:
        print(f"stopped: {then}", file=sys.stderr)
        sys.exit(130)
    except (halp_fx.HalpError, DataError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
