"""A detector of ultralytics, pruned inside its own trainer.

Import it after `offline()`: ultralytics looks for updates, and installs what it misses, unless it is told not to.
"""

from __future__ import annotations

import copy
import os
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import halp_fx
from halp_fx.pruning.goals import make_goals

from .faults import reading


def offline() -> None:
    """Let ultralytics neither look for updates nor install anything."""
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")


def classes_of(data: str) -> int:
    """How many classes a data set tells apart, by its yaml file.

    Raises:
        DataError: ultralytics cannot use it.
    """
    from ultralytics.data.utils import check_det_dataset

    with reading(data):
        return len(check_det_dataset(data)["names"])


def detector(source: str, classes: int) -> tuple[nn.Module, int | None]:
    """A network of a yaml file, or in a .pt file, as a training for so many classes begins with it.

    Returns:
        It, and how many classes the one in the file knows; None: it has learned nothing yet.

    Raises:
        SystemExit: there is none, or it is no detector of `ultralytics.YOLO`, or a pruned one of other classes.
    """
    from ultralytics import YOLO

    try:
        yolo = YOLO(source)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, SyntaxError) as error:
        raise SystemExit(f"{source} is no network of ultralytics.YOLO: {type(error).__name__}: {error}") from error
    if yolo.task != "detect":
        raise SystemExit(
            f"{source} is for the task {yolo.task!r}, and this script prunes detectors: for others, use "
            "recipes.yolo.pruned_trainer(…, base=…) with ultralytics' trainer of that task"
        )
    network: Any = yolo.model
    known = len(network.names) if yolo.ckpt else None
    if _is_cut(network):
        _check_classes(network, classes, "the data")
    else:
        network = type(network)(copy.deepcopy(network.yaml), nc=classes, verbose=False)
    return network.float().requires_grad_(True), known


