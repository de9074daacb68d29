"""regression: what a layer gets and what it should put out -> the change of its weights, by ridge regression.

The ridge pulls towards the weights as they are, and not towards zero: with few samples a layer stays as it is. How
strong it is, samples decide that were left out of the fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

FINEST, COARSEST = -9, 1
"""Powers of ten of a ridge, relative to the mean variance of what goes in; above, the layer stays as it is."""

FIRST = -2

LEFT_OUT = 0.25
"""Share of the rows, the first ones, that judge a ridge."""


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A change of weights.

    Attributes:
        change: (inputs, outputs) float64.
        shift: (outputs,): what is to be added to the bias.
        ridge: relative to the mean variance of the inputs; infinite: nothing changes.
        before, after: mean square of what is missing on the rows that were left out, without the change and with it.
    """

    change: torch.Tensor
    shift: torch.Tensor
    ridge: float
    before: float
    after: float


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """Over rows: of what goes in, of what is missing, and of their products."""

    count: int
    inputs: torch.Tensor
    missing: torch.Tensor
    gram: torch.Tensor
    cross: torch.Tensor

    @classmethod
    def of(cls, inputs: torch.Tensor, missing: torch.Tensor) -> _Sums:
        return cls(len(inputs), inputs.sum(0), missing.sum(0), inputs.T @ inputs, inputs.T @ missing)

    def with_rows(self, other: _Sums) -> _Sums:
        """Over the rows of both: the products, which are most of the work, are taken once."""
        count, inputs, missing = self.count + other.count, self.inputs + other.inputs, self.missing + other.missing
        return _Sums(count, inputs, missing, self.gram + other.gram, self.cross + other.cross)

    def system(self, centred: bool) -> _System:
        count = max(self.count, 1)
        mean_in, mean_out = self.inputs / count * centred, self.missing / count * centred
        gram = self.gram / count - torch.outer(mean_in, mean_in)
        return _System(mean_in, mean_out, gram, self.cross / count - torch.outer(mean_in, mean_out))


@dataclass(frozen=True, slots=True, eq=False)
class _System:
    """Of centred rows: their mean products, to be solved for any ridge."""

    mean_in: torch.Tensor
    mean_out: torch.Tensor
    gram: torch.Tensor
    cross: torch.Tensor

    def solved(self, ridge: float) -> torch.Tensor:
        """(inputs, outputs): zero for an infinite ridge, and where nothing goes in."""
        diagonal = self.gram.diagonal()
        scale = float(diagonal.mean())
        if ridge == float("inf") or not scale > 0:
            return torch.zeros_like(self.cross)
        return _solution(self.gram, ridge * scale, self.cross)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The same of fewer rows than inputs: what is solved for is a weight for each row, and the change their sum. Of 256
    rows for 3,744 inputs that took a hundredth of the time."""

    mean_in: torch.Tensor
    mean_out: torch.Tensor
    inputs: torch.Tensor
    missing: torch.Tensor
    kernel: torch.Tensor

    @classmethod
    def of(cls, inputs: torch.Tensor, missing: torch.Tensor, centred: bool) -> _Rows:
        mean_in, mean_out = inputs.mean(0) * centred, missing.mean(0) * centred
        inputs, missing = inputs - mean_in, missing - mean_out
        return cls(mean_in, mean_out, inputs, missing, inputs @ inputs.T / len(inputs))

    def solved(self, ridge: float) -> torch.Tensor:
        """As `_System.solved`."""
        scale = float(self.kernel.diagonal().sum()) / self.inputs.shape[1]
        if ridge == float("inf") or not scale > 0:
            return self.inputs.new_zeros(self.inputs.shape[1], self.missing.shape[1])
        return self.inputs.T @ _solution(self.kernel, ridge * scale, self.missing) / len(self.missing)


def _solution(matrix: torch.Tensor, ridge: float, wanted: torch.Tensor) -> torch.Tensor:
    """Of a symmetric system with a ridge on its diagonal; zero where rounding leaves none, with the finest ridges."""
    matrix = matrix.clone()
    matrix.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.zeros_like(wanted) if bool(failed) else torch.cholesky_solve(wanted, factor)


def fitted(inputs: torch.Tensor, missing: torch.Tensor, centred: bool = True, judged: bool = True) -> Fit:
    """The change D that makes the least of |missing - inputs D|^2 + ridge |D|^2.

    Args:
        inputs: (rows, inputs) float64, in the order of the samples.
        missing: (rows, outputs): what the layer should put out, less what it does.
        centred: whether a constant may be added to the outputs (`Fit.shift`, or a normalisation that follows and takes
            it away).
        judged: whether rows are of several samples, so that some can be left out to choose the ridge; else it is 1.
    """
    out = max(1, int(LEFT_OUT * len(inputs))) if judged else 0
    few = out < len(inputs) < inputs.shape[1]
    if not judged:
        system = _Rows.of(inputs, missing, centred) if few else _Sums.of(inputs, missing).system(centred)
        return _fit(system, 1.0, inputs, missing)
    part: _System | _Rows
    whole: _System | _Rows
    if few:
        part, whole = (_Rows.of(inputs[start:], missing[start:], centred) for start in (out, 0))
    else:
        fitted_to = _Sums.of(inputs[out:], missing[out:])
        part = fitted_to.system(centred)
        whole = fitted_to.with_rows(_Sums.of(inputs[:out], missing[:out])).system(centred)
    judge_in, judge_out = inputs[:out] - part.mean_in, missing[:out] - part.mean_out

    def error(power: float) -> float:
        return float((judge_out - judge_in @ part.solved(10.0**power)).square().mean())

    best, errors = FIRST, {FIRST: error(FIRST)}
    # The error has one valley in practice: downhill from the middle.
    for way in (-1, 1):
        while FINEST <= best + way <= COARSEST:
            errors[best + way] = error(best + way)
            if not errors[best + way] < errors[best]:
                break
            best += way
        if best != FIRST:
            break
    before = float(judge_out.square().mean())
    if not errors[best] < before:
        return Fit(inputs.new_zeros(inputs.shape[1], missing.shape[1]), whole.mean_out, float("inf"), before, before)
    change = whole.solved(10.0**best)
    return Fit(change, whole.mean_out - whole.mean_in @ change, 10.0**best, before, errors[best])


def _fit(sums: _System | _Rows, ridge: float, inputs: torch.Tensor, missing: torch.Tensor) -> Fit:
    change = sums.solved(ridge)
    shift = sums.mean_out - sums.mean_in @ change
    after = missing - inputs @ change - shift
    return Fit(change, shift, ridge, float((missing - sums.mean_out).square().mean()), float(after.square().mean()))
