"""lightning: a `Pruner` as a callback of Lightning's Trainer (the extra `lightning`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from ..errors import TrainingError
from ..extras import missing
from ..model.copying import copied
from ..model.tensors import state_shapes
from ..pruning.budgets import BudgetLike
from ..types import Plan
from .checkpoint import apart_from
from .pruner import Pruner
from .refitting import adopt, cut_ahead, fit_to

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from torch import nn
    from torch.optim import Optimizer
except ImportError as error:
    raise TrainingError(missing("this callback", "lightning", error, "lightning")) from error

logger = logging.getLogger("halp_fx")

AVERAGING = {"WeightAveraging", "StochasticWeightAveraging"}
"""By name: not every version of Lightning has both."""


class PrunerCallback(Callback):
    """Prunes what a LightningModule trains; `fit` returns with the smaller network in the same objects.

        callback = PrunerCallback(0.5, images[:1], network="net", latency="macs")
        lightning.Trainer(callbacks=[callback]).fit(module, loader)
        callback.pruner.model.halp  # the report

    The pruner's step comes in `on_before_optimizer_step`, where gradients are unscaled and not yet clipped. What is
    the best, for `ModelCheckpoint` and `EarlyStopping`, counts from the last step of pruning on. Checkpoints of the
    pruned network are loaded (`fit`, `validate`, `test`, `predict` with `ckpt_path=`), into the dense one, too, which
    is cut first.

    Attributes:
        pruner: None before training starts.
    """

    pruner: Pruner | None = None
    _dense: nn.Module | None = None
    """A copy of the network before it was cut for a checkpoint; training that goes on is pruned from it."""

    def __init__(self, budget: BudgetLike, example_inputs: Any = None, *, network: str = "", **options: Any) -> None:
        """Args:
            budget, example_inputs, options: as for `Pruner`; the optimizer is that of the training.
            network: the attribute of the LightningModule that is pruned; "": the module itself, by its `forward`.

        Raises:
            TrainingError: an option that does not go with Lightning.
        """
        if options.get("regrow"):
            raise TrainingError(
                "regrow=True needs the forward before the optimizer's step, and Lightning runs it inside: write the "
                "loop yourself, or leave regrow out"
            )
        self._budget, self._examples, self._network, self._options = budget, example_inputs, network, options
        self._stopped: dict[str, Any] = {}
        self._fresh: list[tuple[ModelCheckpoint | EarlyStopping, dict[str, Any]]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before Lightning loads a checkpoint."""
        _free(pl_module)
        loading = pl_module.on_load_checkpoint

        def fitting(checkpoint: dict[str, Any]) -> None:
            loading(checkpoint)
            self._fit(pl_module, checkpoint, stage)

        # Lightning asks the module alone while weights can still be changed; callbacks come after.
        vars(pl_module)["on_load_checkpoint"] = fitting
        if stage == "fit":
            known = [c for c in getattr(trainer, "callbacks", ()) if isinstance(c, ModelCheckpoint | EarlyStopping)]
            self._fresh = [(callback, deepcopy(callback.state_dict())) for callback in known]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        _free(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises TrainingError if there is not one optimizer, or no such network, or shapes may not change."""
        if len(trainer.optimizers) != 1:
            raise TrainingError(f"this callback prunes for one optimizer, and there are {len(trainer.optimizers)}")
        if trainer.world_size > 1 and self._options.get("mode") != "mask":
            raise TrainingError(
                f"Lightning has wrapped the network for {trainer.world_size} processes, so its shapes must stay until "
                "the end: pass mode='mask'"
            )
        averaging = [
            c for c in getattr(trainer, "callbacks", ()) if AVERAGING & {kind.__name__ for kind in type(c).__mro__}
        ]
        if averaging:
            raise TrainingError(
                f"{type(averaging[0]).__name__} keeps an average of the dense network, and puts it in place of the "
                "pruned one: leave it out, or write the loop yourself, with Pruner(..., averages=[ema])"
            )
        _free(pl_module)  # The hook would be copied with the module.
        model = self._pruned(pl_module)
        with _alone(pl_module):
            optimizer: Any = trainer.optimizers[0]
            if self._dense is None:
                self.pruner = self._made(model, optimizer)
            else:
                self.pruner = self._made(self._dense.to(pl_module.device), None)
                adopt(self.pruner, model, optimizer)
            self._dense = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self.pruner is not None:
            done = self.pruner.done
            with _alone(pl_module):
                self.pruner.step()
            if not done:
                self._forget_best()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.pruner is not None:
            before = self.pruner.plan
            with _alone(pl_module):
                self.pruner.finish()
            if self.pruner.plan != before:
                self._forget_best()
                logger.warning(
                    "training ended before the last step of pruning, so no checkpoint holds the network that is left: "
                    "trainer.save_checkpoint(path) writes one"
                )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From a checkpoint of its last step there is nothing left to train, and Lightning starts no training: what is
        masked is cut here."""
        if self.pruner is None and self._stopped:
            self.on_train_start(trainer, pl_module)
            self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints: what the network in them is cut by."""
        return self.pruner.state_dict() if self.pruner is not None else self._stopped

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._stopped = state_dict

    def _pruned(self, module: LightningModule) -> nn.Module:
        try:
            return module.get_submodule(self._network)
        except AttributeError as error:
            raise TrainingError(f"network={self._network!r}: {error}") from error

    def _made(self, model: nn.Module, optimizer: Optimizer | None) -> Pruner:
        made = Pruner(model, self._budget, self._examples, optimizer=optimizer, **self._options)
        if self._stopped:
            made.load_state_dict(self._stopped)
        return made

    def _fit(self, module: LightningModule, checkpoint: dict[str, Any], stage: str) -> None:
        """Let a checkpoint's network and the module's have the same widths.

        Raises:
            TrainingError: the checkpoint is of before the last step of pruning, or masks are to go on from a cut
                network.
        """
        state, held = checkpoint["state_dict"], checkpoint.get("callbacks", {}).get(self.state_key) or {}
        here = state_shapes(module)
        apart = apart_from(state, here)
        if not apart:
            return
        if self.pruner is not None:
            fit_to(self.pruner, state, f"{self._network}." if self._network else "", held)
            return
        plan = Plan.from_json(held["plan"]) if held else None
        if not plan:
            return
        if stage == "fit" and self._options.get("mode") == "mask":
            raise TrainingError(
                f"the checkpoint holds a network that was cut ({apart[0]} has another shape), after masks were: there "
                "is nothing left to prune. Pass mode='shrink', or leave this callback out and cut the network first "
                "(callbacks, 'plan' in the checkpoint: halp_fx.Plan.from_json, halp_fx.rewrite)"
            )
        model = self._pruned(module)
        with _alone(module):
            if stage == "fit":
                self._dense = copied(model)
            cut_ahead(model, self._examples, self._options.get("ignore", ()), plan)

    def _forget_best(self) -> None:
        """The best of now is of a network that is no more; its files stay."""
        for callback, fresh in self._fresh:
            state = deepcopy(fresh)
            if isinstance(callback, ModelCheckpoint):
                state |= {"dirpath": callback.dirpath, "last_model_path": callback.last_model_path}
            callback.load_state_dict(state)


def _free(module: LightningModule) -> None:
    """Take away what `setup` put on a module."""
    if getattr(vars(module).get("on_load_checkpoint"), "__module__", None) == __name__:
        del vars(module)["on_load_checkpoint"]


@contextmanager
def _alone(module: LightningModule) -> Iterator[None]:
    """Without its trainer, which would be copied along with the module."""
    trainer = module.trainer
    module.trainer = None
    try:
        yield
    finally:
        module.trainer = trainer
