"""Takes a `Request` and a `Coupling`, returns candidates: networks near their budgets, measured."""

from .session import Candidate, close, step

__all__ = ["Candidate", "close", "step"]
