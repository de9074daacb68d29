"""Where a search stands, as a value and as a file: safetensors, with what is no tensor as JSON in its header.

Files are written whole or not at all, and nothing in them is ever executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import HalpError, InfeasibleError, StateError
from ..files import tensors_in, write_tensors
from ..rewriting.compensating import Compensation
from ..scoring.saliency import Saliency
from ..scoring.values import WidthValues
from ..solver import Solution
from ..types import Plan
from ..types.plain import from_plain, to_plain
from .judging import Scored
from .networks import Candidate, Choice, Network, Stop
from .yardstick import Learned

FORMAT = "halp_fx.search/5"

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Scoring:
    """A `Saliency` but for its arrays: these belong to `groups`, in this order; those of `valued` have values."""

    groups: tuple[str, ...]
    valued: tuple[str, ...]
    kind: str
    batches: int
    skipped: int
    silent: tuple[str, ...]
    evenness: float
    memory: float
    rows: int
    uniform: bool
    dropping: Mapping[str, float]
    lost: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KeptRound:
    """A `Candidate` but for its network; `refused` is the solver's word and the smallest cost."""

    plan: Plan
    total: float
    predicted: float
    measured: float
    solution: Solution
    refused: tuple[str, float] | None
    busy: str
    scatter: float

    @classmethod
    def of(cls, candidate: Candidate) -> KeptRound:
        why, c = candidate.choice.refused, candidate
        refused = None if why is None else (str(why), why.minimum)
        figures = (c.total, c.predicted, c.measured, c.choice.solution)
        return cls(c.network.plan, *figures, refused, c.busy, c.scatter)

    def candidate(self, network: Network) -> Candidate:
        refused = None if self.refused is None else InfeasibleError(*self.refused)
        choice = Choice(self.solution, refused)
        return Candidate(network, self.total, self.predicted, self.measured, choice, self.busy, self.scatter)


@dataclass(frozen=True, slots=True)
class Record:
    """Where a search stands: before its first step, after one, or at its end.

    Attributes:
        aim: resource -> the budget that it was on its way to, as a share of dense or an amount.
        plan: of the network as it stands.
        share: its cost, of dense; predicted, and at the end measured.
        left: ways to go yet; none at the end.
        scored: whether `scoring` is of this network; otherwise of the one that it was cut out of.
        step: what was kept of the network that it was cut out of.
        random: the random states that are no tensors (`Stream.kept`).
        rounds: candidates, at the end.
        best: which of them was chosen.
        The others are as in `Session`.
    """

    aim: Mapping[str, str]
    plan: Plan
    share: float
    left: tuple[float, ...]
    scored: bool
    learned: Learned
    random: str
    step: Plan = field(default_factory=Plan)
    trail: tuple[Stop, ...] = ()
    scores: tuple[Scored, ...] = ()
    stopped: str = ""
    scoring: Scoring | None = None
    compensation: Compensation | None = None
    rounds: tuple[KeptRound, ...] = ()
    best: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return not self.left


def write_record(record: Record, tensors: Tensors, path: Path) -> None:
    """Replace a file whole.

    Raises:
        OSError: it cannot be written.
    """
    metadata = {"format": FORMAT, "record": json.dumps(to_plain(record), separators=(",", ":"))}
    write_tensors(path, {name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)


def read_record(path: Path) -> Record:
    """Inverse of `write_record`, without the tensors.

    Raises:
        StateError: it is no such file.
    """
    return _opened(path)[0]


def read_tensors(path: Path) -> Tensors:
    """The tensors of a record."""
    return _opened(path, tensors=True)[1]


def _opened(path: Path, tensors: bool = False) -> tuple[Record, Tensors]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            check_format(metadata.get("format"), path)
            record: Record = from_plain(Record, json.loads(metadata["record"]))
            return record, tensors_in(file) if tensors else {}
    except StateError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, HalpError) as error:
        raise StateError(f"{path} cannot be read: {error}. {_ADVICE}") from error


def check_format(form: Any, path: Path) -> None:
    """Raises StateError for a format that is not known here."""
    if form != FORMAT:
        raise StateError(f"{path} has format {form!r:.60}, and this halp_fx reads {FORMAT!r}. {_ADVICE}")


_ADVICE = "Pass another folder as state, or delete this one"


def saliency_tensors(saliency: Saliency) -> dict[str, torch.Tensor]:
    """The arrays of a saliency."""
    found: dict[str, np.ndarray[Any, Any]] = {f"score {name}": scores for name, scores in saliency.scores.items()}
    for name, values in saliency.values.items():
        found |= {f"order {name}": values.order, f"value {name}": values.value}
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()}


def scoring_of(saliency: Saliency) -> Scoring:
    s, names = saliency, (tuple(saliency.scores), tuple(saliency.values))
    return Scoring(
        *names, s.kind, s.batches, s.skipped, s.silent,
        float(s.evenness), float(s.memory), s.rows, s.uniform, dict(s.dropping), s.lost,
    )  # fmt: skip


def saliency_of(scoring: Scoring, tensors: Tensors) -> Saliency:
    """What `scoring_of` and `saliency_tensors` were made of."""
    s = scoring
    scores = {name: tensors[f"score {name}"].numpy() for name in s.groups}
    values = {n: WidthValues(tensors[f"order {n}"].numpy(), tensors[f"value {n}"].numpy()) for n in s.valued}
    return Saliency(
        scores, s.kind, s.batches, s.skipped, s.silent, values,
        s.evenness, s.memory, s.rows, s.uniform, s.dropping, s.lost,
    )  # fmt: skip
