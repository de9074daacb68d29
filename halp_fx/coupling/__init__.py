"""Takes a `Traced`, returns a `Coupling`: which channels are kept or removed together."""

from .residual import find_branches
from .settling import couple

__all__ = ["couple", "find_branches"]
