"""A request: what has to be timed of a network, as a file that a device without the network can work off.

    {"format": "halp_fx.table_request", "version": 1, "network": "resnet50", "runtime": "eager",
     "layers": [{"key": "aten::relu_([float32[1,I,56,56]])", "name": "layer1.0/relu_", "op": "relu_",
                 "function": "aten::relu_", "args": [...], "kwargs": {}, "dense": [64, 0], "uses": 6,
                 "inputs": [8, 64, 8], "output": [0, 0, 1]}]}

`key` is the layer's signature, under which the table that comes back has its times. `inputs` and `output` are the least
and the largest width that the layer may have, and the step between. In `args` and `kwargs`, {"tensor": …} stands for a
`TensorTemplate` and {"dtype": …} and the like for constants of PyTorch. A request is data: what it names is looked for
among PyTorch's registered operators, and only operators on tensors are run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch

from ..errors import LatencyError
from ..files import path_of, replacing, why_unreadable
from ..internals import OpOverload
from ..tracing.graph import FORWARD
from ..types import Coupling, Extent
from .costs import Options
from .errors import CorruptTableError, TableFileError, TableVersionError
from .fingerprint import kind_of
from .grids import Range
from .layers import Layer, layers
from .measuring import GridKey, Wanted, wanted
from .templates import Size, TensorTemplate, templates

FORMAT = "halp_fx.table_request"
VERSION = 1

BY_OPERATOR = ("eager", "cudagraph", "onnxruntime")
"""Runtimes whose layers are single operators, which have names. Those of inductor fuse several."""

_CONSTANTS: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
    "device": torch.device,
}


@dataclass(frozen=True, slots=True)
class TableRequest:
    """Layers whose times are wanted.

    Attributes:
        network: what it is called, for people.
        runtime: how it will be executed.
        rows: every distinct layer once.
    """

    network: str
    runtime: str
    rows: tuple[Wanted, ...]

    @classmethod
    def of(cls, coupling: Coupling, options: Options, network: str = "", runtime: str = "eager") -> TableRequest:
        """What has to be timed for a network whose groups may be as wide as `options` say.

        Raises:
            LatencyError: the runtime is not known, or fuses operators.
        """
        if kind_of(runtime)[0] not in BY_OPERATOR:
            raise LatencyError(
                f"runtime {runtime!r} executes fused operators, which have no names that another machine knows: a "
                f"request is for one of {', '.join(BY_OPERATOR)}; for others, build the table where the network runs"
            )
        return cls(network, runtime, tuple(wanted(layers(coupling), options, coupling.widths()).values()))

    @property
    def by_grid(self) -> dict[GridKey, Wanted]:
        return {row.key: row for row in self.rows}


def write_request(request: TableRequest, path: str | PathLike[str]) -> None:
    """Replace a file whole.

    Raises:
        LatencyError: a layer has an argument that no file can hold.
        OSError: it cannot be written.
    """
    head = {"format": FORMAT, "version": VERSION, "network": request.network, "runtime": request.runtime}
    rows = ",\n".join(f"  {json.dumps(_row(row))}" for row in request.rows)
    with replacing(path_of(path)) as temporary:
        temporary.write_text(f'{json.dumps(head)[:-1]}, "layers": [\n{rows}\n]}}\n', encoding="utf-8")


def read_request(path: str | PathLike[str]) -> TableRequest:
    """Inverse of `write_request`. Layers come back without their groups: only their widths are known.

    Raises:
        CorruptTableError: truncated, not JSON, or holding what no request does.
        TableVersionError: of another format or version.
        TableFileError: it cannot be read.
    """
    path = path_of(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptTableError(f"{path} is truncated or not JSON: {error}. Make the request again") from error
    except OSError as error:
        raise TableFileError(why_unreadable(path, error)) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise TableVersionError(f"{path} is no request (its format is not {FORMAT!r}): halp-fx table request makes one")
    if data.get("version") != VERSION:
        raise TableVersionError(f"{path} has version {data.get('version')!r}; this halp_fx reads version {VERSION}")
    try:
        rows = tuple(_wanted(row) for row in data["layers"])
        kind_of(data["runtime"])
        return TableRequest(str(data["network"]), data["runtime"], rows)
    except (KeyError, TypeError, ValueError, AttributeError, LatencyError) as error:
        raise CorruptTableError(f"{path} holds what no request does: {error}. Make the request again") from error


def _row(row: Wanted) -> dict[str, Any]:
    layer = row.layer
    assert isinstance(layer.function, OpOverload)
    return {
        "key": layer.key,
        "name": layer.name,
        "op": layer.op,
        "function": layer.function.name(),
        "args": _plain(layer.args, layer),
        "kwargs": {name: _plain(value, layer) for name, value in layer.kwargs.items()},
        "dense": list(layer.dense),
        "uses": row.uses,
        "inputs": [row.inputs.low, row.inputs.high, row.inputs.step],
        "output": [row.output.low, row.output.high, row.output.step],
    }


def _wanted(row: dict[str, Any]) -> Wanted:
    args, kwargs = tuple(map(_value, row["args"])), {name: _value(value) for name, value in row["kwargs"].items()}
    if not templates((args, kwargs)):
        raise ValueError(f"{row['function']} takes no tensor")
    n_in, n_out = _whole(row["dense"], 2)
    scope = str(row["name"]).rpartition("/")[0]
    layer = Layer(
        name=str(row["name"]),
        module="" if scope == FORWARD else scope,
        op=str(row["op"]),
        key=str(row["key"]),
        inputs=Extent(n_in),
        output=Extent(n_out) if n_out else None,
        dense=(n_in, n_out),
        function=_operator(str(row["function"])),
        args=args,
        kwargs=kwargs,
        results=(),
    )
    inputs, output = _range(row["inputs"], n_in), _range(row["output"], n_out)
    return Wanted(layer, inputs, output, max(1, *_whole([row["uses"]], 1)))


def _whole(numbers: Any, count: int) -> list[int]:
    if not isinstance(numbers, list) or len(numbers) != count:
        raise ValueError(f"{numbers!r} where {count} whole numbers should be")
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in numbers):
        raise ValueError(f"{numbers!r}: widths and counts are whole numbers")
    return numbers


def _range(numbers: Any, dense: int) -> Range:
    low, high, step = _whole(numbers, 3)
    if not (0 < low <= high == dense or low == high == dense == 0) or step < 1:
        raise ValueError(f"widths {numbers} of a layer that is {dense} wide")
    return Range(low, high, step)


def _operator(name: str) -> Callable[..., Any]:
    """`aten::add.Tensor` among the registered operators. For one that is not, what says so when it is called."""
    space, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(getattr(torch.ops, space), packet, None), overload or "default", None)
    if isinstance(found, OpOverload):
        return found

    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"PyTorch {torch.__version__} has no operator {name} here: which library registers it?")

    return unknown


def _plain(value: Any, layer: Layer) -> Any:
    if isinstance(value, TensorTemplate):
        return {"tensor": _tensor(value)}
    for name, kind in _CONSTANTS.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    if isinstance(value, list | tuple):
        return [_plain(v, layer) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise LatencyError(f"{layer.name} has an argument that no file can hold: {value!r:.80}")


def _value(data: Any) -> Any:
    if isinstance(data, list):
        return [_value(v) for v in data]
    if not isinstance(data, dict):
        return data
    ((kind, value),) = data.items()
    if kind == "tensor":
        return _template(value)
    if kind == "float":
        return float(value)
    if kind == "device":
        return torch.device(value)
    found = getattr(torch, value, None)
    if kind not in _CONSTANTS or not isinstance(found, _CONSTANTS[kind]):
        raise ValueError(f"{kind} {value!r} is not known")
    return found


def _tensor(template: TensorTemplate) -> dict[str, Any]:
    value = template.value
    return {
        "sizes": [[s.fixed, s.axis, s.numerator, s.denominator, s.base] if s.axis else s.fixed for s in template.sizes],
        "order": list(template.order),
        "expanded": list(template.expanded),
        "dtype": str(template.dtype).removeprefix("torch."),
        "zero": template.zero,
        "value": None if value is None else [list(value.shape), value.flatten().tolist()],
    }


def _template(data: dict[str, Any]) -> TensorTemplate:
    dtype = _value({"dtype": data["dtype"]})
    sizes = tuple(Size(*size) if isinstance(size, list) else Size(size) for size in data["sizes"])
    if sorted(data["order"]) != list(range(len(sizes))) or not set(data["expanded"]) <= set(data["order"]):
        raise ValueError(f"a tensor of {len(sizes)} dimensions with order {data['order']}")
    shape, numbers = data["value"] if data["value"] is not None else (None, [])
    value = None if shape is None else torch.tensor(numbers, dtype=dtype, device="cpu").reshape(shape)
    return TensorTemplate(sizes, tuple(data["order"]), tuple(data["expanded"]), dtype, bool(data["zero"]), value)
