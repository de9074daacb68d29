"""The loss of a network on a batch: `loss_fn` or `loss` as the caller wrote them -> a scalar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from ..arguments import a_kind
from ..errors import HalpError, SaliencyError, words_of
from ..internals import tree_leaves, tree_map
from ..model.inputs import own
from ..model.tensors import dtype_name

LossFn = Callable[[Any, Any], torch.Tensor]
"""(output, target) -> scalar."""

Loss = Callable[[nn.Module, Any], Any]
"""(model, batch) -> scalar, or a mapping or sequence of scalars that are added up."""

REMEDY = "pass loss=lambda model, batch: … (a scalar, or a dict of losses that are added up) instead of loss_fn"


_CALLED = (
    ". With loss_fn, the model is called with its first item (a tuple or list as positional, a dict as keyword "
    f"arguments) and loss_fn with the output and the second item; otherwise {REMEDY}. A loss is called with the model "
    "and the batch"
)

NO_BATCHES = (
    "data has no batches: pass a DataLoader or a list of batches that is not empty (a generator can be read once only)"
)


def check_data(data: Any) -> None:
    """Refuse what is no batches though it can be read like them.

    Raises:
        SaliencyError: says what it is, and what to pass.
    """
    wanted = "pass batches, such as a DataLoader or a list of tensors"
    # Not asked for an iterator to see: a DataLoader starts its workers then.
    readable = data is None or hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    # A Sequential can be read: it has layers.
    if not readable or isinstance(data, str | bytes | os.PathLike | Mapping | nn.Module):
        raise SaliencyError(f"data is {described(data)}: {wanted}")
    if isinstance(data, torch.Tensor | np.ndarray):
        batch = "data" if isinstance(data, torch.Tensor) else "torch.from_numpy(data)"
        raise SaliencyError(f"data is {described(data)}, whose items are samples: {wanted}, here [{batch}]")
    pair = isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(t, torch.Tensor) for t in data)
    if pair and data[0].ndim != data[1].ndim:
        raise SaliencyError(f"data is {described(data)}, one batch of inputs and targets: pass a list of such pairs")


def check_loss(data: Any, loss_fn: LossFn | None, loss: Loss | None) -> None:
    """At most one loss, and none without data.

    Raises:
        SaliencyError: a loss without data, both losses, or something that cannot be called.
    """
    if loss_fn is not None and loss is not None:
        raise SaliencyError("both loss_fn (output, target) and loss (model, batch) were passed: pass one of them")
    given, name = loss if loss is not None else loss_fn, passed_as(loss_fn, loss)
    if data is None and given is not None:
        raise SaliencyError(f"{name} without data: pass data, batches of (input, target)")
    if given is not None and (not callable(given) or isinstance(given, type)):
        raise SaliencyError(f"{name} is {a_kind(given)}, not a function or an instance that can be called")


def passed_as(loss_fn: LossFn | None, loss: Loss | None) -> str:
    """As which argument a loss was passed; "" if there is none."""
    return "loss" if loss is not None else "loss_fn" if loss_fn is not None else ""


def loss_of(loss_fn: LossFn | None, loss: Loss | None) -> Loss:
    """The loss as a function of model and batch."""
    if loss is not None:
        return loss
    assert loss_fn is not None

    def of_pair(model: nn.Module, batch: Any) -> torch.Tensor:
        inputs, target = pair_of(batch)
        return loss_fn(called(model, inputs), target)

    return of_pair


def called(model: nn.Module, inputs: Any) -> Any:
    """The model's output: a tuple or list is positional, a dict keyword arguments."""
    inputs = own(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*(inputs if isinstance(inputs, tuple | list) else (inputs,)))


