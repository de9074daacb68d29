"""A file that `save` wrote, and the dense network's structure -> the pruned network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError, HalpError
from ..files import path_of
from ..model.checks import check_model
from ..model.copying import copied
from ..model.inputs import imagined
from ..model.preserving import preserved
from ..model.randomness import Stream
from ..model.tensors import dtype_name, every_tensor, first_names, signature
from ..rewriting import applying
from ..trials.trials import channel_groups
from .checkpoint import Checkpoint, read
from .errors import CorruptCheckpointError, OtherNetworkError
from .taking import attributes

Dense = nn.Module | Callable[[], nn.Module]
"""The dense network, or what makes it."""


def load(path: str | Path, model: Dense | None = None, example_inputs: Any = None) -> nn.Module:
    """The pruned network that `halp_fx.save` wrote: the same outputs, bit by bit.

    The dense network is needed for its structure alone: its weights may be random, or on the meta device, and none are
    kept. The plans of the file are applied to it and verified as by `halp_fx.rewrite`; then every tensor takes its
    value, dtype, strides and `requires_grad` from the file, and every module its mode.

    Args:
        path: a file that `save` wrote.
        model: the network that was pruned, or a function without arguments that makes it. It is not changed. No
            file holds the code of a network: None is an error that says so.
        example_inputs: as for `prune`. None: of the shapes that it was pruned with, which the file knows if they were
            made of tensors, numbers and strings; of tensors of at most 16 whole numbers it knows these, too.

    Returns:
        The network, on the device of `model` (of the CPU, where that is the meta device); `halp` is its report, if it
        had one.

    Raises:
        CorruptCheckpointError: the file cannot be read, is truncated or damaged.
        ForeignFileError: `save` did not write it.
        CheckpointVersionError: in a format that this version does not know.
        OtherNetworkError: `model` is another network than the one that was pruned, or its forward does other things.
            All four are kinds of `CheckpointError`, which is raised itself where there is no `model`.
        ModelError: `model` cannot be handled.
    """
    path = path_of(path)
    with torch.inference_mode(False), Stream().aside(), ExitStack() as stack:
        saved = read(path)
        if model is None:
            raise CheckpointError(
                f"{path} holds the tensors of a pruned {saved.network}, and no code: pass the dense network, or a "
                "function that makes it, too, as in halp_fx.load(path, make_model)"
            )
        dense = _made(model)
        _check_signature(path, saved, dense)
        device = _device(dense)
        if torch.get_default_device().type == "meta":
            stack.enter_context(device)
        examples = example_inputs
        if example_inputs is None and saved.source.inputs is not None:
            examples = _remembered(path, saved, device)
        network = _skeleton(dense, saved, device, example_inputs)
        check_model(network)
        with _named(path, saved), preserved(network):
            for plan in saved.source.plans:
                coupling = channel_groups(network, examples)
                network = applying.rewrite(network, plan, examples, coupling=coupling)
        _fill(network, saved, device, path)
    for name, module in network.named_modules():
        module.training = name in saved.state.training
    if saved.report is not None:
        network.halp = saved.report  # type: ignore[assignment]
    return network


def _made(model: Dense) -> nn.Module:
    """The dense network.

    Raises:
        CheckpointError: there is none.
    """
    if isinstance(model, nn.Module):
        return model
    if not callable(model):
        raise CheckpointError(
            f"load takes the dense network, or a function that makes it, not a {type(model).__name__}: pass "
            "torchvision.models.resnet18, or lambda: Net(96)"
        )
    name = getattr(model, "__name__", "the function")
    try:
        inspect.signature(model).bind()
    except TypeError as error:
        raise CheckpointError(
            f"{name} cannot be called without arguments ({error}): pass a function that needs none, such as "
            f"lambda: {name}(...)"
        ) from error
    except ValueError:
        pass  # Of some that are built in nobody knows.
    dense = model()
    if not isinstance(dense, nn.Module):
        raise CheckpointError(f"the function that should make the network returned a {type(dense).__name__}")
    return dense


def _check_signature(path: Path, saved: Checkpoint, dense: nn.Module) -> None:
    differences = saved.source.dense.differences(signature(dense))
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise OtherNetworkError(
            f"{path} holds a pruned {saved.network}, which fits another network than this {type(dense).__name__}: "
            f"{'; '.join(differences[:3])}{more}. Pass the dense network that was pruned, or a function that makes it"
        )


@contextmanager
def _named(path: Path, saved: Checkpoint) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except HalpError as error:
        raise OtherNetworkError(
            f"{path} holds a pruned {saved.network}, and its plan cannot be applied to this network: {error}\n"
            "Pass example_inputs that its forward takes, and the network as it was when it was pruned"
        ) from error


def _remembered(path: Path, saved: Checkpoint, device: torch.device) -> Any:
    """Example inputs as the file describes them."""
    try:
        return imagined(saved.source.inputs, device)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CorruptCheckpointError(f"{path} describes example inputs that cannot be made: {error}") from error


def _device(model: nn.Module) -> torch.device:
    """Where a network is; the CPU, where it is nowhere."""
    devices = (t.device for _, t, _ in every_tensor(model))
    return next((d for d in devices if d.type != "meta"), torch.device("cpu"))


def _skeleton(dense: nn.Module, saved: Checkpoint, device: torch.device, given: Any) -> nn.Module:
    """The dense network, ready to be traced: tensors with values, tied as they were, and of dtypes that fit the example
    inputs. Those of the file are of the dtypes that the network had when it was pruned; those that are `given`, of what
    it has in the file, or had then."""
    later = {dtype_name(t.dtype) for t in saved.tensors.values() if t.is_floating_point()}
    then = {n for n in saved.source.dense.dtypes.values() if getattr(torch, n).is_floating_point}
    asked = set(_dtypes(given))
    now = asked and not asked & then and asked <= later
    dtypes = {n: dtype_name(t.dtype) for n, t in saved.tensors.items()} if now else saved.source.dense.dtypes
    memo: dict[int, Any] = {}
    for name, tensor, _ in every_tensor(dense):
        dtype = getattr(torch, dtypes.get(name, ""), tensor.dtype)
        if id(tensor) not in memo and (tensor.is_meta or tensor.dtype != dtype):
            memo[id(tensor)] = _like(tensor, _value(name, tensor, saved, device).to(dtype))
    for name, tensor in attributes(dense):
        kept = saved.tensors.get(saved.state.tied.get(name, name)) if name in saved.state.attributes else None
        if kept is not None and id(tensor) not in memo and (tensor.is_meta or tensor.dtype != kept.dtype):
            memo[id(tensor)] = _value(name, tensor, saved, device).to(kept.dtype)
    own, ties = first_names(dense), saved.source.dense.tied
    loose = {name: first for name, first in ties.items() if own.get(name) != first}
    network = copied(dense, memo) if memo or loose else dense
    _refuse_meta(network)
    found = {n: t for n, t, _ in every_tensor(network)}
    for name, first in loose.items():
        _put(network, name, found[first])
    return network


def _dtypes(inputs: Any) -> Iterator[str]:
    """Of the floating tensors among example inputs."""
    if isinstance(inputs, torch.Tensor):
        if inputs.is_floating_point():
            yield dtype_name(inputs.dtype)
    elif isinstance(inputs, tuple | list | dict):
        for value in inputs.values() if isinstance(inputs, dict) else inputs:
            yield from _dtypes(value)


def _value(name: str, tensor: torch.Tensor, saved: Checkpoint, device: torch.device) -> torch.Tensor:
    """A value for a tensor of the dense network: its own, or where it has none that of the file, if it did not shrink;
    else anything that lets a forward run."""
    if not tensor.is_meta:
        return tensor.detach()
    kept = saved.tensors.get(saved.state.tied.get(name, name))
    if kept is not None and kept.shape == tensor.shape:
        return kept.to(device)
    if tensor.dim() < 2:  # Of norms and biases: ones are fine for either.
        return torch.ones(tensor.shape, dtype=tensor.dtype, device=device)
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(tensor.shape, generator=generator, dtype=torch.float32, device="cpu")
        .mul_(0.1)
        .to(device, tensor.dtype)
    )


def _like(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, nn.Parameter):
        return type(tensor)(value, requires_grad=tensor.requires_grad)
    return value


def _refuse_meta(network: nn.Module) -> None:
    for name, module in network.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.is_meta:
                place = f"{name}.{attribute}" if name else attribute
                raise CheckpointError(
                    f"{place} is a tensor on the meta device, and no parameter or buffer: its values are in no file. "
                    "Pass a network that is not made on the meta device"
                )


def _fill(small: nn.Module, saved: Checkpoint, device: torch.device, path: Path) -> None:
    """Give a rewritten network the tensors of the file.

    Raises:
        OtherNetworkError: they do not fit.
        CorruptCheckpointError: they fit no network.
    """
    made: dict[str, torch.Tensor] = {}
    for name, old, stays in every_tensor(small):
        first = saved.state.tied.get(name, name)
        value = saved.tensors.get(first)
        if value is None and not stays:
            continue  # A forward makes it anew.
        if value is None or value.shape != old.shape:
            what = "nothing" if value is None else f"shape {tuple(value.shape)}"
            raise OtherNetworkError(
                f"{path} has {what} for {name}, which by its plan has shape {tuple(old.shape)}: of another network"
            )
        if first not in made:
            laid = _laid(value, saved.state.strides.get(first), device)
            grad = first not in saved.state.fixed
            if grad and isinstance(old, nn.Parameter) and not (value.is_floating_point() or value.is_complex()):
                raise CorruptCheckpointError(
                    f"{path} holds {name} as {dtype_name(value.dtype)} and says that it is trained, which whole "
                    "numbers are not: save the network again"
                )
            made[first] = type(old)(laid, requires_grad=grad) if isinstance(old, nn.Parameter) else laid
        _put(small, name, made[first])
    modules = dict(small.named_modules())
    for name in saved.state.attributes:
        first = saved.state.tied.get(name, name)
        if first not in made:
            made[first] = _laid(saved.tensors[first], saved.state.strides.get(first), device)
        place, _, own = name.rpartition(".")
        if place not in modules:
            raise OtherNetworkError(f"{path} holds {name}, and this network has no module {place!r}")
        modules[place].__dict__[own] = made[first]
    lost = [name for name in _needed(saved) if name not in made]
    if lost:
        raise OtherNetworkError(f"{path} holds {lost[0]}, which this network does not have")


def _needed(saved: Checkpoint) -> Iterator[str]:
    """Tensors of the file that were in the dense network's `state_dict`, too."""
    return (name for name in saved.tensors if name in saved.source.dense.shapes)


def _laid(value: torch.Tensor, strides: tuple[int, ...] | None, device: torch.device) -> torch.Tensor:
    """The tensor on its device, laid out as it was."""
    if strides is None:
        return value.to(device)
    with torch.no_grad():
        return torch.empty_strided(value.shape, strides, dtype=value.dtype, device=device).copy_(value)


def _put(network: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a parameter or buffer in the place of another."""
    place, _, own = name.rpartition(".")
    module: Any = network.get_submodule(place)
    if isinstance(module, torch.jit.ScriptModule):  # Which keeps its tensors elsewhere.
        with torch.no_grad():
            getattr(module, own).copy_(tensor)
        return
    table = module._parameters if isinstance(tensor, nn.Parameter) else module._buffers
    table[own] = tensor
