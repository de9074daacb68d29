"""training: takes a model that is being trained, with its optimizer and averages, returns the same, smaller."""

from .optimizer import rebind
from .pruner import Pruner

__all__ = ["Pruner", "rebind"]
