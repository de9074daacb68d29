"""Example inputs in their many forms -> positional and keyword arguments."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
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
    keyword arguments. None infers an image batch from the first convolution. Of a list of examples, the first counts.
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
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple):
        args = tuple(example_inputs)
        if args and isinstance(args[-1], dict):
            return args[:-1], dict(args[-1])
        return args, {}
    return (example_inputs,), {}


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
            return torch.randn(shape, generator=generator).to(weight.device, weight.dtype)
    raise ModelError(
        f"{type(model).__name__} has no nn.Conv2d to infer an input shape from: pass example_inputs, "
        "a tensor, tuple or dict with which the model's forward runs"
    )
