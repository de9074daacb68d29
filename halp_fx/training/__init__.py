"""training: takes a model that is being trained, with its optimizer and averages, returns the same, smaller."""

from .distilling import distill, distill_features
from .optimizer import rebind
from .penalty import SparsityPenalty
from .pruner import Pruner

__all__ = ["Pruner", "SparsityPenalty", "distill", "distill_features", "rebind"]
