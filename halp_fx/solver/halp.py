from __future__ import annotations

from .local import Incumbent
from .model import Model
from .problem import WidthProblem


def solve_halp(problem: WidthProblem, model: Model, incumbent: Incumbent) -> None:
    raise NotImplementedError
