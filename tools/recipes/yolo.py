"""A detector of ultralytics, pruned inside its own trainer.

Import it after `offline()`: ultralytics looks for updates, and installs what it misses, unless it is told not to.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import halp_fx


def offline() -> None:
    """Let ultralytics neither look for updates nor install anything."""
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")


def pruned_trainer(budget: Any = None, *, base: Any = None, share: float = 0.4, steps: int = 12, **options: Any) -> Any:
    """A trainer of ultralytics that prunes, and that leaves a pruned network as it is.

        yolo = YOLO("dense.pt")
        yolo.train(trainer=pruned_trainer(0.5), data="data.yaml", epochs=100)  # the model is pruned, and in best.pt
        YOLO("best.pt").train(trainer=pruned_trainer(), data="data.yaml", epochs=20)  # trained further

    What has to change of `ultralytics.engine.trainer`, and why:

    * `get_model` builds the network of its yaml file and loads what fits, silently: a pruned one would get dense widths
      and random weights. One whose tensors have other shapes than its yaml file says is taken as it is.
    * `resume_training`, the last thing before the loop, when optimizer and average are there: the pruner is made.
    * `optimizer_step`: the pruner's step comes before clipping. The average is of the same shape (`averages`), and the
      list that it keeps of pairs of tensors is dropped after a cut.
    * `save_model` halves and pickles the average. Nothing is saved before the last step of pruning, and the best
      fitness counts from there on: `best.pt` would be the dense network otherwise. What halp_fx notes in a network is
      not pickled, so that the file loads where halp_fx is not installed. `C2f` and its kin split by halves in training,
      and by their attribute `c` when they are exported: it is set to what the halves are.
    * `final_eval`: the network is measured; if training stopped before the last step of pruning, it is taken.

    For one process: ultralytics' several are started anew, without what was built here.

    Args:
        budget: as for `halp_fx.Pruner`; None: nothing is pruned.
        base: the trainer; None: `ultralytics.models.yolo.detect.DetectionTrainer`.
        share: of the optimizer's steps, in which the network is pruned.
        steps: of pruning.
        options: for `halp_fx.Pruner` (`latency`, `ignore`, `round_to`, …), but for `mode`.

    Returns:
        A class; its instances have the attribute `pruner`.

    Raises:
        halp_fx.TrainingError: masks are asked for.
    """
    if options.get("mode", "shrink") != "shrink":
        raise halp_fx.TrainingError(
            f"mode={options['mode']!r}: ultralytics writes best.pt while it trains, and masks are cut after that, so "
            "its files have the dense widths; leave mode out"
        )
    if base is None:
        from ultralytics.models.yolo.detect import DetectionTrainer as base

    class PrunedTrainer(base):  # type: ignore[misc, valid-type]
        pruner: halp_fx.Pruner | None = None

        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
            dense = super().get_model(cfg=cfg, weights=None, verbose=verbose)
            if weights is None or _shapes(weights) == _shapes(dense):
                return super().get_model(cfg=cfg, weights=weights, verbose=False)
            if len(weights.names) != self.data["nc"]:
                raise SystemExit(
                    f"the network is pruned and tells {len(weights.names)} classes apart, {self.args.data} has "
                    f"{self.data['nc']}: train the dense network on these classes, then prune it"
                )
            return weights.float().requires_grad_(True)

        def resume_training(self, ckpt: Any) -> None:
            super().resume_training(ckpt)
            if budget is None or (ckpt is not None and self.resume):
                return  # What is saved has been pruned.
            total = max(1, len(self.train_loader) * self.epochs // self.accumulate)
            taken = max(1, min(steps, int(share * total)))
            example = torch.rand(1, 3, self.args.imgsz, self.args.imgsz, device=self.device)
            self.pruner = halp_fx.Pruner(
                self.model, budget, example, optimizer=self.optimizer, averages=[SimpleNamespace(module=self.ema.ema)],
                steps=taken, interval=max(1, int(share * total / taken)), **options,
            )  # fmt: skip

        def optimizer_step(self) -> None:
            if self.pruner is not None and self.pruner.step(self.scaler.get_scale()):
                self.ema._pairs = None
            super().optimizer_step()

        def save_model(self) -> bool:
            if self.pruner is not None and not self.pruner.done:
                self.best_fitness, self.stopper.best_fitness, self.stopper.best_epoch = None, 0.0, self.epoch
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
