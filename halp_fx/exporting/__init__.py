"""A network -> a file that other runtimes execute, which was compared with the network, and timed.

Takes any `nn.Module`, pruned or not; returns an `Export`. docs/deploy.md says what is in the files.
"""

from .exporter import export
from .quantizing import quantize
from .record import Export

__all__ = ["Export", "export", "quantize"]
