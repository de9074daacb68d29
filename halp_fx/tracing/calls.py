"""What runs above the operators of a trace: which module on which values (`ModuleCall`), which
Python function, which line of the user's code.

A module that does nothing in eval mode (dropout, stochastic depth) leaves no operator in a trace, but a call here.
"""

from __future__ import annotations

import dis
import linecache
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.functional import batch_norm, one_hot
from torch.overrides import TorchFunctionMode

from ..internals import tree_leaves
from ..types import FailedCall, ModuleCall
from .tags import Source, active, sources_of


class Failing(BaseException):
    """A function of PyTorch fails where none may (`Run.catches`). No error, which the forward may catch.

    Attributes:
        error: with which it fails.
        call: of that function.
    """

    def __init__(self, error: Exception, call: FailedCall) -> None:
        super().__init__(str(error))
        self.error, self.call = error, call


Known = fx.Node | tuple[fx.Node, int] | None
"""A node; a node with several results and which of them; or nothing."""

_TORCH_DIR = torch.__path__[0] + "/"
# This room's own files: they never are the code that called into torch. `forward.py` is, for what PyTorch's own modules
# do when nobody else's code is in between.
_OWN_FILES = frozenset(map(str, Path(__file__).parent.glob("*.py"))) - {str(Path(__file__).with_name("forward.py"))}
# Frames between an operator's caller and the modes that see it.
_BETWEEN = (
    *("torch/overrides.py", "torch/_tensor.py", "torch/utils/_python_dispatch.py", "torch/_ops.py"),
    *("torch/_compile.py", "torch/_dynamo/eval_frame.py", "torch/utils/_contextlib.py"),
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(slots=True)
class _Run:
    module: str
    kind: type
    hooked: bool
    start: int
    parent: int
    inputs: list[Known]
    plain: bool
    end: int = -1
    outputs: list[Known] = field(default_factory=list)
    single: bool = False


class CallLog:
    """Collects the runs of modules while a graph is being written."""

    def __init__(self, graph: fx.Graph, known: Callable[[torch.Tensor], Known]) -> None:
        self._nodes = graph.nodes
        self._known = known
        self._runs: list[_Run] = []
        self._open: list[int] = []

    def enter(self, module: nn.Module, name: str, hooked: bool, args: Any) -> None:
        """A module begins to run."""
        inputs, plain = self._row(args)
        parent = self._open[-1] if self._open else -1
        self._open.append(len(self._runs))
        self._runs.append(_Run(name, type(module), hooked, len(self._nodes), parent, inputs, plain))

    def leave(self, result: Any) -> None:
        """The module that began last has run."""
        run = self._runs[self._open.pop()]
        run.end = len(self._nodes)
        run.single = isinstance(result, torch.Tensor)
        run.outputs, plain = self._row(result if isinstance(result, tuple | list) else [result])
        run.plain &= plain

    def finish(self) -> tuple[ModuleCall, ...]:
        """All runs of modules."""
        found = []
        for run in self._runs:
            inputs, outputs = (tuple(map(_name, row)) for row in (run.inputs, run.outputs))
            found.append(
                ModuleCall(
                    run.module,
                    run.kind,
                    run.start,
                    run.end,
                    run.parent,
                    inputs,
                    outputs,
                    run.single,
                    run.plain,
                    run.hooked,
                )
            )
        return tuple(found)

    def _row(self, values: Any) -> tuple[list[Known], bool]:
        """What each value is known as, and whether tensors are nowhere deeper."""
        row: list[Known] = []
        nested = False
        for value in values:
            if isinstance(value, torch.Tensor):
                row.append(self._known(value))
            else:
                row.append(None)
                nested = nested or any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))
        return row, not nested


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks of its own."""
    return any(map(vars(module).get, _HOOKS))


def _name(known: Known) -> str | None:
    if isinstance(known, tuple):
        source, index = known
        return next((user.name for user in source.users if user.args[1:] == (index,)), None)
    return None if known is None else known.name


# Recurrent layers come down to operators for every time step: they are recorded as one.
_WHOLE = {name: getattr(torch.ops.aten, name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")}


def _overload(name: str, args: Any) -> Any:
    # A packed sequence has batch sizes in second place, and no `batch_first`.
    return _WHOLE[name].data if isinstance(args[3], list | tuple) else _WHOLE[name].input


_READERS = ("size", "numel", "nelement", "__len__")
_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
_SIZES = frozenset((*(getattr(torch.Tensor, name) for name in _READERS), _SHAPE, torch.numel))

# What a program asks about the device of a tensor, and what it is told of one.
_Asked = Callable[[torch.device], Any]


def _is_of(kind: str) -> _Asked:
    return lambda device: device.type == kind


def _index(device: torch.device) -> int:
    return -1 if device.index is None else device.index


_DEVICE: dict[Any, _Asked] = {
    torch.Tensor.device.__get__: lambda device: device,
    torch.Tensor.get_device: _index,
    torch.get_device: _index,
    **{
        getattr(torch.Tensor, f"is_{kind}").__get__: _is_of(kind)
        for kind in ("meta", "cpu", "cuda", "mps", "xpu", "xla")
    },
}
_META = torch.device("meta")
_TYPE = torch.Tensor.type


def type_on(device: torch.device, dtype: torch.dtype) -> str:
    """What `Tensor.type()` calls a tensor there: "torch.cuda.FloatTensor"."""
    on_cpu = torch.empty(0, dtype=dtype, device="cpu").type()
    return on_cpu if device.type == "cpu" else on_cpu.replace("torch.", f"torch.{device.type}.", 1)


# Ways from values to Python that are no operators.
_VALUES = frozenset({"numpy", "__array__", "tolist", "__dlpack__", "data_ptr", "untyped_storage", "storage"})


class PythonNames(TorchFunctionMode):
    """Knows the outermost Python-level torch function that is running (`chunk` and `split` both reach ATen as
    `split`, but only one of them follows the width)."""

    def __init__(
        self,
        whole: Callable[[Any, Any, Any], Any],
        sized: Callable[[Any, Any, int | slice], Any],
        read: Callable[[str, torch.Tensor], None],
        device: torch.device | None,
        catches: bool = True,
    ) -> None:
        """`whole(operator, args, result)` writes an operator down that PyTorch would take to pieces, and runs it
        unless there is a result; `sized(args, result, part)` is told about each size that the program reads (of a
        shape, that part), and `read(function, tensor)` about values that it takes without an operator.

        `device` is where tensors without values would be: a program that asks, to go one way on a GPU and another on
        a CPU, is told that. None if the forward runs with values. Unless it `catches` errors, the first one is its end
        (`Failing`).
        """
        super().__init__()
        # An object of its own: where the program hands it on, to make or move a tensor, no values are made.
        self._device = None if device is None else torch.device(str(device))
        self.current = ""
        # Of the numbers that the function was given.
        self.sources: frozenset[Source] = frozenset()
        # The last one, if it failed.
        self.failed: FailedCall | None = None
        # Whether any failed, and the one that was the end.
        self.any_failed = False
        self.end: Failing | None = None
        self._catches = catches
        self._whole = whole
        self._sized = sized
        self._read = read

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # The mode is off inside this call, so only the outermost function gets here.
        # An operator that is called by itself is named like the function that calls it: "flatten.using_ints".
        self.current = getattr(func, "__name__", "").partition(".")[0]
        self.sources = sources_of((args, kwargs)) if active() else frozenset()
        self.failed = None
        try:
            if self._device is not None:
                if func in _DEVICE and args[0].is_meta:
                    return _DEVICE[func](self._device)
                if func is _TYPE and len(args) == 1 and not kwargs and args[0].is_meta:
                    return type_on(self._device, args[0].dtype)
                args, kwargs = self._where_it_runs(args, kwargs)
            if self.current in _VALUES and args and isinstance(args[0], torch.Tensor):
                self._read(self.current, args[0])
            if self.current in _WHOLE:
                return self._whole(_overload(self.current, args), args, None)
            if func is batch_norm and args[0].numel() == 0:
                return self._normalized(*args, **(kwargs or {}))
            if func is one_hot:
                return _classes(*args, **(kwargs or {}))
            result = run_in_pieces(func, args, kwargs or {})
            if func not in _SIZES:
                return result
            return self._sized(args, result, _part_of_shape(sys._getframe(1)) if func == _SHAPE else _ALL)
        except Exception as error:
            self.fails(error)
            raise
        finally:
            self.current = ""

    def fails(self, error: Exception) -> None:
        """A function fails, or an operator that none of Python called.

        Raises:
            Failing: that is the end.
        """
        self.failed, self.any_failed = FailedCall(self.current, caller(), self.sources), True
        if not self._catches:
            self.end = self.end or Failing(error, self.failed)
            raise self.end from error

    def _where_it_runs(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """What a function is given, with the device of tensors without values for the one that the program was told."""
        if any(a is self._device for a in args):
            args = tuple(_META if a is self._device else a for a in args)
        if kwargs and kwargs.get("device") is self._device:
            kwargs = {**kwargs, "device": _META}
        return args, kwargs

    def _normalized(
        self,
        x: torch.Tensor,
        mean: Any,
        var: Any,
        weight: Any = None,
        bias: Any = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Any:
        """A batch norm of an empty tensor, where PyTorch reads but one element of each parameter: they are coupled
        like those of any other."""
        args = (x, weight, bias, mean, var, training, momentum, eps)
        result = (torch.empty_like(x), x.new_empty(0), x.new_empty(0))
        return self._whole(torch.ops.aten.native_batch_norm.default, args, result)[0]


def _classes(tensor: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    """`one_hot`, without the look at the values by which PyTorch checks that they are below a given number."""
    if num_classes < 1:
        return one_hot(tensor, num_classes)
    return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=tensor.device)).to(torch.int64)


def run_in_pieces(func: Any, args: Any, kwargs: Any) -> Any:
    """Run a function of PyTorch while attention is in pieces (`model.preserving.decomposed`).

    A graph that was captured where attention was one operator has views that fit that operator's result (torch 2.11
    leaves out the copy that a model makes before such a view); the products' result lies otherwise, and is copied.
    """
    try:
        return func(*args, **kwargs)
    except RuntimeError:
        if func is not torch.ops.aten.view.default:
            raise
        return torch.ops.aten.reshape.default(*args)


_ALL = slice(None)


def _part_of_shape(frame: FrameType) -> int | slice:
    """What a program that reads `x.shape` takes of it: `x.shape[0]` is no use of the other sizes."""
    return _parts(frame.f_code).get(frame.f_lasti, _ALL)


@cache
def _parts(code: CodeType) -> dict[int, int | slice]:
    """Where code reads a shape of which it takes a constant part at once, and which."""
    found: dict[int, int | slice] = {}
    steps = list(dis.get_instructions(code))
    for this, *after in zip(steps, steps[1:], steps[2:], steps[3:], steps[4:], strict=False):
        if this.opname != "LOAD_ATTR" or this.argval != "shape":
            continue
        names = [step.opname for step in after]
        first, second = after[0].argval, after[1].argval
        if names[:2] == ["LOAD_CONST", "BINARY_SUBSCR"] and isinstance(first, int | slice):
            found[this.offset] = first
        elif names[:2] == ["LOAD_CONST", "LOAD_CONST"] and (
            names[2] == "BINARY_SLICE" or (names[2:] == ["BUILD_SLICE", "BINARY_SUBSCR"] and after[2].arg == 2)
        ):
            found[this.offset] = slice(first, second)
    return found


def caller() -> str:
    """File and line of the user's (or torchvision's) code that called into torch."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        label = _label(frame.f_code.co_filename)
        if label:
            return _graph_node(frame.f_code.co_filename, frame.f_lineno) or f"{label}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def checked_by_torch() -> bool:
    """Whether code of PyTorch itself, and not of the user's, asked for what is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name not in _OWN_FILES and not name.endswith(_BETWEEN):
            return name.startswith(_TORCH_DIR)
        frame = frame.f_back
    return False


_GENERATED = "<eval_with_key>"
GRAPH_NODE = "graph node"
_ASSIGNED = re.compile(r"\s*(\w+)\s*=")


@cache
def _graph_node(filename: str, line: int) -> str:
    """The node of an `fx.GraphModule` that a line of its forward runs; empty for code that a person wrote. A pruned
    graph has the same nodes, but other files and lines."""
    if not filename.startswith(_GENERATED):
        return ""
    found = _ASSIGNED.match(linecache.getline(filename, line))
    return f"{GRAPH_NODE} {found[1]}" if found else ""


# A dozen frames are looked at for every operator, of a few files.
@cache
def _label(filename: str) -> str:
    """Directory and name of a file of the user's; empty for PyTorch's and our own."""
    inside = filename.startswith(_TORCH_DIR) or filename in _OWN_FILES
    return "" if inside else "/".join(filename.rsplit("/", 2)[-2:])
