"""layers: a call of a convolution or a linear layer -> its rows, as a plain matrix product has them.

A row is one place of the output (a sample and a position), its inputs are what the kernel lies on there. A transposed
convolution is one of its inputs with zeros between them, with its kernel turned round.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.nn import functional as F

_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
_TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}


@dataclass(frozen=True, slots=True, eq=False)
class LayerCall:
    """Arguments of a call.

    Attributes:
        x: (*, inputs), or of a convolution (samples, channels, *space).
        weight: (outputs, inputs / groups, *kernel).
        bias: (outputs,) or None.
        stride, padding, dilation: for each dimension of space; the padding before and behind, which may be negative.
        turned: of a transposed convolution, its own weight, of which `weight` is a copy as a convolution has it.
    """

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    turned: torch.Tensor | None = None

    def result(self) -> torch.Tensor:
        """What the layer puts out as it is now."""
        if not self.stride:
            return F.linear(self.x, self.weight, self.bias)
        function = {n: getattr(F, name) for name, n in _CONVOLUTIONS.items()}[len(self.stride)]
        out: torch.Tensor = function(self._padded(), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
        return out

    def rows(self) -> int:
        """How many places the output has."""
        if not self.stride:
            return prod(self.x.shape[:-1])
        kernel, places = self.weight.shape[2:], self.x.shape[2:]
        sides = zip(places, self.padding, self.dilation, kernel, self.stride, strict=True)
        return len(self.x) * prod((n + a + b - d * (k - 1) - 1) // s + 1 for n, (a, b), d, k, s in sides)

    def outputs(self, result: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(rows, outputs)."""
        last = result.movedim(1, -1) if self.stride else result
        return last[torch.unravel_index(rows, last.shape[:-1])]

    def inputs(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, groups x inputs of a group x kernel), the weight's order."""
        if not self.stride:
            return self.x[torch.unravel_index(rows, self.x.shape[:-1])]
        x, space = self._padded(), len(self.stride)
        for d in range(space):
            reach = self.dilation[d] * (self.weight.shape[2 + d] - 1) + 1
            x = x.unfold(2 + d, reach, self.stride[d])[..., :: self.dilation[d]]
        x = x.movedim(1, 1 + space)
        return x[torch.unravel_index(rows, x.shape[: 1 + space])].flatten(1)

    def applied(self, inputs: torch.Tensor) -> torch.Tensor:
        """(rows, outputs): what the layer makes of rows that `inputs` gave, in their precision."""
        weights = self.weight.to(inputs).flatten(1).chunk(self.groups)
        made = torch.cat([x @ w.T for x, w in zip(inputs.chunk(self.groups, 1), weights, strict=True)], 1)
        return made if self.bias is None else made + self.bias.to(inputs)

    def change(self, by: torch.Tensor, shift: torch.Tensor) -> None:
        """Add to the weight and the bias, in place.

        Args:
            by: (inputs of a group x kernel, outputs).
            shift: (outputs,); lost where there is no bias.
        """
        change = by.T.reshape(self.weight.shape)
        if self.turned is None:
            self.weight.add_(change.to(self.weight))
        else:
            self.turned.add_(_turned(change).to(self.turned))
        if self.bias is not None:
            self.bias.add_(shift.to(self.bias))

    def _padded(self) -> torch.Tensor:
        return F.pad(self.x, [side for both in reversed(self.padding) for side in both])


def layer_call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LayerCall | None:
    """What was called, if it is a linear layer, or a convolution of a batch; transposed, only in one group."""
    name = getattr(func, "__name__", "")
    if name == "linear":
        return LayerCall(*_LINEAR.bind(*args, **kwargs).args)
    if name in _TRANSPOSED:
        transposition = _TRANSPOSITION.bind(*args, **kwargs)
        transposition.apply_defaults()
        return _transposed_call(_TRANSPOSED[name], *transposition.args)
    if name not in _CONVOLUTIONS:
        return None
    bound = _CONVOLUTION.bind(*args, **kwargs)
    bound.apply_defaults()
    x, weight, bias, stride, padding, dilation, groups = bound.args
    space = _CONVOLUTIONS[name]
    if x.ndim != space + 2:
        return None
    dilation = _each(dilation, space)
    spare = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if padding == "same":
        sides = tuple((s // 2, s - s // 2) for s in spare)
    else:
        sides = tuple((p, p) for p in (_each(padding, space) if padding != "valid" else (0,) * space))
    return LayerCall(x, weight, bias, _each(stride, space), sides, dilation, groups)


def _transposed_call(
    space: int,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> LayerCall | None:
    if x.ndim != space + 2 or groups != 1:
        return None
    stride, dilation = _each(stride, space), _each(dilation, space)
    apart = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)))
    places: list[Any] = [..., *(slice(None, None, s) for s in stride)]
    apart[tuple(places)] = x
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    ends = zip(reach, _each(padding, space), _each(output_padding, space), strict=True)
    sides = tuple((r - p, r - p + more) for r, p, more in ends)
    return LayerCall(apart, _turned(weight), bias, (1,) * space, sides, dilation, turned=weight)


def _turned(weight: torch.Tensor) -> torch.Tensor:
    """The weight of a transposed convolution as that of a convolution, and the other way round."""
    return weight.transpose(0, 1).flip([*range(2, weight.ndim)])


def _convolution(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> None: ...


def _linear(input: Any, weight: Any, bias: Any = None) -> None: ...


def _transposition(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> None: ...


_CONVOLUTION, _LINEAR, _TRANSPOSITION = map(inspect.signature, (_convolution, _linear, _transposition))


def _each(value: Any, space: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * space if len(values) == 1 else values
