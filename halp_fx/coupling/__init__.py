"""Takes a `Traced`, returns a `Coupling`: which channels are kept or removed together."""

from .propagation import couple
from .residual import find_branches

__all__ = ["couple", "find_branches"]
