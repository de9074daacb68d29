"""Every error that halp_fx raises on purpose.

One base class, so that callers can catch `HalpError`; the kinds tell whose move it is. A message names the
node, parameter or file it is about, the shape or value found, and what the reader can do.
"""

import os
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def few(names: Sequence[str], most: int = 3) -> str:
    """The first of these, for a message that would be too long with all of them."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def words_of(error: BaseException) -> str:
    """What an exception says, without PyTorch's lists of all that a function takes instead; of one that says nothing
    (`assert x.shape[1] == 8`) its kind and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__) if not str(error) else []
    if frames:
        at = frames[-1]
        return f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}: {at.line}".rstrip(": ")
    return str(error).partition(", but expected one of:")[0]


class HalpError(Exception):
    """Base class of all errors raised on purpose by halp_fx."""

    def __reduce__(self) -> tuple[Any, ...]:
        # An error that a spawned worker raises is pickled: without the graph of what ran before it, and networks.
        kept = {k: v for k, v in vars(self).items() if k not in ("recorded", "reached")}
        return _rebuilt, (type(self), self.args, kept)


def _rebuilt(kind: type[HalpError], args: tuple[Any, ...], attributes: dict[str, Any]) -> HalpError:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update({"recorded": None, **attributes} if issubclass(kind, TraceError) else attributes)
    return error


class PathError(HalpError, OSError):
    """A path does not lead to what is wanted there: it is empty, a folder where a file is to be, a file where a folder
    is, or a place where nothing may be written. Nothing was."""


class ModelError(HalpError):
    """The model cannot be handled as passed: wrapped, scripted, on the meta device, NaN weights, …"""


class TraceError(ModelError):
    """The model's forward could not be run on the example inputs, or could not be recorded.

    Attributes:
        recorded: the `fx.Graph` of what ran before the failure.
        call: the call of PyTorch that failed (`types.FailedCall`); None if none did.
        compared: if none did: of the numbers that the program compared before, in a trial, where they come from
            (`tracing.tags`).
    """

    def __init__(
        self, message: str, recorded: Any = None, call: Any = None, compared: frozenset[Any] = frozenset()
    ) -> None:
        super().__init__(message)
        self.recorded = recorded
        self.call = call
        self.compared = compared


class PlanError(HalpError):
    """A plan does not fit the model: unknown group, index out of range, empty or frozen group."""


class OtherChannelsError(PlanError):
    """A plan was made for a network in which a group of this name has other channels."""


class BudgetError(HalpError):
    """A budget is malformed, out of range, or below what the model can reach."""


class InfeasibleError(BudgetError):
    """No choice of widths meets the budget.

    Attributes:
        minimum: smallest cost that any choice reaches, in the unit of the budget: of the problem for `solve`, end to
            end for `prune`. NaN if a baseline method found nothing.
        groups: names of the groups that bound it, the most costly first.
        network, plan: the smallest network, trained as far as it was, and the plan that leads to it; None if it was
            not made.
    """

    def __init__(
        self, message: str, minimum: float, groups: tuple[str, ...] = (), network: Any = None, plan: Any = None
    ) -> None:
        super().__init__(message)
        self.minimum = minimum
        self.groups = groups
        self.network = network
        self.plan = plan

    def __reduce__(self) -> Any:
        # An exception is rebuilt from its message alone, otherwise: it would not cross to another process.
        return type(self), (str(self), self.minimum, self.groups, self.network, self.plan)


class ProblemError(HalpError):
    """A width problem is malformed: ragged or unsorted table, NaN, unknown group name, …"""


class SaliencyError(HalpError):
    """Saliency cannot be computed: no gradient, all batches non-finite, wrong shape from a callable, …"""


class LatencyError(HalpError):
    """A latency could not be measured, or a latency table does not fit."""


class CheckpointError(HalpError):
    """A network cannot be saved, or a saved one cannot be loaded: see `saving.errors` for the kinds."""


class StateError(HalpError):
    """A folder of a search (`prune(..., state=)`) is of another model, other data or other options, or cannot be read.
    Nothing was written to it."""


class DenseWeightsError(CheckpointError, RuntimeError):
    """A pruned network was given the weights of the dense one (`load_state_dict`, which raises RuntimeError for weights
    that do not fit). None were taken."""


class ExportError(HalpError):
    """A network could not be exported, or the file does not compute what the network does."""


class RewriteError(HalpError):
    """A rewritten network does not do what its plan asks for, e.g. because of a constant in its forward.

    Attributes:
        groups: names of the groups that the failing operator handles.
        place: (operator, source line) where it fails.
        node: the operator in the trace of the original network, "" if there is none.
    """

    def __init__(
        self, message: str, groups: tuple[str, ...] = (), place: tuple[str, str] = ("", ""), node: str = ""
    ) -> None:
        super().__init__(message)
        self.groups = groups
        self.place = place
        self.node = node


class TrainingError(HalpError):
    """Pruning does not fit the training around it: an optimizer of other parameters, no gradients, a checkpoint of
    another run, …"""


def instead_of_path(given: object) -> str:
    """How to pass the text of a file, where a path was passed in its place; "" if it was something else."""
    if isinstance(given, os.PathLike) or (
        # Of several lines it is a text.
        isinstance(given, str) and given and "\n" not in given and not given.lstrip().startswith(("{", "["))
    ):
        return f". To read a file, pass its text: pathlib.Path({os.fspath(given)!r:.80}).read_text()"
    return ""