def pruned_trainer(budget: Any = None, *, base: Any = None, share: float = 0.4, steps: int = 12, **options: Any) -> Any:
    """A trainer of ultralytics that prunes, and that leaves a pruned network as it is.

        yolo = YOLO("dense.pt")
        yolo.train(trainer=pruned_trainer(0.5), data="data.yaml", epochs=100)  # the model is pruned, and in best.pt
        YOLO("best.pt").train(trainer=pruned_trainer(), data="data.yaml", epochs=20)  # trained further

    What has to change of `ultralytics.engine.trainer`, and why:

    * `get_model` builds the network of its yaml file and loads what fits, silently: a pruned one would get dense widths
      and random weights. One whose tensors have other shapes than its yaml file says is taken as it is. (A dense one
      of other classes is built for those of the data, as ever.)
    * `resume_training`, the last thing before the loop, when optimizer and average are there: the pruner is made, of
      the network inside of what `compile=True` put around it. A run that is gone on with has been pruned, or it was
      one of another trainer, and is pruned in the epochs that are left.
    * `optimizer_step`: the pruner's step comes before clipping. The average is of the same shape (`averages`), and the
      list that it keeps of pairs of tensors is dropped after a cut. The best fitness counts from the last step of
      pruning on, and patience, too: `best.pt` would be the dense network otherwise, and training end in between.
    * `save_model` halves and pickles the average. Nothing is saved before the last step of pruning. What halp_fx notes
      in a network is not pickled, so that the file loads where halp_fx is not installed. `C2f` and its kin split by
      halves in training, and by their attribute `c` when they are exported: it is set to what the halves are.
    * `final_eval`: the network is measured; if training stopped before the last step of pruning, it is taken.

    For one process: ultralytics' several are started anew, without what was built here.

    Args:
        budget: as for `halp_fx.Pruner`; None: nothing is pruned.
        base: the trainer of the network's task; None: that of detectors, `DetectionTrainer`.
        share: of the optimizer's steps, in which the network is pruned.
        steps: of pruning.
        options: for `halp_fx.Pruner` (`latency`, `ignore`, `round_to`, …), but for `mode`.

    Returns:
        A class; its instances have the attribute `pruner`.

    Raises:
        halp_fx.TrainingError: masks are asked for; later, what trains the network is not made for its task, or takes
            several processes, or a teacher (`distill_model`).
        halp_fx.BudgetError: the budget is malformed.
    """
    if options.get("mode", "shrink") != "shrink":
        raise halp_fx.TrainingError(
            f"mode={options['mode']!r}: ultralytics writes best.pt while it trains, and masks are cut after that, so "
            "its files have the dense widths; leave mode out"
        )
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.utils import DEFAULT_CFG
    from ultralytics.utils.torch_utils import unwrap_model

    base = base or DetectionTrainer

    if budget is not None:
        make_goals(budget, options.get("latency"))

    class PrunedTrainer(base):  # type: ignore[misc, valid-type]
        pruner: halp_fx.Pruner | None = None

        def __init__(self, cfg: Any = DEFAULT_CFG, overrides: Any = None, _callbacks: Any = None) -> None:
            task = (overrides or {}).get("task") or "detect"
            if base is DetectionTrainer and task != "detect":
                raise halp_fx.TrainingError(
                    f"the network is of the task {task!r}, and {base.__name__} trains detectors: pass ultralytics' "
                    "trainer of that task, pruned_trainer(…, base=…)"
                )
            super().__init__(cfg, overrides, _callbacks)
            if self.ddp:
                raise halp_fx.TrainingError(
                    f"device={self.args.device!r}: ultralytics starts a process for each, without what was built here; "
                    "pass one device"
                )
            if budget is not None and getattr(self.args, "distill_model", None):
                raise halp_fx.TrainingError(
                    "distill_model compares features of the widths that the network begins with: prune without it, "
                    "then train the pruned network on"
                )

        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
            if weights is None or not _is_cut(weights):
                return super().get_model(cfg=cfg, weights=weights, verbose=verbose)
            _check_classes(weights, self.data["nc"], self.args.data)
            return weights.float().requires_grad_(True)

        def resume_training(self, ckpt: Any) -> None:
            super().resume_training(ckpt)
            network = unwrap_model(self.model)
            if budget is None or (self.resume and _is_cut(network)):
                return
            total = max(1, len(self.train_loader) * (self.epochs - self.start_epoch) // self.accumulate)
            taken = max(1, min(steps, int(share * total)))
            example = torch.rand(1, 3, self.args.imgsz, self.args.imgsz, device=self.device)
            self.pruner = halp_fx.Pruner(
                network, budget, example, optimizer=self.optimizer, averages=[SimpleNamespace(module=self.ema.ema)],
                steps=taken, interval=max(1, int(share * total / taken)), **options,
            )  # fmt: skip

        def optimizer_step(self) -> None:
            if self.pruner is not None and not self.pruner.done:
                if self.pruner.step(self.scaler.get_scale()):
                    self.ema._pairs = None
                self.best_fitness, self.stopper.best_fitness, self.stopper.best_epoch = None, 0.0, self.epoch
            super().optimizer_step()

        def save_model(self) -> bool:
            if self.pruner is not None and not self.pruner.done:
                return False
            _forget(self.ema.ema)
            _tell_halves(self.ema.ema)
            return bool(super().save_model())

        def final_eval(self) -> None:
            if self.pruner is not None:
                early = not self.pruner.done
                self.pruner.finish()
                if early:
                    self.best_fitness = self.fitness
                    self.save_model()
            super().final_eval()

    return PrunedTrainer


def _check_classes(pruned: Any, count: int, data: str) -> None:
    """Raises SystemExit if a pruned network tells others apart than the data."""
    if len(pruned.names) != count:
        raise SystemExit(
            f"the network is pruned and tells {len(pruned.names)} classes apart, {data} has {count}: train the dense "
            "network on these classes, then prune it"
        )


def _is_cut(network: Any) -> bool:
    """Whether tensors have other shapes than the yaml file of a network says, for as many classes."""
    built = type(network)(copy.deepcopy(network.yaml), verbose=False)
    return _shapes(network) != _shapes(built)


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in network.state_dict().items()}


def _forget(network: nn.Module) -> None:
    """Take from a network what is unpickled with halp_fx alone: where it comes from, and the hook that says so."""
    for name in ("halp", "halp_origin"):
        vars(network).pop(name, None)
    hooks = network._load_state_dict_pre_hooks
    for key, hook in list(hooks.items()):
        if getattr(hook.hook, "__module__", "").startswith("halp_fx."):
            del hooks[key]


def _tell_halves(network: nn.Module) -> None:
    for module in network.modules():
        if hasattr(module, "forward_split"):
            module.c = module.cv1.conv.out_channels // 2
