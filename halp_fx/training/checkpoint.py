"""checkpoint: whether a saved state of a Pruner is one of this Pruner; what a session has learned, as plain values and
back; what of saved weights was cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import TrainingError
from ..model.tensors import state_shapes
from ..pruning.networks import Network, Stop
from ..pruning.records import Scoring, saliency_of, saliency_tensors, scoring_of
from ..pruning.session import Session
from ..pruning.yardstick import Learned
from ..types import Plan
from ..types.plain import from_plain, to_plain

FORMAT = "halp_fx.pruner/2"
KEYS = ("network", "asked", "processes", "plan", "done", "counts", "rows", "hidden")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a state and the pruner that loads it must have in common.

    Attributes:
        network: names and shapes of the dense network's parameters and buffers.
        asked: arguments of the pruner.
        processes: of the job.
    """

    network: dict[str, tuple[int, ...]]
    asked: dict[str, Any]
    processes: int

    @classmethod
    def of(cls, model: nn.Module, asked: Mapping[str, Any], processes: int) -> Identity:
        return cls(state_shapes(model), dict(asked), processes)

    def to_state(self) -> dict[str, Any]:
        return {"format": FORMAT, "network": self.network, "asked": self.asked, "processes": self.processes}

    def check(self, state: Mapping[str, Any]) -> None:
        """Raises TrainingError for the state of another pruner."""
        form = state.get("format") if isinstance(state, Mapping) else type(state).__name__
        if form != FORMAT:
            raise TrainingError(f"this is no state of a Pruner: its format is {form!r}, not {FORMAT!r}")
        missing = [key for key in KEYS if key not in state]
        if missing:
            raise TrainingError(f"the checkpoint is not whole: {', '.join(missing)} are missing")
        theirs = {name: tuple(shape) for name, shape in state["network"].items()}
        if theirs != self.network:
            off = next(n for n in (*theirs, *self.network) if theirs.get(n) != self.network.get(n))
            raise TrainingError(
                f"the checkpoint is of another network: {off} is {theirs.get(off, 'missing')} there and "
                f"{self.network.get(off, 'missing')} here. Make the Pruner of the original, dense network, then load"
            )
        for name, value in self.asked.items():
            theirs = state["asked"].get(name, value)  # What no version of then wrote down is not compared.
            if theirs != value:
                raise TrainingError(f"the checkpoint was written with {name}={theirs}, this Pruner has {name}={value}")
        if state["processes"] != self.processes and not state["done"]:  # Afterwards there is nothing left to decide.
            raise TrainingError(
                f"the checkpoint was written by {state['processes']} processes, and there are {self.processes}: resume "
                "with as many, or finish pruning first"
            )


def session_state(session: Session) -> dict[str, Any]:
    """What the first process has learned in the steps that were taken."""
    state: dict[str, Any] = {"learned": to_plain(session.yardstick.learned), "trail": to_plain(session.trail)}
    saliency = session.network.saliency
    if saliency is not None:  # Its report shows the last one.
        state["scoring"], state["scores"] = to_plain(scoring_of(saliency)), dict(saliency_tensors(saliency))
    return state


def take_up(session: Session, state: Mapping[str, Any], model: nn.Module, plan: Plan) -> None:
    """Let a session go on from a state, with the network that the plan has led to."""
    session.yardstick.take(from_plain(Learned, state["learned"]))
    session.trail = [from_plain(Stop, stop) for stop in state["trail"]]
    if "scoring" in state:
        known = saliency_of(from_plain(Scoring, state["scoring"]), state["scores"])
        session.network = Network(model, plan, saliency=known)


def apart_from(state: Mapping[str, Any], here: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The tensors that saved weights and a network, of these shapes, do not have alike."""
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items() if hasattr(tensor, "shape")}
    return [name for name in (*here, *(theirs.keys() - here.keys())) if theirs.get(name) != here.get(name)]


def cut_in(state: Mapping[str, Any], here: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The tensors of saved weights that are smaller than a network's own, of these shapes; none where one is larger:
    these are of another network."""
    cut = [n for n, t in state.items() if n in here and t.dim() == len(here[n]) and tuple(t.shape) != here[n]]
    smaller = all(size <= own for name in cut for size, own in zip(state[name].shape, here[name], strict=True))
    return cut if smaller else []
