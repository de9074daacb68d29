"""Takes a model, returns a `Coupling` that holds: what its forward takes for constant is mended or frozen."""

from .branches import tried
from .trials import channel_groups

__all__ = ["channel_groups", "tried"]
