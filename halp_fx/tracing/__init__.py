"""Takes a model and example inputs, returns a `Traced`: what a forward did, as a graph of ATen operators."""

from .forward import trace

__all__ = ["trace"]
