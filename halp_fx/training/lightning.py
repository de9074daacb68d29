"""lightning: a `Pruner` as a callback of Lightning's Trainer (the extra `lightning`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import TrainingError
from ..extras import missing
from ..pruning.budgets import BudgetLike
from .checkpoint import cut_in
from .pruner import Pruner

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle
except ImportError as error:
    raise TrainingError(missing("this callback", "lightning", error, "lightning")) from error

AVERAGING = {"WeightAveraging", "StochasticWeightAveraging"}
"""By name: not every version of Lightning has both."""


class PrunerCallback(Callback):
    """Prunes what a LightningModule trains; `fit` returns with the smaller network in the same objects.

        callback = PrunerCallback(0.5, images[:1], network="net", latency="macs")
        lightning.Trainer(callbacks=[callback]).fit(module, loader)
        callback.pruner.model.halp  # the report

    The pruner's step comes in `on_before_optimizer_step`, where gradients are unscaled and not yet clipped.

    Attributes:
        pruner: None before training starts.
    """

    pruner: Pruner | None = None
    _handle: RemovableHandle | None = None

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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before Lightning loads a checkpoint, whose own message would be a page of shapes."""
        if stage == "fit":
            self._handle = pl_module.register_load_state_dict_pre_hook(_explain)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises TrainingError if there is not one optimizer, or no such network, or shapes may not change."""
        if self._handle is not None:
            self._handle.remove()
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
        try:
            model = pl_module.get_submodule(self._network)
        except AttributeError as error:
            raise TrainingError(f"network={self._network!r}: {error}") from error
        with _alone(pl_module):
            self.pruner = Pruner(model, self._budget, self._examples, optimizer=trainer.optimizers[0], **self._options)
            if self._stopped:
                self.pruner.load_state_dict(self._stopped)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self.pruner is not None:
            with _alone(pl_module):
                self.pruner.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.pruner is not None:
            with _alone(pl_module):
                self.pruner.finish()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From a checkpoint of its last step there is nothing left to train, and Lightning starts no training: what is
        masked is cut here."""
        if self.pruner is None and self._stopped:
            self.on_train_start(trainer, pl_module)
            self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints. With mode="mask" a run goes on from one (`fit(ckpt_path=…)`); a network that was
        cut does not fit the dense one, into which Lightning loads it."""
        return self.pruner.state_dict() if self.pruner is not None else self._stopped

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._stopped = state_dict


def _explain(module: LightningModule, state: Mapping[str, Any], *_: Any) -> None:
    """Raises TrainingError if a checkpoint's network was cut."""
    here = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    cut = cut_in(state, here)
    if cut:
        raise TrainingError(
            f"the checkpoint holds a network that was cut ({cut[0]} has shape {tuple(state[cut[0]].shape)}, and "
            f"{here[cut[0]]} here), and Lightning loads it into the dense one: a run that is to go on needs "
            "mode='mask' from its start. To train this one on, cut the network by the plan in the checkpoint "
            "(callbacks, 'plan': halp_fx.Plan.from_json, halp_fx.rewrite), load its weights, and leave this callback "
            "out"
        )


@contextmanager
def _alone(module: LightningModule) -> Iterator[None]:
    """Without its trainer, which would be copied along with the module."""
    trainer = module.trainer
    module.trainer = None
    try:
        yield
    finally:
        module.trainer = trainer
