"""PyTorch's private interfaces: all that the package uses of them, and which of these another PyTorch lacks.

Names are imported from here. Attributes of PyTorch's objects (the `_schema` of an operator) are used where they are
needed, and listed here. `torch._dynamo`, which takes seconds to import, is imported where something is compiled
(`latency.compiling`).
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

NAMES = {
    "torch._guards": ("tracing",),
    "torch._ops": ("HigherOrderOperator", "OpOverload"),
    "torch._prims_common": ("suggest_memory_format",),
    "torch.nn.modules.batchnorm": ("_NormBase",),
    "torch.nn.modules.conv": ("_ConvNd", "_ConvTransposeNd"),
    "torch.utils._python_dispatch": ("TorchDispatchMode", "_disable_current_modes"),
    "torch.utils._pytree": ("tree_flatten", "tree_leaves", "tree_map", "tree_unflatten"),
}
"""Module -> what is imported from it."""

OPERATOR = ("_schema", "_opname", "_overloadname")
MODULE = (
    *("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"),
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
)
STORAGE = ("_cdata",)
MODE = ("_should_skip_dynamo", "supports_higher_order_operators")
"""Attributes of what each is named after."""

WHERE_THERE = ("_cuda_getDriverVersion", "_jit_onnx_log")
"""Of `torch._C`, used if a PyTorch has it."""

_FLEX: dict[str, Any] = {
    "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG": True,
    "_validate_device": lambda query, key, value: None,
}
"""Of `torch.nn.attention.flex_attention`, if it is loaded: what stands there while a forward is observed."""

_EXCLUDED = torch._C._dispatch_tls_local_exclude_set()
"""What PyTorch leaves out when it looks for what an operator is to run (autocast), where no operator is running."""


def job_store() -> Any:
    """Where the processes of the default group leave notes for each other; None where there is no such place
    (`_get_default_store`)."""
    found = getattr(sys.modules.get("torch.distributed.distributed_c10d"), "_get_default_store", None)
    return found() if found is not None and torch.distributed.is_initialized() else None


def source_name(node: Any) -> str:
    """Where a program found what Dynamo made an input of its graph; "" where it does not say (`_dynamo_source`)."""
    name = getattr(getattr(node, "_dynamo_source", None), "name", "")
    return str(name() if callable(name) else name)  # A method until torch 2.12.


def dynamo_variable(source: str) -> Any:
    """What the program that Dynamo is in the middle of has where a source begins ("L['self']": a local variable). None
    where Dynamo does not say (`InstructionTranslator.current_tx`)."""
    begin = re.match(r"([LG])\['(\w+)'\]", source)
    known = getattr(sys.modules.get("torch._dynamo.symbolic_convert"), "InstructionTranslator", None)
    if begin is None or known is None:
        return None
    try:
        frame = known.current_tx()
        return (frame.f_locals if begin[1] == "L" else frame.f_globals).get(begin[2])
    except (AttributeError, TypeError, AssertionError):  # Another Dynamo's, or nothing is being compiled.
        return None


def eagerly(func: Any) -> Callable[..., Any] | None:
    """What an operator that is given functions (`flex_attention`, `torch.cond`) comes to where nothing is compiled, in
    operators of its own (`py_kernels`), as a function to call within a mode; None for all others."""
    if not isinstance(func, HigherOrderOperator):
        return None
    name = func.name()
    known = getattr(func, "py_kernels", {}).get(torch._C.DispatchKey.CompositeExplicitAutograd)
    if known is None:
        raise NotImplementedError(f"nothing is known of the operator {name}, which runs functions")

    def run(*args: Any, **kwargs: Any) -> Any:
        # Within a mode no operator is taken to pieces (`conv2d`) unless it is asked for.
        with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), _EXCLUDED):
            return _chosen(*args, **kwargs) if name == "cond" else known(*args, **kwargs)

    return run


def _chosen(condition: Any, yes: Callable[..., Any], no: Callable[..., Any], given: Iterable[Any]) -> Any:
    return (yes if condition else no)(*given)


@contextmanager
def flex_in_pieces() -> Iterator[None]:
    """With `flex_attention` as it computes eagerly, on any device. It compiles itself where nobody else does, and
    refuses while a forward is observed, or on tensors without values."""
    module: Any = sys.modules.get("torch.nn.attention.flex_attention")
    before = {name: vars(module)[name] for name in _FLEX if name in vars(module)} if module is not None else {}
    for name in before:
        setattr(module, name, _FLEX[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


@contextmanager
def no_graph_printed() -> Iterator[None]:
    """Without the whole graph that the TorchScript exporter prints when it fails, `verbose` or not: from C++ to the
    process's standard output, where no redirection of Python's sees it. What PyTorch 2.15 prints past this function of
    Python stays."""
    known = getattr(torch._C, "_jit_onnx_log", None)
    if known is None:
        yield
        return
    torch._C._jit_onnx_log = lambda *what: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = known


def missing() -> list[str]:
    """What this PyTorch does not have."""
    modules = {}
    for module in NAMES:
        try:
            modules[module] = vars(importlib.import_module(module))
        except ImportError:
            modules[module] = {}
    found = [f"{module}.{name}" for module, names in NAMES.items() for name in names if name not in modules[module]]
    examples = {
        "OpOverload": (torch.ops.aten.relu.default, OPERATOR),
        "Module": (nn.Module(), MODULE),
        "UntypedStorage": (torch.empty(0, dtype=torch.uint8, device="cpu").untyped_storage(), STORAGE),
        "TorchDispatchMode": (modules["torch.utils._python_dispatch"].get("TorchDispatchMode"), MODE),
    }
    for kind, (example, names) in examples.items():
        found += [f"{kind}.{name}" for name in names if not hasattr(example, name)]
    return found


def _check() -> None:
    """Raises ImportError if something is missing."""
    names = missing()
    if names:
        raise ImportError(
            f"torch {torch.__version__} has no {', '.join(names)}: private interfaces of PyTorch that halp_fx needs. "
            "Install a version of torch that this release of halp_fx names, or a newer halp_fx"
        )


_check()

# After the check, so that everything that is missing is named, and not the first of it.
from torch._guards import tracing
from torch._ops import HigherOrderOperator, OpOverload
from torch._prims_common import suggest_memory_format
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as ConvNd
from torch.nn.modules.conv import _ConvTransposeNd as ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = [
    "MODE",
    "MODULE",
    "NAMES",
    "OPERATOR",
    "STORAGE",
    "WHERE_THERE",
    "ConvNd",
    "ConvTransposeNd",
    "NormBase",
    "OpOverload",
    "TorchDispatchMode",
    "disable_current_modes",
    "dynamo_variable",
    "eagerly",
    "flex_in_pieces",
    "missing",
    "source_name",
    "suggest_memory_format",
    "tracing",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
]
