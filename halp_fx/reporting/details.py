"""Parts of a `Report`, in plain values: what changed where, what it could have been, and how that was found out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WidthCurve:
    """A figure at some widths of a group, ascending."""

    widths: tuple[int, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupReport:
    """One channel group: its name, its channels before and after, and the axes it reaches.

    Attributes:
        layers: the modules that are as wide as the group is; "forward" for what the model's own forward runs.
        cost: of all layers whose cost the group changes, at the widths it could take, all other groups as chosen.
        lost: what the network loses at these widths, in the unit of the importance; empty if nothing was scored.
    """

    name: str
    size: int
    kept: int
    axes: tuple[str, ...]
    layers: tuple[str, ...] = ()
    cost: WidthCurve = WidthCurve()
    lost: WidthCurve = WidthCurve()


@dataclass(frozen=True, slots=True)
class ModuleChange:
    """A module with parameters of its own.

    Attributes:
        name: as in `named_modules`: "" for the model itself.
        before, after: as "Conv2d(64, 128, 3x3)"; `after` is "" for what went with a branch.
        parameters, macs: before and after.
    """

    name: str
    before: str
    after: str
    parameters: tuple[int, int]
    macs: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class LayerChange:
    """What the runtime executes as one: an operator, or several in one kernel.

    Attributes:
        name, op: which.
        before, after: (n_in, n_out); n_out is 0 for an operator with one width.
        cost: before and after in the unit of the report, by the tables; after is 0 for what went with a branch.
    """

    name: str
    op: str
    before: tuple[int, int]
    after: tuple[int, int]
    cost: tuple[float, float]


@dataclass(frozen=True, slots=True)
class StepReport:
    """The network after one step.

    Attributes:
        aim: share of the dense cost at which the step was to stop.
        predicted: share of the dense cost.
        parameters: how many.
    """

    aim: float
    predicted: float
    parameters: int


@dataclass(frozen=True, slots=True)
class Contender:
    """A network that was judged, with effort="thorough".

    Attributes:
        name: of the way that led to it.
        measured: its cost, in the unit of the report.
        distance: of its outputs from the dense network's, on data held out.
        tuned: the same after one more training, of class scores the squared Hellinger distance; None if it was not
            trained.
    """

    name: str
    measured: float
    distance: float
    tuned: float | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What was pruned, and where.

    Attributes:
        model: its class. inputs: their shapes, as "1x3x224x224 float32".
        device, runtime, threads, timer: what costs were taken on and how; "" and 0 for a counted cost.
        software: versions.
        by: what gave times of networks that were not timed, in words: "the table of Raspberry Pi 5, 4 cores"; "" for
            times that were measured.
    """

    model: str = ""
    inputs: tuple[str, ...] = ()
    device: str = ""
    runtime: str = ""
    threads: int = 0
    timer: str = ""
    software: str = ""
    by: str = ""
