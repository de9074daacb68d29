"""training: takes a model that is being trained, with its optimizer and averages, returns the same, smaller."""

from .optimizer import rebind

__all__ = ["rebind"]
