"""Takes a model, its `Coupling` and a `Plan`, returns the smaller network, verified; or its oracle, the zeroed twin."""

from .applying import rewrite
from .twin import zero

__all__ = ["rewrite", "zero"]
