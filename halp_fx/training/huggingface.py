"""huggingface: a `Pruner` as a callback of the Trainer of transformers (the extra `huggingface`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..errors import TrainingError
from ..extras import missing
from ..model.tensors import state_shapes
from ..pruning.budgets import BudgetLike
from .checkpoint import cut_in
from .pruner import Pruner

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise TrainingError(missing("this callback", "transformers", error, "huggingface")) from error

_FROM_START = "a Trainer's checkpoint does not know what was pruned: train from the start"


class PrunerCallback(TrainerCallback):
    """Prunes the model of a Trainer; `train` returns with the smaller network in the same object.

        callback = PrunerCallback(0.5, {"pixel_values": images[:1]}, latency="macs")
        Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
        model.halp  # the report
        halp_fx.save(model, "small.safetensors")  # save_pretrained writes a config with the dense widths

    The pruner's step comes right before the optimizer's, with gradients that are clipped, if `max_grad_norm` is set.
    The best model (`load_best_model_at_end`) is the best from the last step of pruning on.

    Attributes:
        pruner: None before training starts.
    """

    pruner: Pruner | None = None
    _over = False

    def __init__(self, budget: BudgetLike, example_inputs: Any = None, **options: Any) -> None:
        """Args:
        budget, example_inputs, options: as for `Pruner`; the optimizer is that of the training.
        """
        self._budget, self._examples, self._options = budget, example_inputs, options
        self._handle: RemovableHandle | None = None
        self._guard: RemovableHandle | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A checkpoint is loaded before training begins, and of a network that was cut it does not fit."""
        self._guard = kwargs["model"].register_load_state_dict_pre_hook(_explain)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raises TrainingError if shapes may not change, or training goes on from a checkpoint."""
        if self._guard is not None:
            self._guard.remove()
        model: nn.Module = kwargs["model"]
        wrapped: Any = kwargs["optimizer"]
        optimizer: Optimizer = getattr(wrapped, "optimizer", wrapped)  # accelerate's is around it.
        if args.world_size > 1 and self._options.get("mode") != "mask":
            raise TrainingError(
                f"the network is wrapped for {args.world_size} processes, so its shapes must stay until the end: pass "
                "mode='mask'"
            )
        if state.global_step:
            raise TrainingError(_FROM_START)
        self.pruner = Pruner(model, self._budget, self._examples, optimizer=optimizer, **self._options)
        self._handle = self.pruner.attach()
        self._over = self.pruner.done

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """What was the best so far is of a network that is no more; its files stay."""
        if self.pruner is not None and not self._over:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
            self._over = self.pruner.done

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.pruner is not None and self._handle is not None:
            self._handle.remove()
            self.pruner.finish()


def _explain(model: nn.Module, state: Mapping[str, Any], *_: Any) -> None:
    """Raises TrainingError if a checkpoint's network was cut."""
    if cut_in(state, state_shapes(model)):
        raise TrainingError(_FROM_START)
