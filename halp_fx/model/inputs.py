"""Example inputs in their many forms -> positional and keyword arguments."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from ..internals import tree_map
from ..types import Inputs

logger = logging.getLogger("halp_fx")

IMAGE_SIDE = 224


class Examples(list[Inputs]):
    """Example inputs that are normalised: every stage takes them as they are."""


def normalize_examples(model: nn.Module, example_inputs: Any) -> Examples:
    """The arguments of one forward for each example: a list holds several, anything else is one."""
    if isinstance(example_inputs, Examples):
        return example_inputs
    if isinstance(example_inputs, list) and example_inputs:
        return Examples(normalize_inputs(model, example) for example in example_inputs)
    return Examples([normalize_inputs(model, example_inputs)])


def normalize_inputs(model: nn.Module, example_inputs: Any) -> Inputs:
    """Arguments for one forward, in the conventions of `torch.onnx.export`.

    A tensor is the only argument; a tuple holds positional ones, a dict at its end keyword ones; a dict alone holds
    keyword arguments, or is a batch, where the forward has no such keywords. None infers an image batch from the
    first convolution. Of a list of examples, the first counts.
    """
    if isinstance(example_inputs, Examples):
        return example_inputs[0]
    if isinstance(example_inputs, list) and example_inputs:
        example_inputs = example_inputs[0]
    if example_inputs is None:
        return (infer_image(model),), {}
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, dict):
        return _named(model, example_inputs)
    if isinstance(example_inputs, tuple):
        args = tuple(example_inputs)
        if args and isinstance(args[-1], dict):
            return (args[:-1], dict(args[-1])) if args[1:] else _named(model, args[0])
        return args, {}
    return (example_inputs,), {}


def _named(model: nn.Module, given: dict[Any, Any]) -> Inputs:
    """The only thing that a forward is given: keyword arguments, or a batch, if it has no such keywords."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return (), dict(given)
    is_batch = not _takes(signature, (), given) and _takes(signature, (given,), {})
    return ((given,), {}) if is_batch and not given.keys() & signature.parameters.keys() else ((), dict(given))


def _takes(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[Any, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def own(inputs: Any) -> Any:
    """The same inputs in containers and memory of their own: a forward may write to both (the streams of SlowFast are
    replaced in the list that it is given)."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, inputs)


def infer_image(model: nn.Module) -> torch.Tensor:
    """A random image batch of one, 224 x 224, with the channels of the first convolution.

    Raises:
        ModelError: the model has no 2-D convolution.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            shape = (1, module.in_channels, IMAGE_SIDE, IMAGE_SIDE)
            logger.info("no example_inputs: using a random batch of shape %s, from %s", shape, name)
            weight = module.weight
            # A generator of its own: the global random state stays as it was.
            generator = torch.Generator().manual_seed(0)
            return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(
                weight.device, weight.dtype
            )
    raise ModelError(
        f"{type(model).__name__} has no nn.Conv2d to infer an input shape from: pass example_inputs, "
        "a tensor, tuple or dict with which the model's forward runs"
    )


MAX_VALUES = 16
"""Elements of a tensor of whole numbers or switches that are written down: lengths, counts, a step of a diffusion."""


def described(example_inputs: Any, values: bool = False) -> Any:
    """What JSON can hold of example inputs, in any of their forms: of tensors the shape and dtype. None where they are
    None, or hold something that has no such form.

    Args:
        values: whether also the numbers in short tensors of whole ones: a forward may decide by them.
    """
    if example_inputs is None:
        return None
    try:
        return _described(example_inputs, values)
    except TypeError:
        return None


def _described(value: Any, values: bool) -> Any:
    if isinstance(value, torch.Tensor):
        form = {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        short = values and not (value.is_meta or value.dtype.is_floating_point or value.dtype.is_complex)
        return {**form, "values": value.flatten().tolist()} if short and value.numel() <= MAX_VALUES else form
    if isinstance(value, tuple | list):
        kind = "examples" if isinstance(value, Examples) else "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_described(v, values) for v in value]}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("only names have a form in JSON")
        return {"dict": {key: _described(v, values) for key, v in value.items()}}
    if value is None or isinstance(value, str | int | float):
        return {"plain": value}
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def imagined(description: Any, device: torch.device) -> Any:
    """Inputs of the form that `described` wrote down: random numbers in [0, 1), zeros for whole ones (which index
    any table), and True, where their values are not there.

    Raises:
        ValueError: it is no such description.
    """
    match description:
        case {"tensor": [*shape], "dtype": str(name), "values": [*numbers]}:
            empty = imagined({"tensor": shape, "dtype": name}, device)
            return torch.tensor(numbers, dtype=empty.dtype, device=device).reshape(shape)
        case {"tensor": [*shape], "dtype": str(name)} if isinstance(dtype := getattr(torch, name, None), torch.dtype):
            if dtype.is_floating_point or dtype.is_complex:
                generator = torch.Generator().manual_seed(0)
                return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu").to(device, dtype)
            return torch.full(shape, int(dtype == torch.bool), dtype=dtype, device=device)
        case {"examples": [*values]}:
            return Examples(imagined(v, device) for v in values)
        case {"tuple": [*values]}:
            return tuple(imagined(v, device) for v in values)
        case {"list": [*values]}:
            return [imagined(v, device) for v in values]
        case {"dict": dict(values)}:
            return {key: imagined(v, device) for key, v in values.items()}
        case {"plain": value}:
            return value
    raise ValueError(f"{description!r:.80} describes no example inputs")
