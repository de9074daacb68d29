"""A pruned network -> a file, and the file -> the network, with the help of the dense one's class. No pickle.

Takes what `prune` or `rewrite` returns; docs/deploy.md says what is in the file.
"""

from .rebuilding import load
from .taking import save

__all__ = ["load", "save"]
