"""Takes a model, or a graph that another tool captured, and a budget or a plan; returns a smaller network that is
compiled, or can be."""

from .backend import BACKEND, reports
from .deploying import compile

__all__ = ["BACKEND", "compile", "reports"]
