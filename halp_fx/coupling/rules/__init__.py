"""One rule per operator that joins, creates or consumes channels.

A rule is a function `(call: Call, algebra: Algebra) -> planes`, where `planes` is a tuple of planes for an operator
with one result, or a list of such tuples for one with several. It couples labels through `algebra`, and returns the
labels of its results. An operator without a rule freezes whatever reaches it.
"""

from ..algebra import Algebra, Call
from . import cuts, matrices, quantization, scattering  # noqa: F401 - They register rules, and have no names for others.
from .contraction import contraction
from .convolution import convolution
from .elementwise import like, pointwise
from .lookups import embedding
from .normalization import batch_norm
from .recurrent import recurrent
from .reductions import reduction
from .registry import Rule, find_rule, register_rule
from .shapes import shape_only
from .spatial import spatial

__all__ = [
    "Algebra",
    "Call",
    "Rule",
    "batch_norm",
    "contraction",
    "convolution",
    "embedding",
    "find_rule",
    "like",
    "pointwise",
    "recurrent",
    "reduction",
    "register_rule",
    "shape_only",
    "spatial",
]