def batch_loss(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], batch: Any, number: int, loss: Loss
) -> torch.Tensor:
    """The loss of one batch, with `tensors` in place of the model's by name.

    Raises:
        SaliencyError: the batch does not fit, the forward or the loss fails, or the loss is no scalar.
    """
    try:
        value = functional_call(_Lossy(model, loss), {f"network.{n}": t for n, t in tensors.items()}, (batch,))
    except (HalpError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise SaliencyError(
            f"the loss of batch {number} of data failed: {type(error).__name__}: {words_of(error)}\n"
            f"The batch is {described(batch)}{_hint(batch, model) or _CALLED}"
        ) from error
    return total(value)


@contextmanager
def differentiating(what: str) -> Iterator[None]:
    """While gradients are computed.

    Args:
        what: of what, in words.

    Raises:
        SaliencyError: that fails, though the forward ran.
    """
    try:
        yield
    except (HalpError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise SaliencyError(
            f"the gradients of {what} cannot be computed: {type(error).__name__}: {words_of(error)}\n"
            "The network must run backward as in training: a layer that writes over what its backward needs (an "
            "activation with inplace=True) must not. Without data no gradients are asked for"
        ) from error


class _Lossy(nn.Module):
    """A network with a loss that may call it as it likes, so that `functional_call` reaches both."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network = network
        self.loss = loss

    def forward(self, batch: Any) -> Any:
        return self.loss(self.network, own(batch))


def pair_of(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    raise SaliencyError(f"data yields {described(batch)}; loss_fn needs (input, target) batches: {REMEDY}")


def total(value: Any) -> torch.Tensor:
    """A loss as one scalar.

    Raises:
        SaliencyError: it is none, and no dict or list of scalars.
    """
    parts = list(value.values()) if isinstance(value, Mapping) else value
    parts = list(parts) if isinstance(parts, tuple | list) else [parts]
    if not parts or any(not isinstance(p, torch.Tensor) or p.numel() != 1 for p in parts):
        remedy = ""
        if isinstance(value, torch.Tensor):
            remedy = ": take the mean of it over the samples"
        elif isinstance(value, float | int | np.generic):
            remedy = ": leave out item() or float()"
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) and "boxes" in v for v in value):
            remedy = (
                ": these are detections; torchvision's detectors return losses in train mode: model.train()(*batch)"
            )
        raise SaliencyError(
            f"the loss must be a scalar tensor, or a dict of them to be added up, not {described(value)}{remedy}"
        )
    return torch.stack([p.reshape(()) for p in parts]).sum() if len(parts) > 1 else parts[0].reshape(())


def described(value: Any, depth: int = 0) -> str:
    """What a batch is, in a few words: containers, and the shapes in them."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, Mapping):
        keys = ", ".join(repr(k) for k in list(value)[:6])
        return f"a {type(value).__name__} with the keys {keys}"
    if isinstance(value, tuple | list):
        more = ", …" if len(value) > 4 else ""
        items = "" if depth > 1 else f" ({', '.join(described(v, depth + 1) for v in value[:4])}{more})"
        return f"a {type(value).__name__} of {len(value)}{items}"
    return a_kind(value)


def inputs_of(batch: Any) -> Any:
    """What the model is called with: of a pair the first item, else the batch."""
    return batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch


def _hint(batch: Any, model: nn.Module) -> str:
    """What is odd about a batch that a model could not be called with, and the remedy; "" if nothing is."""
    given = inputs_of(batch)
    target = None if given is batch else batch[1]
    image = (
        isinstance(given, torch.Tensor) and given.ndim == 3 and any(isinstance(m, nn.Conv2d) for m in model.modules())
    )
    if image or isinstance(target, int) or (isinstance(target, torch.Tensor) and target.ndim == 0):
        return ": one sample of a data set? Pass a torch.utils.data.DataLoader of it"
    leaves = tree_leaves(batch)
    if any(isinstance(leaf, np.ndarray) for leaf in leaves):
        return ". It holds arrays of numpy: torch.from_numpy makes tensors of them"
    numbers = next((t.dtype for t in tree_leaves(given) if isinstance(t, torch.Tensor)), None)
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if own is None or numbers is None or numbers == own or not (numbers.is_floating_point or numbers == torch.uint8):
        return ""
    return (
        f". It is of {dtype_name(numbers)}, and the network of {dtype_name(own)}: convert the batches, as in training"
    )


def moved(batch: Any, device: torch.device) -> Any:
    """The batch on a device: tensors anywhere in it, and other items that have a `to` of their own."""

    def move(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            there = item.to(device)
            return there.clone() if there.is_inference() else there
        if callable(getattr(item, "to", None)) and not isinstance(item, nn.Module):
            return item.to(device)
        return item

    return tree_map(move, batch)
